"""Joint-wise motion: every joint follows its own target and never leaves its limits."""

from __future__ import annotations

import copy

import numpy as np

from pi05_ros.execution.limit_sources.joint_limits import JointLimits
from pi05_ros.execution.strategies import Strategy


class MotionFilter:
    """Follows a target without ever leaving the limits.

    Per joint and step, with v the last velocity: the new one stays within v +- a dt and +-v_max,
    and is small enough to stop before the position limit by braking with a, i.e.
    ``v^2 / 2a + v dt <= distance``, hence ``v <= -a dt + sqrt((a dt)^2 + 2 a distance)``. That
    bound can always be kept: braking with a from a state that keeps it leads to one that does.
    The same law brings the joint to a resting target without overshoot; a moving target's own
    velocity is added, so that it is followed without lag. A joint that starts outside its limits
    comes back inside by the same law and never goes farther out.

    Args:
        limits: of all joints, complete.
        period_s: control period; every call of `step` stands for one.

    """

    held = ""
    """Nothing but limits holds it, see `GuardedFilter`."""

    def __init__(self, limits: JointLimits, period_s: float) -> None:
        self.limits = limits.require_complete()
        self.period_s = period_s
        self.position: np.ndarray | None = None
        self.velocity = np.zeros(len(limits.names))
        self.speed_scale = 1.0
        self._target: np.ndarray | None = None
        self._pace = 1.0  # of the chunk at its present step

    def take_over(self, position: np.ndarray, velocity: np.ndarray) -> None:
        """Go on from a command ``[n]`` and its velocity ``[n]`` from which the arm can stop."""
        self.position, self.velocity = position.copy(), velocity.copy()
        self._target = None

    def reset(self, position: np.ndarray) -> None:
        """Start at rest at a measured position ``[n]``, wherever it is."""
        self.position = np.array(position, dtype=np.float64)
        self.velocity = np.zeros_like(self.position)
        self._target = None

    def step(self, target: np.ndarray | None) -> np.ndarray:
        """Next command ``[n]`` on the way to ``target`` ``[n]``; None brakes to a stop.

        Raises:
            RuntimeError: `reset` has not been called.

        """
        if self.position is None:
            raise RuntimeError("the filter has no start position yet")
        dt, a = self.period_s, self.limits.acceleration
        position = self.position
        if target is None:
            wanted = np.zeros_like(position)
            self._target = None
        else:
            goal = np.clip(target, self.limits.lower, self.limits.upper)
            known = goal if self._target is None else self._target
            drift = np.clip((goal - known) / dt, -self.limits.velocity, self.limits.velocity)
            error = goal - drift * dt - position
            pace = np.minimum(np.abs(error) / dt, self._braking(np.abs(error)))
            wanted = drift + np.sign(error) * pace
            self._target = goal
        slowest, fastest = self.velocity - a * dt, self.velocity + a * dt
        top = self.limits.velocity * min(max(self.speed_scale, 0.0), self._pace, 1.0)
        wanted = np.clip(np.clip(wanted, -top, top), slowest, fastest)
        up = self._braking(np.maximum(0.0, self.limits.upper - position))
        down = self._braking(np.maximum(0.0, position - self.limits.lower))
        # Nothing but the acceleration limit decides for a state of another filter.
        self.velocity = np.clip(np.clip(wanted, -down, up), slowest, fastest)
        moved = position + self.velocity * dt
        # Rounding alone could carry a joint over a limit; one that is outside stays where it is.
        lower = np.minimum(self.limits.lower, position)
        upper = np.maximum(self.limits.upper, position)
        self.position = np.clip(moved, lower, upper)
        return self.position.copy()

    def follow(self, strategy: Strategy, now_ns: int) -> np.ndarray | None:
        """Next command ``[n]`` towards the strategy's target at a time; None if it has none."""
        target = strategy.target(now_ns)
        if target is None:
            return None
        chunk = strategy.path(now_ns)
        self._pace = 1.0 if chunk is None else chunk.pace_at((now_ns - chunk.start_ns) / 1e9)
        command = self.step(target)
        self._pace = 1.0
        return command

    def planning_copy(self) -> MotionFilter:
        """An independent copy to try out what comes next."""
        return copy.copy(self)

    def ahead(self, strategy: Strategy | None, now_ns: int, ahead_s: float) -> np.ndarray:
        """Targets ``[k, n]`` of the time to come, the present command first, see `rows_ahead`."""
        assert self.position is not None
        return rows_ahead(self.position, strategy, self.limits, now_ns, ahead_s)

    def lag_s(self, now_ns: int) -> float:
        """How far commands are behind the clock; joints that are limited have no such time."""
        return 0.0

    def steer(self, target: np.ndarray) -> np.ndarray:
        """Next command ``[n]`` towards a target ``[n]`` that is on no path."""
        return self.step(target)

    def brake(self) -> np.ndarray:
        """Next command ``[n]`` of braking to a stop."""
        return self.step(None)

    @property
    def resting(self) -> bool:
        """Whether the last command did not move any joint."""
        return not self.velocity.any()

    def _braking(self, distance: np.ndarray) -> np.ndarray:
        """Highest velocity for the next period from which a stop within ``distance`` is sure."""
        a, dt = self.limits.acceleration, self.period_s
        found: np.ndarray = -a * dt + np.sqrt((a * dt) ** 2 + 2 * a * distance)
        return found


AHEAD_ROWS = 8
"""Places that `rows_ahead` looks at beside the present one."""


def rows_ahead(
    position: np.ndarray,
    strategy: Strategy | None,
    limits: JointLimits,
    now_ns: int,
    ahead_s: float,
) -> np.ndarray:
    """Targets ``[k, n]`` of the next seconds within the limits, the present place first."""
    rows = [position]
    if strategy is not None:
        chunk = strategy.path(now_ns)
        if chunk is not None:
            times = now_ns + np.linspace(0, ahead_s, AHEAD_ROWS + 1)[1:] * 1e9
            rows += [np.clip(chunk.at(int(t)), limits.lower, limits.upper) for t in times]
    return np.array(rows)
