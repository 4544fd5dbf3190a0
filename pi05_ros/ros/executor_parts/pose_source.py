"""What solves chunks of poses in the executor node: made from the robot description when asked."""

from __future__ import annotations

from rclpy.node import Node
from std_msgs.msg import String

from pi05_ros.execution.arrival.pose_solver import PoseSolver
from pi05_ros.execution.kinematics.pose_ik import PoseSettings
from pi05_ros.execution.kinematics.robot_model import KinematicsError
from pi05_ros.execution.limit_sources.joint_limits import JointLimits
from pi05_ros.execution.timed_chunk import ChunkRefusedError
from pi05_ros.ros import qos
from pi05_ros.ros.executor_limits import TOPIC, wait_for_description


class PoseSource:
    """The robot description, from the parameter or else the latched topic, and its solver.

    Args:
        node: its owner.
        limits: of the executor's joints.
        text: of the parameter robot_description; empty: the topic is listened to.
        settings: tolerances and slow-down.

    """

    def __init__(self, node: Node, limits: JointLimits, text: str, settings: PoseSettings) -> None:
        self._node = node
        self._limits, self._settings = limits, settings
        self.text = text
        self._solver: PoseSolver | None = None
        self._problem = ""
        self._subscription = None
        if not text:
            self._subscription = node.create_subscription(String, TOPIC, self._take, qos.LATCHED)

    def _take(self, message: String) -> None:
        """Keep the first description: an arm does not change while it moves."""
        if not self.text:
            self.text = message.data

    def wait(self, timeout_s: float) -> str:
        """Text of the robot description, waited for if it has not come; empty if it does not."""
        if not self.text:
            self.text = wait_for_description(self._node, timeout_s)
        return self.text

    def solver(self) -> PoseSolver:
        """What solves poses.

        Raises:
            ChunkRefusedError: "pose": why nothing does.

        """
        if self._solver is None:
            if not self.text:
                topic = self._node.resolve_topic_name(TOPIC)
                raise ChunkRefusedError(
                    "pose",
                    "poses need the robot description: set the parameter robot_description or "
                    f"publish {topic}",
                )
            if not self._problem:
                try:
                    self._solver = PoseSolver(self._limits, self.text, self._settings)
                except KinematicsError as error:
                    self._problem = str(error)
            if self._solver is None:
                raise ChunkRefusedError("pose", self._problem)
        return self._solver
