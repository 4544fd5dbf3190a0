"""Which joints are commanded where and how: the executor's outputs, from YAML or by default."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pi05_ros.errors import Pi05Error
from pi05_ros.small_files import FileError
from pi05_ros.strict_yaml import read_yaml

TRAJECTORY, CHUNK, POSITION, VELOCITY = "trajectory", "trajectory_chunk", "position", "velocity"
GRIPPER_COMMAND, PARALLEL_GRIPPER = "gripper_command", "parallel_gripper_command"
TWIST, POSE, JOINT_JOG = "twist", "pose", "joint_jog"
KINDS = (
    TRAJECTORY, CHUNK, POSITION, VELOCITY, GRIPPER_COMMAND, PARALLEL_GRIPPER, TWIST, POSE,
    JOINT_JOG,
)  # fmt: skip
CARTESIAN = (TWIST, POSE)
_ACTIONS = (GRIPPER_COMMAND, PARALLEL_GRIPPER)
_TOOL = ("frame", "tool", "max_linear", "max_angular")
_KEYS = (
    "kind", "topic", "joints", "names", "gripper", "stamped", "scale", "offset", "gain",
    "max_effort", *_TOOL,
)  # fmt: skip


class OutputsError(Pi05Error, ValueError):
    """Outputs that are malformed, or that do not command every joint once."""


@dataclass(frozen=True)
class Output:
    """One topic or action and the joints that it commands.

    Attributes:
        kind: TRAJECTORY: trajectory_msgs/JointTrajectory of one point, a period ahead. CHUNK: the
            same with all that is planned, with velocities, ending at rest. POSITION, VELOCITY:
            std_msgs/Float64MultiArray. GRIPPER_COMMAND, PARALLEL_GRIPPER: actions of control_msgs.
            TWIST, POSE: geometry_msgs/TwistStamped and PoseStamped of a link. JOINT_JOG:
            control_msgs/JointJog.
        topic: topic or action name, relative to the node's namespace.
        joints: in the order of the message.
        names: what the controller calls them; the same if empty.
        gripper: what these joints hold may keep them away from their commands.
        scale, offset: sent is ``scale * position + offset``, velocities are scaled.
        stamped: of CHUNK: its header says when it starts, a period later than else, so that a
            message that is late changes nothing; the controller's clock must be this one. Else it
            starts when it arrives.
        gain: of VELOCITY, JOINT_JOG and TWIST, 1/s: velocity added per distance between command
            and joint, or pose.
        max_effort: of the actions.
        frame, tool: of TWIST and POSE: links; the motion of ``tool`` is seen from ``frame``.
        max_linear, max_angular: of TWIST and POSE, m/s and rad/s.

    """

    kind: str
    topic: str
    joints: tuple[str, ...]
    gripper: bool = False
    scale: float = 1.0
    offset: float = 0.0
    gain: float = 1.0
    max_effort: float = 0.0
    names: tuple[str, ...] = ()
    stamped: bool = False
    frame: str = ""
    tool: str = ""
    max_linear: float = math.inf
    max_angular: float = math.inf

    @property
    def message_names(self) -> tuple[str, ...]:
        """Names of the joints in messages to the controller."""
        return self.names or self.joints


def default_outputs(joints: Sequence[str], output: str, gripper_joint: str) -> list[Output]:
    """Outputs of a single arm: ``output`` is "trajectory" or "forward"."""
    arm = tuple(name for name in joints if name != gripper_joint)
    outputs = []
    if arm:
        kind, topic = {
            "trajectory": (TRAJECTORY, "joint_trajectory_controller/joint_trajectory"),
            "forward": (POSITION, "forward_position_controller/commands"),
        }[output]
        outputs.append(Output(kind, topic, arm))
    if gripper_joint in joints:
        outputs.append(Output(POSITION, "gripper_controller/commands", (gripper_joint,), True))
    return outputs


def read_outputs(path: Path, joints: Sequence[str]) -> list[Output]:
    """Read ``outputs: [{kind, topic, joints, ...}]`` from a YAML file, see `Output`.

    Raises:
        OutputsError: names the file, the entry and what is accepted.

    """
    try:
        data = read_yaml(path)
    except FileError as error:
        raise OutputsError(f"cannot read {error}") from error
    entries = data.get("outputs") if isinstance(data, Mapping) else None
    if not isinstance(entries, list) or not entries:
        raise OutputsError(f"{path}: needs a list outputs with kind, topic and joints each")
    outputs = [_output(entry, f"{path}: outputs[{i}]") for i, entry in enumerate(entries)]
    _check_joints(outputs, joints, str(path))
    return outputs


def _output(entry: Any, where: str) -> Output:
    if not isinstance(entry, Mapping):
        raise OutputsError(f"{where} is not a mapping")
    for key in entry:
        if key not in _KEYS:
            close = get_close_matches(key, _KEYS, 1)
            hint = f"did you mean {close[0]}?" if close else f"accepted: {', '.join(_KEYS)}"
            raise OutputsError(f"{where}.{key} is not known; {hint}")
    kind, topic, joints = entry.get("kind"), entry.get("topic"), entry.get("joints")
    if kind not in KINDS:
        raise OutputsError(f"{where}.kind is {kind!s:.50}; accepted: {', '.join(KINDS)}")
    if not isinstance(topic, str) or not topic:
        raise OutputsError(f"{where}.topic is {topic!s:.50}; accepted: the name of a topic")
    if not isinstance(joints, list) or not joints or not all(isinstance(j, str) for j in joints):
        raise OutputsError(f"{where}.joints is {joints!s:.50}; accepted: a list of joint names")
    if kind in _ACTIONS and len(joints) != 1:
        raise OutputsError(f"{where}.joints has {len(joints)} joints; accepted: one for {kind}")
    names = entry.get("names", joints)
    named = isinstance(names, list) and all(isinstance(n, str) and n for n in names)
    if not named or len(names) != len(joints) or len(set(names)) != len(names):
        raise OutputsError(
            f"{where}.names is {names!s:.80}; accepted: the controller's name of each of the "
            f"{len(joints)} joints, once"
        )
    flags: dict[str, Any] = {"gripper": kind in _ACTIONS, "stamped": False}
    for key, default in flags.items():
        flags[key] = entry.get(key, default)
        if not isinstance(flags[key], bool):
            raise OutputsError(f"{where}.{key} is {flags[key]!s:.50}; accepted: true or false")
    if flags["stamped"] and kind != CHUNK:
        raise OutputsError(f"{where}.stamped is for {CHUNK}, not for {kind}")
    numbers = {
        key: _number(entry, key, where) for key in ("scale", "offset", "gain", "max_effort")
    }
    if numbers.get("scale") == 0:
        raise OutputsError(f"{where}.scale is 0; accepted: another number")
    given: dict[str, Any] = {key: value for key, value in numbers.items() if value is not None}
    given |= _tool(entry, kind, where)
    made = Output(kind, topic, tuple(joints), names=tuple(names), **given)
    return replace(made, **flags)


def _tool(entry: Mapping[str, Any], kind: str, where: str) -> dict[str, Any]:
    """Links and speed limits of a Cartesian output; nothing about them is assumed."""
    if kind not in CARTESIAN:
        wrong = [key for key in _TOOL if key in entry]
        if wrong:
            raise OutputsError(f"{where}.{wrong[0]} is for {' and '.join(CARTESIAN)} only")
        return {}
    for key in ("scale", "offset", "names"):
        if key in entry:
            raise OutputsError(f"{where}.{key} is not for {kind}")
    links = {key: entry.get(key) for key in ("frame", "tool")}
    for key, link in links.items():
        if not isinstance(link, str) or not link:
            raise OutputsError(f"{where}.{key} is {link!s:.50}; accepted: the name of a link")
    speeds = {key: _number(entry, key, where) for key in ("max_linear", "max_angular")}
    for key, speed in speeds.items():
        if speed is None or speed <= 0:
            unit = "m/s" if key == "max_linear" else "rad/s"
            raise OutputsError(f"{where}.{key} is {speed}; accepted: a number above 0, in {unit}")
    return {**links, **speeds}


def _number(entry: Mapping[str, Any], key: str, where: str) -> float | None:
    if key not in entry:
        return None
    value = entry[key]
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not math.isfinite(value) or (key in ("gain", "max_effort") and value < 0):
        raise OutputsError(f"{where}.{key} is {value!s:.50}; accepted: a finite number")
    return float(value)


def _check_joints(outputs: Sequence[Output], joints: Sequence[str], where: str) -> None:
    """Every joint is commanded once, and no other."""
    count = dict.fromkeys(joints, 0)
    for output in outputs:
        for name in output.joints:
            if name not in count:
                raise OutputsError(
                    f"{where}: {output.topic} commands {name}, which is none of the joints "
                    f"({', '.join(joints)})"
                )
            count[name] += 1
    wrong = [f"{name} by {n} outputs" for name, n in count.items() if n != 1]
    if wrong:
        raise OutputsError(f"{where}: every joint must be commanded once: {', '.join(wrong)}")
