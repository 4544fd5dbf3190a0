"""Listens to all cameras and joint states for a few seconds and prints what it saw as JSON.

    python -m pi05_ros.ros.processes.topic_probe --namespace "" --seconds 3

Used by `pi05 doctor` in a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import rclpy
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image, JointState

from pi05_ros.ros.process import TolerantExecutor
from pi05_ros.runtime.inputs.conversion import ConversionError, stamp_ns
from pi05_ros.runtime.inputs.joint_states import JointStateMerger, merge_message

KINDS = {
    "sensor_msgs/msg/Image": (Image, "image"),
    "sensor_msgs/msg/CompressedImage": (CompressedImage, "image"),
    "sensor_msgs/msg/JointState": (JointState, "joints"),
}
MAX_NAMES = 256


@dataclass
class Seen:
    """What came on one topic."""

    msgtype: str
    times: list[float] = field(default_factory=list)
    ages: list[float] = field(default_factory=list)
    last: Any = None
    names: dict[str, None] = field(default_factory=dict)  # of all joint states
    merger: JointStateMerger | None = None
    conflicts: dict[str, str] = field(default_factory=dict)  # joint -> what was seen

    def take(self, message: Any) -> None:
        """Note one message."""
        now = time.time()
        stamp = message.header.stamp
        self.times.append(time.monotonic())
        self.ages.append(now - stamp.sec - stamp.nanosec * 1e-9)
        self.last = message
        if KINDS[self.msgtype][1] == "joints":
            self._take_joints(message)

    def _take_joints(self, message: Any) -> None:
        """Note the names, and publishers that disagree about a wanted joint."""
        if len(self.names) < MAX_NAMES:
            self.names.update(dict.fromkeys(message.name))
        if self.merger is None:
            return
        taken_ns = stamp_ns(message.header.stamp) or time.time_ns()
        with contextlib.suppress(ConversionError):  # the node's diagnostics name those
            merge_message(self.merger, message, stamp_ns=taken_ns)
        for conflict in self.merger.conflicts(taken_ns):
            self.conflicts[conflict.joint] = str(conflict)

    def facts(self, publishers: int) -> dict[str, Any]:
        """JSON-ready findings."""
        kind = KINDS[self.msgtype][1]
        span = self.times[-1] - self.times[0] if len(self.times) > 1 else 0.0
        ages = sorted(self.ages)
        found: dict[str, Any] = {
            "type": self.msgtype,
            "kind": kind,
            "publishers": publishers,
            "count": len(self.times),
            "rate_hz": (len(self.times) - 1) / span if span else 0.0,
            "age_s": [ages[0], ages[len(ages) // 2], ages[-1]] if ages else None,
        }
        if kind == "image":
            message = self.last
            compressed = self.msgtype.endswith("CompressedImage")
            found["compressed"] = compressed
            found["encoding"] = (
                (message.format if compressed else message.encoding) if message else ""
            )
            found["width"] = 0 if compressed or not message else int(message.width)
            found["height"] = 0 if compressed or not message else int(message.height)
        else:
            found["names"] = list(self.names)
            found["conflicts"] = list(self.conflicts.values())
        return found


class Probe(Node):
    """Subscribes to every camera and joint state topic it finds."""

    def __init__(self, namespace: str, joints: Sequence[str] = ()) -> None:
        super().__init__("pi05_topic_probe")
        self._joints = tuple(joints)
        self._prefix = "/" + namespace.strip("/") + "/" if namespace.strip("/") else "/"
        self.seen: dict[str, Seen] = {}

    def look(self) -> None:
        """Subscribe to what is new on the graph."""
        for topic, types in self.get_topic_names_and_types():
            msgtype = next((t for t in types if t in KINDS), None)
            new = topic not in self.seen and topic.startswith(self._prefix)
            if msgtype is None or not new or self.count_publishers(topic) == 0:
                continue
            merger = JointStateMerger(self._joints) if self._joints else None
            self.seen[topic] = Seen(msgtype, merger=merger)
            qos = QoSProfile(depth=50, reliability=ReliabilityPolicy.BEST_EFFORT)
            self.create_subscription(KINDS[msgtype][0], topic, self._taker(topic), qos)

    def _taker(self, topic: str) -> Callable[[Any], None]:
        return self.seen[topic].take

    def report(self) -> dict[str, Any]:
        """Findings per topic."""
        return {
            topic: seen.facts(self.count_publishers(topic)) for topic, seen in self.seen.items()
        }


def main() -> int:
    """Listen and print."""
    parser = argparse.ArgumentParser(prog="topic_probe")
    parser.add_argument("--namespace", default="")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--joints", nargs="*", default=[])
    args = parser.parse_args()
    rclpy.init(args=[])
    probe = Probe(args.namespace, args.joints)
    executor = TolerantExecutor(probe)
    end = time.monotonic() + args.seconds
    next_look = 0.0
    while time.monotonic() < end:
        if time.monotonic() >= next_look:
            probe.look()
            next_look = time.monotonic() + 0.5
        executor.spin_once(0.1)
    print(json.dumps(probe.report()))
    executor.shutdown()
    probe.destroy_node()
    rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
