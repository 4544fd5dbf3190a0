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
    CHUNK,
    PARALLEL_GRIPPER,
    POSITION,
    TRAJECTORY,
    VELOCITY,
    Output,
    OutputsError,
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

    Raises:
        OutputsError: an action is asked for and control_msgs is not installed.

    """

    def __init__(self, node: Node, outputs: Sequence[Output], core: Executor) -> None:
        self._core = core
        self._senders: list[_Sender] = []
        for output in outputs:
            rows = [core.joints.index(name) for name in output.joints]
            if output.kind in (TRAJECTORY, CHUNK):
                kind = _Chunks if output.kind == CHUNK else _Point
                self._senders.append(kind(node, output, rows))
            elif output.kind in (POSITION, VELOCITY):
                self._senders.append(_Array(node, output, rows))
            else:
                self._senders.append(_GripperAction(node, output, rows[0]))

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
    """All that is planned, with velocities; its end is at rest, so that silence is safe."""

    def __init__(self, node: Node, output: Output, rows: list[int]) -> None:
        self._output, self._rows = output, rows
        self.publisher = node.create_publisher(JointTrajectory, output.topic, 1)
        self._key: tuple[Any, ...] = ()
        self._wait = 0

    def send(self, command: Command, core: Executor) -> None:
        if command.positions is None:
            self._key = ()
            return
        key = (command.mode, core.gate.policy_id, core.gate.chunk_id, core.speed_scale)
        self._wait -= 1
        if key == self._key and self._wait > 0:
            return
        planned = core.preview(CHUNK_AHEAD_S)
        if planned is None:
            return
        period_s = core.settings.period_s
        self._key, self._wait = key, max(1, round(CHUNK_EVERY_S / period_s))
        positions, velocities = planned
        stride = max(1, int(np.ceil(POINT_EVERY_S / period_s - 1e-9)))
        places = sorted({*range(0, len(positions), stride), len(positions) - 1})
        scale, offset = self._output.scale, self._output.offset
        points = [
            JointTrajectoryPoint(
                positions=(scale * positions[k, self._rows] + offset).tolist(),
                velocities=(scale * velocities[k, self._rows]).tolist(),
                time_from_start=_duration((k + 1) * period_s),
            )
            for k in places
        ]
        names = list(self._output.message_names)
        self.publisher.publish(JointTrajectory(joint_names=names, points=points))


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
            values = output.scale * self._velocities(command.positions, core)[self._rows]
        self._moving = command.positions is not None
        self.publisher.publish(Float64MultiArray(data=values.tolist()))

    def _velocities(self, positions: np.ndarray, core: Executor) -> np.ndarray:
        """Planned velocities, and back to the planned positions, within the limits."""
        back: np.ndarray | float = 0.0
        if core.measured is not None and core.sees_the_arm:
            back = self._output.gain * core.limits.difference(positions, core.measured)
        top = core.limits.velocity
        return np.clip(core.filter.velocity + back, -top, top)


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
            raise OutputsError(
                f"output {output.topic}: {output.kind} needs the package control_msgs "
                f"(apt install ros-$ROS_DISTRO-control-msgs): {error}"
            ) from error
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
