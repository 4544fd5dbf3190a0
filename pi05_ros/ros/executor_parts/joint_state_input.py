"""Joint states of the executor node: merged per joint, doubted where publishers disagree."""

from __future__ import annotations

from collections.abc import Sequence

from rclpy.node import Node
from sensor_msgs.msg import JointState

from pi05_ros.execution.executor import Executor
from pi05_ros.ros import qos
from pi05_ros.ros.topic_fit import node_of
from pi05_ros.runtime.inputs.conversion import ConversionError, stamp_ns
from pi05_ros.runtime.inputs.joint_states import JointStateMerger, merge_message

TOPIC = "joint_states"
BELIEVED_AFTER_SHARE = 0.8
"""A jump counts when the values before it have been silent for this share of the maximum age."""
FASTER_THAN_LIMITS = 1.5
"""Measured joints may be this much faster than commands may make them."""


class JointStateInput:
    """Subscribes to joint states and gives them to the executor.

    Attributes:
        last_bad: why the last message, or a joint of it, could not be used.
        last_bad_ns: when that was; None before.

    """

    def __init__(self, node: Node, core: Executor, on_change: Sequence[str] = ()) -> None:
        self._node = node
        self._core = core
        self._merger = JointStateMerger(
            core.joints,
            on_change=on_change,
            continuous=core.limits.continuous,
            max_speeds=(FASTER_THAN_LIMITS * core.limits.velocity).tolist(),
            believe_after_ns=int(BELIEVED_AFTER_SHARE * 1e9 * core.settings.max_state_age_s),
        )
        self._unreadable = 0
        self.last_bad = ""
        self.last_bad_ns: int | None = None
        node.create_subscription(
            JointState,
            TOPIC,
            self._receive,
            qos.own(qos.JOINTS),
            qos_overriding_options=qos.overridable(),
        )

    @property
    def bad(self) -> int:
        """Messages that could not be used, wholly or for one joint."""
        return self._unreadable + sum(self._merger.faults.values())

    @property
    def jumps(self) -> dict[str, int]:
        """Values, by joint, that the joint cannot have reached by moving."""
        return dict(self._merger.jumps)

    def reset(self) -> None:
        """Forget all joint states; the clock jumped back."""
        self._merger.reset(keep_on_change=False)

    def judge(self, now_ns: int) -> None:
        """Tell the executor whether joint states can be believed; call it before every tick."""
        conflicts = self._merger.conflicts(now_ns)
        if conflicts:
            self._core.distrust(f"{conflicts[0]}{self._publishers()}")
        elif self._merger.missing and self._merger.counts:
            self._core.distrust(self._merger.describe_missing())
        else:
            self._core.distrust("")

    def _publishers(self) -> str:
        """Everybody who publishes joint states, with the ids that `ros2 topic info -v` shows."""
        found = self._node.get_publishers_info_by_topic(TOPIC)
        shown = [
            f"{node_of(info)} (gid {'.'.join(f'{byte:02x}' for byte in info.endpoint_gid[:16])})"
            for info in found
        ]
        return f": {', '.join(sorted(shown)[:8])}" if shown else ""

    def _receive(self, message: JointState) -> None:
        now_ns = self._node.get_clock().now().nanoseconds
        faults = sum(self._merger.faults.values())
        try:
            stamp = stamp_ns(message.header.stamp)
            # Without a stamp, or with one ahead of this clock, it is as old as its arrival.
            taken_ns = min(stamp, now_ns) if stamp > 0 else now_ns
            merged = merge_message(self._merger, message, stamp_ns=taken_ns, now_ns=now_ns)
        except ConversionError as error:
            self._unreadable += 1
            self.last_bad, self.last_bad_ns = str(error), now_ns
            return
        if sum(self._merger.faults.values()) != faults:
            self.last_bad, self.last_bad_ns = self._merger.last_fault, now_ns
        if merged is not None:
            self._core.measure(merged.positions, merged.stamp_ns)
