"""Outputs for MoveIt Servo and Cartesian controllers: twists, poses, and jogging of joints."""

from __future__ import annotations

from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.node import Node
from rclpy.publisher import Publisher

from pi05_ros.execution.command import Command
from pi05_ros.execution.executor import Executor
from pi05_ros.execution.kinematics.robot_model import KinematicsError
from pi05_ros.execution.kinematics.rotations import from_matrices
from pi05_ros.execution.kinematics.tool_motion import ToolMotion
from pi05_ros.execution.outputs import Output, OutputsError
from pi05_ros.policy.pose_groups import QUATERNION_XYZW


def tool_motion(output: Output, core: Executor, urdf: str) -> ToolMotion:
    """Kinematics of an output; OutputsError names it and what is wrong."""
    if not urdf:
        raise OutputsError(
            f"output {output.topic}: {output.kind} needs the robot description, by the parameter "
            "robot_description or the topic of that name"
        )
    try:
        return ToolMotion(
            core.limits,
            output.joints,
            urdf,
            output.frame,
            output.tool,
            output.max_linear,
            output.max_angular,
        )
    except KinematicsError as error:
        raise OutputsError(f"output {output.topic}: {error}") from error


def without_control_msgs(output: Output, error: ImportError) -> OutputsError:
    """Error of an output whose messages are not installed."""
    return OutputsError(
        f"output {output.topic}: {output.kind} needs the package control_msgs "
        f"(apt install ros-$ROS_DISTRO-control-msgs): {error}"
    )


def believed(core: Executor) -> np.ndarray | None:
    """Measured joints ``[n]`` if they are fresh and believed."""
    return core.measured if core.sees_the_arm else None


class TwistSender:
    """The tool's velocity in every period; zeros once when commanding ends."""

    def __init__(self, node: Node, output: Output, motion: ToolMotion) -> None:
        self._node, self._output, self._motion = node, output, motion
        self.publisher: Publisher = node.create_publisher(TwistStamped, output.topic, 1)
        self._moving = False

    def send(self, command: Command, core: Executor) -> None:
        """Send a command; None positions end the motion."""
        if command.positions is None:
            if not self._moving:
                return
            twist = np.zeros(6)
        else:
            twist = self._motion.twist(
                command.positions, core.filter.velocity, believed(core), self._output.gain
            )
        self._moving = command.positions is not None
        message = TwistStamped()
        message.header.stamp = self._node.get_clock().now().to_msg()
        message.header.frame_id = self._output.frame
        linear, angular = message.twist.linear, message.twist.angular
        linear.x, linear.y, linear.z, angular.x, angular.y, angular.z = twist.tolist()
        self.publisher.publish(message)


class PoseSender:
    """The tool's pose in every period."""

    def __init__(self, node: Node, output: Output, motion: ToolMotion) -> None:
        self._node, self._output, self._motion = node, output, motion
        self.publisher: Publisher = node.create_publisher(PoseStamped, output.topic, 1)

    def send(self, command: Command, core: Executor) -> None:
        """Send a command; None positions send nothing."""
        if command.positions is None:
            self._motion.forget()
            return
        pose = self._motion.pose(command.positions, core.settings.period_s)
        message = PoseStamped()
        message.header.stamp = self._node.get_clock().now().to_msg()
        message.header.frame_id = self._output.frame
        point, turn = message.pose.position, message.pose.orientation
        point.x, point.y, point.z = pose.position.tolist()
        turn.x, turn.y, turn.z, turn.w = from_matrices(pose.rotation[None], QUATERNION_XYZW)[
            0
        ].tolist()
        self.publisher.publish(message)


class JogSender:
    """Velocities of joints as control_msgs/JointJog; zeros once when commanding ends."""

    def __init__(self, node: Node, output: Output, rows: list[int]) -> None:
        try:
            from control_msgs.msg import JointJog
        except ImportError as error:
            raise without_control_msgs(output, error) from error
        self._node, self._output, self._rows = node, output, rows
        self._type: Any = JointJog
        self.publisher: Publisher = node.create_publisher(JointJog, output.topic, 1)
        self._moving = False

    def send(self, command: Command, core: Executor) -> None:
        """Send a command; None positions end the motion."""
        if command.positions is None:
            if not self._moving:
                return
            values = np.zeros(len(self._rows))
        else:
            speeds = velocities(command.positions, core, self._output.gain)
            values = self._output.scale * speeds[self._rows]
        self._moving = command.positions is not None
        message = self._type()
        message.header.stamp = self._node.get_clock().now().to_msg()
        message.joint_names = list(self._output.message_names)
        message.velocities = values.tolist()
        message.duration = core.settings.period_s
        self.publisher.publish(message)


def velocities(positions: np.ndarray, core: Executor, gain: float) -> np.ndarray:
    """Planned velocities ``[n]``, and back to the planned positions, within the limits."""
    back: np.ndarray | float = 0.0
    measured = believed(core)
    if measured is not None:
        back = gain * core.limits.difference(positions, measured)
    top = core.limits.velocity
    return np.clip(core.filter.velocity + back, -top, top)
