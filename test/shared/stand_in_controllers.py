"""Controllers that behave as ros2_controllers 4.x, for tests without ros2_control.

Written from the documentation of joint_trajectory_controller (user documentation, trajectory
representation, trajectory replacement, parameters), forward_command_controller and the gripper
action controllers. Each has `receive(message, now_s)` and `update(now_s, ...)`, which is to be
called once per period of the controller manager; times are on one clock, in seconds.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

EPSILON = float(np.finfo(np.float32).eps)


def seconds(stamp) -> float:
    return stamp.sec + stamp.nanosec * 1e-9


def spline(a, b, duration_s, t_s):
    """State between two states (positions, velocities, accelerations or None) at a time.

    Linear from positions alone, cubic with velocities, quintic with accelerations.
    """
    p0, v0, a0 = a
    p1, v1, a1 = b
    if duration_s <= 0:
        return p1, np.zeros_like(p1) if v1 is None else v1
    t, d = min(max(t_s, 0.0), duration_s), duration_s
    if v0 is None or v1 is None:
        return p0 + (p1 - p0) * (t / d), (p1 - p0) / d
    if a0 is None or a1 is None:
        rows = [[1, 0, 0, 0], [0, 1, 0, 0], [1, d, d**2, d**3], [0, 1, 2 * d, 3 * d**2]]
        known = [p0, v0, p1, v1]
    else:
        rows = [
            [1, 0, 0, 0, 0, 0],
            [0, 1, 0, 0, 0, 0],
            [0, 0, 2, 0, 0, 0],
            [1, d, d**2, d**3, d**4, d**5],
            [0, 1, 2 * d, 3 * d**2, 4 * d**3, 5 * d**4],
            [0, 0, 2, 6 * d, 12 * d**2, 20 * d**3],
        ]
        known = [p0, v0, a0, p1, v1, a1]
    powers = np.linalg.solve(np.array(rows, float), np.array(known))  # [k, n]
    order = np.arange(len(powers))
    position = (powers * t ** order[:, None]).sum(axis=0)
    slope = order[1:, None] * powers[1:] * t ** order[:-1, None]
    return position, slope.sum(axis=0)


class TrajectoryController:
    """joint_trajectory_controller with a position interface, commanded on its topic.

    Args:
        joints: in the controller's order.
        period_s: of the controller manager.
        measured: measured positions at the start, ``[n]``.
        from_desired: parameter interpolate_from_desired_state.
        path_tolerance: constraints.<joint>.trajectory of all joints; 0 checks nothing.
        goal_tolerance, goal_time_s: constraints.<joint>.goal, goal_time; 0 waits for ever.
        continuous: joints whose angles wrap around.

    Attributes:
        rejected: why messages were not taken, in their order.
        held: why the controller gave a trajectory up and holds, in their order.

    """

    def __init__(
        self,
        joints: Sequence[str],
        period_s: float,
        measured: np.ndarray,
        *,
        from_desired: bool = False,
        path_tolerance: float = 0.0,
        goal_tolerance: float = 0.0,
        goal_time_s: float = 0.0,
        continuous: Sequence[str] = (),
    ) -> None:
        self.joints = tuple(joints)
        self.period_s = period_s
        self.from_desired = from_desired
        self.path_tolerance = path_tolerance
        self.goal_tolerance, self.goal_time_s = goal_tolerance, goal_time_s
        self._wraps = np.array([name in continuous for name in joints])
        self.rejected: list[str] = []
        self.held: list[str] = []
        self.command = np.array(measured, float)
        self._command_velocity = np.zeros_like(self.command)
        self._command_s: float | None = None
        self._hold(self.command)

    def _hold(self, position) -> None:
        """A trajectory of one point that is there already."""
        self._points = [(0.0, (np.array(position, float), np.zeros(len(self.joints)), None))]
        self._start_s: float | None = 0.0
        self._before = None
        self._holding = True
        self._new = None

    def receive(self, message, now_s: float) -> None:
        """Take a JointTrajectory, or note why not."""
        problem = self._problem(message, now_s)
        if problem:
            self.rejected.append(problem)
            return
        order = [list(message.joint_names).index(name) for name in self.joints]
        pick = lambda row: np.array(row, float)[order] if len(row) else None  # noqa: E731
        points = [
            (
                seconds(point.time_from_start),
                (pick(point.positions), pick(point.velocities), pick(point.accelerations)),
            )
            for point in message.points
        ]
        self._new = points, seconds(message.header.stamp)

    def _problem(self, message, now_s: float) -> str:
        names, points = list(message.joint_names), message.points
        if len(names) != len(self.joints):
            return "joints do not match"
        if set(names) != set(self.joints):
            return f"unknown joints {sorted(set(names) - set(self.joints))}"
        if not points:
            return "no points"
        if any(abs(v) > EPSILON for v in points[-1].velocities):
            return "velocity of the last point is not zero"
        stamp_s = seconds(message.header.stamp)
        if stamp_s and stamp_s + seconds(points[-1].time_from_start) < now_s:
            return "ends in the past"
        times = [seconds(point.time_from_start) for point in points]
        if any(b <= a for a, b in itertools.pairwise(times)):
            return "times do not increase"
        for point in points:
            sizes = (len(point.velocities), len(point.accelerations))
            if len(point.positions) != len(names) or any(k not in (0, len(names)) for k in sizes):
                return "sizes of a point do not match"
        return ""

    def update(self, now_s: float, measured: np.ndarray) -> np.ndarray:
        """Command ``[n]`` of this period."""
        if self._new is not None:
            self._points, stamp_s = self._new
            self._new, self._holding = None, False
            if self.from_desired:
                since = now_s if self._command_s is None else self._command_s
                state = (self.command, self._command_velocity, None)
            else:
                since, state = now_s, (np.array(measured, float), np.zeros(len(measured)), None)
            self._before = since, self._near(state)
            self._start_s = stamp_s or now_s
        desired = self._sample(now_s)[0]
        error = np.abs(self._difference(np.asarray(measured, float), desired))
        end_s = self._start_s + self._points[-1][0]
        if not self._holding and now_s < end_s:
            if self.path_tolerance and (error > self.path_tolerance).any():
                return self._give_up("path tolerance", measured, now_s)
        elif not self._holding and self.goal_tolerance and self.goal_time_s:
            late = now_s - end_s > self.goal_time_s
            if late and (error > self.goal_tolerance).any():
                return self._give_up("goal tolerance", measured, now_s)
        self.command, self._command_velocity = self._sample(now_s + self.period_s)
        self._command_s = now_s
        return self.command.copy()

    def _give_up(self, reason: str, measured, now_s: float) -> np.ndarray:
        self.held.append(reason)
        self._hold(measured)
        self.command, self._command_velocity = np.array(measured, float), np.zeros(len(measured))
        self._command_s = now_s
        return self.command.copy()

    def _difference(self, a, b):
        turns = np.where(self._wraps, np.round((a - b) / (2 * np.pi)) * 2 * np.pi, 0.0)
        return a - b - turns

    def _near(self, state):
        """The state on the turn of the trajectory's first point."""
        first = self._points[0][1][0]
        return (first + self._difference(state[0], first), *state[1:])

    def _sample(self, now_s: float):
        points, start_s = self._points, self._start_s
        first_s = start_s + points[0][0]
        if now_s < first_s and self._before is not None:
            since, state = self._before
            if points[0][1][1] is None:
                state = (state[0], None, None)
            return spline(state, points[0][1], first_s - since, now_s - since)
        for (t0, a), (t1, b) in itertools.pairwise(points):
            if start_s + t0 <= now_s < start_s + t1:
                return spline(a, b, t1 - t0, now_s - start_s - t0)
        last = points[-1][1]
        return last[0], np.zeros_like(last[0]) if last[1] is None else last[1]


