"""A shipped robot at stand-in controllers, and a node that keeps what is published."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
from stand_in_controllers import GripperServer, TrajectoryController

from pi05_ros.execution.limits import limits_from_yaml
from pi05_ros.execution.outputs import read_outputs
from pi05_ros.resources import robots_dir


def fake_control_msgs(monkeypatch):
    """control_msgs, which is not on PyPI, and an action client that keeps its goals.

    Returns:
        Action name -> positions of the goals, filled by the clients.

    """
    goals: dict[str, list[float]] = {}

    class Client:
        def __init__(self, node, kind, name):
            self.goals = goals.setdefault(name, [])

        def server_is_ready(self):
            return True

        def send_goal_async(self, goal):
            position = goal.command.position
            self.goals.append(float(position[0] if isinstance(position, list) else position))

    def action():
        goal = lambda: SimpleNamespace(command=SimpleNamespace())  # noqa: E731
        return SimpleNamespace(Goal=goal)

    package, module = ModuleType("control_msgs"), ModuleType("control_msgs.action")
    module.GripperCommand, module.ParallelGripperCommand = action(), action()
    package.action = module
    monkeypatch.setitem(sys.modules, "control_msgs", package)
    monkeypatch.setitem(sys.modules, "control_msgs.action", module)
    monkeypatch.setattr("rclpy.action.ActionClient", Client)
    return goals


class RecordingNode:
    """As much of rclpy's Node as the executor's outputs need; its clock is set by hand."""

    def __init__(self):
        self.now_ns = 0
        self.published = []  # (topic, message)

    def create_publisher(self, kind, topic, depth):
        return SimpleNamespace(
            publish=lambda message: self.published.append((topic, message)),
            wait_for_all_acked=lambda timeout: True,
        )

    def get_clock(self):
        return SimpleNamespace(now=lambda: SimpleNamespace(nanoseconds=self.now_ns))


class RobotStandIn:
    """Arms that follow their controllers with a lag of first order, and grippers.

    Args:
        robot: name in config/robots.
        period_s: of the controller manager.
        lag_s: of the arms.
        options: of the trajectory controllers.

    """

    def __init__(self, robot, period_s, lag_s=0.03, **options):
        folder = robots_dir() / robot
        self.limits = limits_from_yaml(folder / "limits.yaml").require_complete()
        self.outputs = read_outputs(folder / "outputs.yaml", self.limits.names)
        self.period_s, self.lag_s = period_s, lag_s
        endless = np.array(self.limits.continuous)
        self.low = np.where(endless, -3.0, self.limits.lower)
        self.high = np.where(endless, 3.0, self.limits.upper)
        self.measured = (self.low + self.high) / 2
        self.controllers, self.grippers, self._rows = {}, {}, {}
        for output in self.outputs:
            rows = [self.limits.names.index(name) for name in output.joints]
            self._rows[output.topic] = rows
            if output.kind.startswith("trajectory"):
                self.controllers[output.topic] = TrajectoryController(
                    output.message_names, period_s, self.measured[rows], **options
                )
            else:
                speed = float(self.limits.velocity[rows[0]])
                self.grippers[output.topic] = GripperServer(self.measured[rows[0]], speed)
        self.rows = sorted(row for topic in self.controllers for row in self._rows[topic])

    def update(self, now_s):
        """Advance one period; commands of the controllers, ``[n]``, measured for the grippers."""
        commands = self.measured.copy()
        share = min(1.0, self.period_s / self.lag_s)
        for topic, controller in self.controllers.items():
            rows = self._rows[topic]
            commands[rows] = controller.update(now_s, self.measured[rows])
        self.measured = self.measured + (commands - self.measured) * share
        for topic, gripper in self.grippers.items():
            self.measured[self._rows[topic]] = gripper.update(now_s)
        return commands
