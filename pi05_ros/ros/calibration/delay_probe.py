"""Node that moves one joint through the executor and keeps what the sensors say of it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image, JointState

from pi05_ros.execution.calibration.delay_results import Samples
from pi05_ros.execution.calibration.image_motion import small_gray
from pi05_ros.execution.calibration.sine_motion import SineMotion
from pi05_ros.execution.limit_sources.joint_limits import JointLimits
from pi05_ros.msg import ActionChunk, ExecutorStatus
from pi05_ros.policy.interface import ActionUnit
from pi05_ros.ros import qos
from pi05_ros.ros.messages import duration_msg, time_msg
from pi05_ros.ros.topic_fit import node_of
from pi05_ros.runtime.inputs import conversion

CHUNK_TOPIC = "pi05_policy/action_chunk"
STEP_S, HORIZON = 0.02, 40
CHUNK_EVERY_S = 0.1
_IMAGES = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)


class DelayProbe(Node):
    """Node `pi05_delay_probe`; keyword arguments are those of rclpy's Node.

    Args:
        executor: name of the executor node.
        joint: joint that is watched and may be moved.
        cameras: topics of images.

    """

    def __init__(self, executor: str, joint: str, cameras: Sequence[str], **kwargs: Any) -> None:
        super().__init__("pi05_delay_probe", **kwargs)
        self.joint = joint
        self.joint_states = Samples()
        self.images = {topic: Samples() for topic in cameras}
        self.positions: dict[str, float] = {}
        self.status: ExecutorStatus | None = None
        self.modes: list[tuple[int, str]] = []
        self.problem = ""
        self.start_s: float | None = None
        self.allowed_lag_s = STEP_S
        self._motion: SineMotion | None = None
        self._number = 0
        self._policy_id = uuid.uuid4().hex
        self.create_subscription(JointState, "joint_states", self._on_joints, qos.own(qos.JOINTS))
        self.create_subscription(
            ExecutorStatus, f"{executor}/executor_status", self._on_status, qos.LATCHED
        )
        for topic in cameras:
            compressed = topic.endswith("/compressed")
            self.create_subscription(
                CompressedImage if compressed else Image,
                topic,
                self._image_taker(topic, compressed),
                _IMAGES,
            )
        self._chunks = self.create_publisher(ActionChunk, CHUNK_TOPIC, qos.CHUNK)

    @property
    def now_s(self) -> float:
        """Time on the node's clock."""
        return float(self.get_clock().now().nanoseconds) / 1e9

    def other_policies(self) -> list[str]:
        """Nodes that publish chunks as well."""
        own = self.get_fully_qualified_name()
        found = self.get_publishers_info_by_topic(self.resolve_topic_name(CHUNK_TOPIC))
        return sorted({node_of(info) for info in found} - {own})

    def begin(self, limits: JointLimits, base: np.ndarray, motion: SineMotion) -> None:
        """Publish chunks that hold all joints at ``base`` ``[n]``; `swing` starts the sine."""
        self._limits, self._base, self._motion = limits, base, motion
        self._row = limits.names.index(self.joint)
        self._timer = self.create_timer(CHUNK_EVERY_S, self.publish, clock=self.get_clock())
        self.publish()

    def swing(self) -> None:
        """Start the sine a little later than now."""
        self.start_s = self.now_s + 0.3

    def end(self) -> None:
        """Publish no more: the executor comes to the end of the last chunk and holds."""
        self._timer.cancel()

    @property
    def over(self) -> bool:
        """Whether the sine and the longest delay looked for are over."""
        assert self._motion is not None
        return self.start_s is not None and self.now_s > self.start_s + self._motion.duration_s + 1

    def publish(self) -> None:
        """One chunk from now on."""
        assert self._motion is not None
        # All chunks have their steps at the same times, so that each goes on exactly on the path
        # of the one before.
        step_ns = round(STEP_S * 1e9)
        now_ns = self.get_clock().now().nanoseconds // step_ns * step_ns
        rows = np.tile(self._base, (HORIZON, 1))
        if self.start_s is not None:
            times = now_ns / 1e9 + STEP_S * np.arange(HORIZON) - self.start_s
            rows[:, self._row] += self._motion.at(times)
        self._number += 1
        units = [
            int(ActionUnit[unit.upper()]) if unit else int(ActionUnit.RADIAN)
            for unit in self._limits.units
        ]
        message = ActionChunk(
            chunk_id=self._number,
            policy_id=self._policy_id,
            names=list(self._limits.names),
            horizon=HORIZON,
            step=duration_msg(STEP_S),
            meaning=[0] * len(units),
            unit=units,
            data=rows.astype(np.float32).ravel().tolist(),
        )
        message.header.stamp = message.observation_stamp = time_msg(now_ns)
        message.published_stamp = time_msg(now_ns)
        self._chunks.publish(message)

    def _on_joints(self, message: JointState) -> None:
        now_s = self.now_s
        stamp_s = conversion.stamp_ns(message.header.stamp) / 1e9 or now_s
        values = dict(zip(message.name, message.position, strict=False))
        self.positions.update(values)
        if self.joint in values:
            self.joint_states.add(stamp_s, now_s, float(values[self.joint]))

    def _on_status(self, message: ExecutorStatus) -> None:
        self.status = message
        self.modes.append((message.mode, message.reason))
        moving = self.start_s is not None and not self.over
        if not moving or self.problem:
            return
        if message.mode != ExecutorStatus.MODE_FOLLOWING:
            self.problem = f"the executor stopped following: {message.reason or message.mode}"
        elif message.lag_s > self.allowed_lag_s:
            behind = f"the executor is {message.lag_s:.2f} s behind"
            self.problem = f"{behind}: limits bind; use a smaller amplitude"

    def _image_taker(self, topic: str, compressed: bool) -> Callable[[Any], None]:
        samples = self.images[topic]
        to_rgb = conversion.compressed_to_rgb if compressed else conversion.image_to_rgb

        def take(message: Any) -> None:
            now_s = self.now_s
            stamp_s = conversion.stamp_ns(message.header.stamp) / 1e9 or now_s
            try:
                samples.add(stamp_s, now_s, small_gray(to_rgb(message)))
            except conversion.ConversionError as error:
                self.problem = self.problem or f"{topic}: {error}"

        return take