class ForwardController:
    """forward_command_controller: passes the newest Float64MultiArray of its size on."""

    def __init__(self, joints: Sequence[str]) -> None:
        self.joints = tuple(joints)
        self.command: np.ndarray | None = None
        self.rejected: list[str] = []

    def receive(self, message, now_s: float) -> None:
        """Take a command; sizes that do not fit and values that are not finite change nothing."""
        if len(message.data) != len(self.joints):
            self.rejected.append("size does not match")
        elif not np.isfinite(message.data).all():
            self.rejected.append("not finite")
        else:
            self.command = np.array(message.data, float)

    def update(self, now_s: float) -> np.ndarray | None:
        """The newest command; None before the first: nothing is written."""
        return self.command


class GripperServer:
    """gripper_action_controller: one goal at a time, a new one preempts it; stalling may succeed.

    Args:
        position: measured position at the start.
        speed: of the fingers, per second.
        stop: position beyond which something is held; None: nothing.

    """

    TOLERANCE, STALL_S = 0.01, 1.0

    def __init__(self, position: float, speed: float, stop: Callable[[float], float] = float):
        self.position, self._speed, self._stop = position, speed, stop
        self.goals: list[float] = []
        self.results: deque[str] = deque()
        self._goal: float | None = None
        self._last_s: float | None = None
        self._moved_s = 0.0

    def goal(self, position: float, now_s: float) -> None:
        """Accept a goal; the one before is canceled."""
        if self._goal is not None:
            self.results.append("canceled")
        self.goals.append(position)
        self._goal, self._moved_s = position, now_s

    def update(self, now_s: float) -> float:
        """Measured position of this period."""
        dt = 0.0 if self._last_s is None else now_s - self._last_s
        self._last_s = now_s
        target = self.goals[-1] if self.goals else self.position
        step = float(np.clip(target - self.position, -self._speed * dt, self._speed * dt))
        before, self.position = self.position, self._stop(self.position + step)
        if abs(self.position - before) > 1e-9:
            self._moved_s = now_s
        if self._goal is not None and abs(self._goal - self.position) < self.TOLERANCE:
            self.results.append("reached")
            self._goal = None
        elif self._goal is not None and now_s - self._moved_s > self.STALL_S:
            self.results.append("stalled")
            self._goal = None
        return self.position
