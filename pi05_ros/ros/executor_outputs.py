"""Publishes commands on the executor node's outputs; actions of control_msgs if they are there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from builtin_interfaces.msg import Duration
from rclpy.duration import Duration as RosDuration
from rclpy.node import Node
from rclpy.publisher import Publisher
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from pi05_ros.execution.command import STOPPED, Command
from pi05_ros.execution.executor import Executor
from pi05_ros.execution.outputs import (
    CARTESIAN,
    CHUNK,
    JOINT_JOG,
    PARALLEL_GRIPPER,
    POSITION,
    TRAJECTORY,
    TWIST,
    VELOCITY,
    Output,
)
from pi05_ros.ros.executor_parts.cartesian_senders import (
    JogSender,
    PoseSender,
    TwistSender,
    tool_motion,
    velocities,
    without_control_msgs,
)
from pi05_ros.runtime.inputs.conversion import split_ns

CHUNK_AHEAD_S = 1.0
"""How far a whole trajectory reaches before it brakes."""
CHUNK_EVERY_S = 0.1
"""How often one is sent while nothing changes."""
POINT_EVERY_S = 0.02
"""Its points are at least this far apart."""
GOAL_EVERY_S = 0.1
"""Grippers get a new goal at most this often, and only if it differs."""
GOAL_CHANGE = 1e-3


class _Sender(Protocol):
    publisher: Publisher | None

    def send(self, command: Command, core: Executor) -> None:
        """Send a command; None positions: nothing is commanded any more."""


class Outputs:
    """All outputs of a node.

    Args:
        node: its owner.
        outputs: what to send.
        core: whose commands.
        urdf: robot description, for Cartesian outputs.

    Raises:
        OutputsError: control_msgs or Pinocchio is needed and not installed, or the robot
            description is missing or does not fit.

    """

    def __init__(
        self, node: Node, outputs: Sequence[Output], core: Executor, urdf: str = ""
    ) -> None:
        self._core = core
        self._senders: list[_Sender] = []
        for output in outputs:
            rows = [core.joints.index(name) for name in output.joints]
            if output.kind in (TRAJECTORY, CHUNK):
                kind = _Chunks if output.kind == CHUNK else _Point
                self._senders.append(kind(node, output, rows))
            elif output.kind in (POSITION, VELOCITY):
                self._senders.append(_Array(node, output, rows))
            elif output.kind in CARTESIAN:
                sender = TwistSender if output.kind == TWIST else PoseSender
                self._senders.append(sender(node, output, tool_motion(output, core, urdf)))
            elif output.kind == JOINT_JOG:
                self._senders.append(JogSender(node, output, rows))
            else:
                self._senders.append(_GripperAction(node, output, rows[0]))

    @property
    def topics(self) -> tuple[str, ...]:
        """Topics that commands are published on; those of actions are not among them."""
        publishers = [sender.publisher for sender in self._senders]
        return tuple(each.topic_name for each in publishers if each is not None)

    def end(self, ack_s: float) -> None:
        """Nothing will be commanded any more: end velocities, and see that all is received."""
        self.send(Command(None, STOPPED, "node is ending"))
        for sender in self._senders:
            if sender.publisher is not None:
                sender.publisher.wait_for_all_acked(RosDuration(seconds=ack_s))

    def send(self, command: Command) -> None:
        """Send a command to all outputs; call it in every control period."""
        for sender in self._senders:
            sender.send(command, self._core)


def _duration(seconds: float) -> Duration:
    sec, nanosec = split_ns(round(seconds * 1e9))
    return Duration(sec=sec, nanosec=nanosec)


class _Point:
    """A trajectory of one point, a period ahead, which is never in the past on arrival."""

    def __init__(self, node: Node, output: Output, rows: list[int]) -> None:
        self._output, self._rows = output, rows
        self.publisher = node.create_publisher(JointTrajectory, output.topic, 1)

    def send(self, command: Command, core: Executor) -> None:
        if command.positions is None:
            return
        values = self._output.scale * command.positions[self._rows] + self._output.offset
        point = JointTrajectoryPoint(
            positions=values.tolist(), time_from_start=_duration(core.settings.period_s)
        )
        # Stamp 0: start now.
        names = list(self._output.message_names)
        self.publisher.publish(JointTrajectory(joint_names=names, points=[point]))


class _Chunks:
    """All that is planned, with velocities; its end is at rest, so that silence is safe.

    Commands are a period apart, and the controller goes on cubic splines. The points sent are the
    middles between neighboring commands with the velocity from one to the other: between two
    middles the spline has the constant acceleration that the limits were kept with, where through
    the commands themselves it would have up to three times that.

    With a stamp the present command changes the spline from half a period later on: a message that
    is late by less finds the controller where the message says. Without, the controller goes from
    where it is, when the message comes, to the next middle.
    """

    def __init__(self, node: Node, output: Output, rows: list[int]) -> None:
        self._output, self._rows = output, rows
        self.publisher = node.create_publisher(JointTrajectory, output.topic, 1)
        self._clock = node.get_clock()
        self._key: tuple[Any, ...] = ()
        self._wait = 0
        self._past: list[np.ndarray] = []  # the last commands, the present one included

    def send(self, command: Command, core: Executor) -> None:
        if command.positions is None:
            self._key, self._past = (), []
            return
        period_s = core.settings.period_s
        rest = command.positions - core.filter.velocity * period_s  # where commanding began
        self._past = [*(self._past or 3 * [rest]), command.positions][-4:]
        key = (command.mode, core.gate.policy_id, core.gate.chunk_id, core.speed_scale)
        self._wait -= 1
        if key == self._key and self._wait > 0:
            return
        planned = core.preview(CHUNK_AHEAD_S)
        if planned is None:
            return
        self._key, self._wait = key, max(1, round(CHUNK_EVERY_S / period_s))
        message = JointTrajectory(joint_names=list(self._output.message_names))
        commands = np.concatenate([self._past[:-1], planned[0], planned[0][-1:]])
        middles = (commands[1:] + commands[:-1]) / 2
        velocities = np.diff(commands, axis=0) / period_s
        first, at = 2, 0.5 - 2  # the middle between the command before and the present one
        start_ns = self._clock.now().nanoseconds - round(period_s * 5e8)
        if self._output.stamped and start_ns > 0:
            first, at = 0, 0.0
            message.header.stamp.sec, message.header.stamp.nanosec = split_ns(start_ns)
        stride = max(1, int(np.ceil(POINT_EVERY_S / period_s - 1e-9)))
        places = sorted({*range(first, len(middles), stride), len(middles) - 1})
        scale, rows = self._output.scale, self._rows
        for k in places:
            point = JointTrajectoryPoint(
                positions=(scale * middles[k, rows] + self._output.offset).tolist(),
                velocities=(scale * velocities[k, rows]).tolist(),
                time_from_start=_duration((k + at) * period_s),
            )
            message.points.append(point)
        self.publisher.publish(message)


class _Array:
    """Positions or velocities for a forward controller."""

    def __init__(self, node: Node, output: Output, rows: list[int]) -> None:
        self._output, self._rows = output, rows
        self.publisher = node.create_publisher(Float64MultiArray, output.topic, 1)
        self._moving = False

    def send(self, command: Command, core: Executor) -> None:
        output = self._output
        if output.kind == POSITION:
            if command.positions is None:
                return
            values = output.scale * command.positions[self._rows] + output.offset
        elif command.positions is None:
            if not self._moving:
                return
            values = np.zeros(len(self._rows))  # a velocity goes on until it is told otherwise
        else:
            speeds = velocities(command.positions, core, output.gain)
            values = output.scale * speeds[self._rows]
        self._moving = command.positions is not None
        self.publisher.publish(Float64MultiArray(data=values.tolist()))


class GoalFilter:
    """Decides when a gripper gets a new goal."""

    def __init__(self, period_s: float) -> None:
        self._every = max(1, round(GOAL_EVERY_S / period_s))
        self._wait = 0
        self._last: float | None = None

    def take(self, value: float) -> bool:
        """Whether to send this value now; call it in every control period."""
        self._wait = max(0, self._wait - 1)
        changed = self._last is None or abs(value - self._last) > GOAL_CHANGE
        if not changed or self._wait:
            return False
        self._last, self._wait = value, self._every
        return True


class _GripperAction:
    """Goals of a gripper action; what becomes of a goal shows in the joint states."""

    def __init__(self, node: Node, output: Output, row: int) -> None:
        try:
            from control_msgs.action import GripperCommand, ParallelGripperCommand
            from rclpy.action import ActionClient
        except ImportError as error:
            raise without_control_msgs(output, error) from error
        self._output, self._row = output, row
        self._parallel = output.kind == PARALLEL_GRIPPER
        self.publisher = None
        self._action = ParallelGripperCommand if self._parallel else GripperCommand
        self._client = ActionClient(node, self._action, output.topic)
        self._goals: GoalFilter | None = None

    def send(self, command: Command, core: Executor) -> None:
        if self._goals is None:
            self._goals = GoalFilter(core.settings.period_s)
        if command.positions is None or not self._client.server_is_ready():
            return
        value = float(self._output.scale * command.positions[self._row] + self._output.offset)
        if not self._goals.take(value):
            return
        goal = self._action.Goal()
        if self._parallel:
            goal.command.name = list(self._output.message_names)
            goal.command.position = [value]
            if self._output.max_effort:
                goal.command.effort = [self._output.max_effort]
        else:
            goal.command.position = value
            goal.command.max_effort = self._output.max_effort
        self._client.send_goal_async(goal)
