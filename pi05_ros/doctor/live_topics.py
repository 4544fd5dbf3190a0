"""Checks of live topics: rate, encoding, stamps of cameras and joint states, clock skew.

The listening happens in a process with rclpy (`ros/processes/topic_probe`); here its findings
are judged.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import util
from typing import Any

from pi05_ros.doctor.checks import Check, Level
from pi05_ros.runtime.inputs.image_encodings import ENCODINGS

FUTURE_S = 0.05
START_S = 30.0
SKEW_FIX = "chronyc tracking (both machines need NTP or PTP), or use_sim_time:=true for bag time"


def listen(namespace: str, seconds: float, joints: Sequence[str] = ()) -> dict[str, Any]:
    """Findings of the probe process; `joints` are those whose publishers are compared.

    Raises:
        RuntimeError: it failed; the text says why.

    """
    command = [sys.executable, "-m", "pi05_ros.ros.processes.topic_probe"]
    try:
        done = subprocess.run(
            [
                *command,
                "--namespace",
                namespace,
                "--seconds",
                str(seconds),
                "--joints",
                *joints,
            ],
            capture_output=True,
            text=True,
            timeout=seconds + START_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"no answer within {seconds + START_S:.0f} s") from None
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        noise = done.stderr.strip().splitlines()
        raise RuntimeError(noise[-1] if noise else f"ended with code {done.returncode}")
    return dict(json.loads(lines[-1]))


def topics(namespace: str, seconds: float, joints: Sequence[str], max_age_s: float) -> list[Check]:
    """Listen, then judge."""
    if util.find_spec("rclpy") is None:
        return [Check("topics", Level.MISSING, "cannot listen without ROS 2")]
    try:
        found = listen(namespace, seconds, joints)
    except RuntimeError as error:
        return [Check("topics", Level.WARN, f"cannot listen: {error}")]
    return judge(found, namespace, joints, max_age_s)


def judge(
    found: Mapping[str, Any], namespace: str, joints: Sequence[str], max_age_s: float
) -> list[Check]:
    """Report of what the probe found.

    Args:
        found: topic -> {"type", "publishers", "count", "rate_hz", and per message kind
            "encoding", "width", "height", "names" (of all messages together), "conflicts",
            "age_s": [min, median, max]}.
        namespace: namespace of the node.
        joints: joint names that the robot profile asks for.
        max_age_s: age above which the node would refuse a sample.

    """
    checks = [_one(topic, facts, joints, max_age_s) for topic, facts in sorted(found.items())]
    if not any(facts["kind"] == "image" for facts in found.values()):
        prefix = "/" + namespace.strip("/") if namespace.strip("/") else ""
        checks.append(
            Check(
                "camera topics",
                Level.MISSING,
                "nobody publishes an image",
                f"start a camera driver and remap it to {prefix}/base_camera/image_raw "
                "(or use pi05 demo, which brings its own)",
            )
        )
    if not any(facts["kind"] == "joints" for facts in found.values()):
        checks.append(
            Check(
                "joint states",
                Level.MISSING,
                "nobody publishes sensor_msgs/JointState",
                "ros2 control load_controller --set-state active joint_state_broadcaster",
            )
        )
    return checks + _skew(found)


def _one(topic: str, facts: Mapping[str, Any], joints: Sequence[str], max_age_s: float) -> Check:
    """Line of one topic."""
    if facts["count"] == 0:
        return Check(
            topic,
            Level.WARN,
            f"{facts['publishers']} publisher(s), but no message came",
            f"ros2 topic hz {topic}; ros2 topic info -v {topic}",
        )
    text = f"{facts['rate_hz']:.1f} Hz"
    if facts["kind"] == "image":
        text += f", {facts['width']}x{facts['height']} {facts['encoding']}".replace("0x0 ", "")
        if not facts["compressed"] and facts["encoding"] not in ENCODINGS:
            return Check(
                topic, Level.WARN, text, f"the driver must publish one of {', '.join(ENCODINGS)}"
            )
    else:
        lacking = [name for name in joints if name not in facts["names"]]
        text += f", {len(facts['names'])} joints"
        if lacking:
            return Check(
                topic,
                Level.WARN,
                f"{text} ({', '.join(facts['names'])}); the robot profile also needs "
                f"{', '.join(lacking)}",
                "rename state names in the robot YAML, or choose another with --robot",
            )
        for conflict in facts.get("conflicts", ()):
            return Check(
                topic, Level.WARN, f"{text}; {conflict}", f"ros2 topic info -v {topic}; stop one"
            )
    low, middle, high = facts["age_s"]
    text += f", stamps {middle * 1e3:.0f} ms old (max {high * 1e3:.0f})"
    if middle > max_age_s:
        return Check(topic, Level.WARN, f"{text}: older than max_age_s {max_age_s:g}", SKEW_FIX)
    if low < -FUTURE_S:
        return Check(topic, Level.WARN, f"{text}: stamps from the future", SKEW_FIX)
    return Check(topic, Level.OK, text)


def _skew(found: Mapping[str, Any]) -> list[Check]:
    """Offset between stamps and this machine's clock, and between topics."""
    ages = {topic: facts["age_s"] for topic, facts in found.items() if facts["count"]}
    if not ages:
        return []
    middles = [age[1] for age in ages.values()]
    spread = max(middles) - min(middles)
    text = (
        f"stamps lag this clock by {min(middles) * 1e3:.0f} to {max(middles) * 1e3:.0f} ms, "
        f"{spread * 1e3:.0f} ms between topics"
    )
    if min(age[0] for age in ages.values()) < -FUTURE_S or max(middles) > 1.0:
        return [Check("clock skew", Level.WARN, text, SKEW_FIX)]
    return [Check("clock skew", Level.OK, text)]
