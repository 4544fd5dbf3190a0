"""Jerk-limited motion with Ruckig: commands that track those of another filter."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pi05_ros.errors import InvalidValueError
from pi05_ros.execution.limit_sources.joint_limits import JointLimits
from pi05_ros.execution.strategies import Strategy

if TYPE_CHECKING:
    from pi05_ros.execution.motion.motion_filter import MotionFilter
    from pi05_ros.execution.motion.path_filter import PathFilter

HEADROOM = 0.95
"""Share of velocity and acceleration that the tracked filter may use: the rest catches up."""
MAX_WINDOW = 1000
_SNAP = 1e-11


def tracked_limits(limits: JointLimits) -> JointLimits:
    """Limits of the filter whose commands are tracked."""
    return replace(
        limits,
        velocity=limits.velocity * HEADROOM,
        acceleration=limits.acceleration * HEADROOM,
    )


class RuckigFilter:
    """Tracks the commands of another filter within velocity, acceleration and jerk limits.

    What is tracked is their mean over the time in which the acceleration may turn round, taken
    as much earlier, so that it has hardly any jerk beyond the limit and no lag. Each period asks
    Ruckig for the fastest way to meet it, seen from a frame that moves with it, and takes the
    first period of that. A command is taken only if the fastest stop after it stays within the
    position limits; otherwise that stop, which was tried before, goes on for the joint. The
    commands are samples of a motion whose third derivative is bounded, so their differences keep
    the limits as well. They leave the path of the other filter at its corners.

    Args:
        inner: tracked filter, made with `tracked_limits`.
        limits: of all joints; joints without a jerk limit are limited in acceleration only.
        period_s: control period.

    Raises:
        InvalidValueError: no joint has a jerk limit, or the package ruckig is not installed.

    """

    held = ""
    """Nothing but limits holds it, see `GuardedFilter`."""

    def __init__(
        self, inner: MotionFilter | PathFilter, limits: JointLimits, period_s: float
    ) -> None:
        try:
            import ruckig
        except ImportError as error:
            raise InvalidValueError(
                "jerk_limiting ruckig needs the package ruckig: pip install ruckig"
            ) from error
        if not np.isfinite(limits.jerk_limits).any():
            raise InvalidValueError(
                "jerk_limiting ruckig needs jerk limits: max_jerk in limits_file, or jerk_time_s"
            )
        self.limits = limits.require_complete()
        self.period_s = period_s
        self.position: np.ndarray | None = None
        self._inner = inner
        self._ruckig = ruckig
        n = len(limits.names)
        self._otg = ruckig.Ruckig(n)
        self._velocity, self._acceleration = np.zeros(n), np.zeros(n)
        jerky = np.isfinite(limits.jerk_limits)
        smooth_s = 2 * limits.acceleration[jerky] / limits.jerk_limits[jerky]
        self._count = max(1, min(MAX_WINDOW, int(np.ceil(smooth_s.max() / period_s))))
        self._ahead_ns = int((self._count - 1) / 2 * period_s * 1e9)
        self._window: list[np.ndarray] = []  # the last commands of the tracked filter
        self._goal = np.zeros(n)  # their mean
        self._bounds = (limits.acceleration.tolist(), limits.jerk_limits.tolist())
        self._stop: list[tuple[Any, float]] = []  # per joint: trajectory to rest, time on it

    @property
    def speed_scale(self) -> float:
        """Part of the speed of chunks that is used, 0 to 1."""
        return self._inner.speed_scale

    @speed_scale.setter
    def speed_scale(self, value: float) -> None:
        self._inner.speed_scale = value

    @property
    def velocity(self) -> np.ndarray:
        """Velocity ``[n]`` at the last command."""
        return self._velocity.copy()

    @property
    def resting(self) -> bool:
        """Whether the last command did not move any joint and none will without a target."""
        still = not (self._velocity.any() or self._acceleration.any())
        return still and self._inner.resting and self._at_inner(0.0)

    def lag_s(self, now_ns: int) -> float:
        """How far the tracked path is behind the clock."""
        return self._inner.lag_s(now_ns + self._ahead_ns)

    def reset(self, position: np.ndarray) -> None:
        """Start at rest at a measured position ``[n]``, wherever it is."""
        self._inner.reset(position)
        self.position = np.array(position, dtype=np.float64)
        self._window, self._goal = [self.position] * self._count, self.position
        self._velocity, self._acceleration = np.zeros((2, len(self.position)))
        self._stop = []

    def planning_copy(self) -> RuckigFilter:
        """An independent copy to try out what comes next."""
        other = copy.copy(self)
        other._inner = self._inner.planning_copy()
        other._stop = list(self._stop)
        return other

    def ahead(self, strategy: Strategy | None, now_ns: int, ahead_s: float) -> np.ndarray:
        """Places ``[k, n]`` on the way in front of the present command, see `PathFilter.ahead`."""
        return self._inner.ahead(strategy, now_ns + self._ahead_ns, ahead_s)

    def follow(self, strategy: Strategy, now_ns: int) -> np.ndarray | None:
        """Next command ``[n]``; None if no chunk reaches the time: call `brake`."""
        command = self._inner.follow(strategy, now_ns + self._ahead_ns)
        return None if command is None else self._track(command)

    def steer(self, target: np.ndarray) -> np.ndarray:
        """Next command ``[n]`` towards a target ``[n]`` that is on no path."""
        return self._track(self._inner.steer(target))

    def brake(self) -> np.ndarray:
        """Next command ``[n]`` of braking to a stop, beside the path it is on."""
        return self._track(self._inner.brake())

    def _track(self, goal: np.ndarray) -> np.ndarray:
        assert self.position is not None
        dt = self.period_s
        self._window = [*self._window[1:], goal]
        before, goal = self._goal, _mean(self._window)
        self._goal = goal
        speed = (goal - before) / dt
        wanted = self._solve(
            self.position - before, self._velocity - speed, self._acceleration, speed
        )
        if wanted is None:
            state = self._on_stop(dt)
            self._stop = [(plan, at + dt) for plan, at in self._stop]
        else:
            state = np.array(wanted.at_time(dt)) + np.array([goal, speed, 0 * goal])
            state = self._keep_inside(state)
        if (
            self._inner.resting
            and np.abs(state - np.array([goal, 0 * goal, 0 * goal])).max() <= _SNAP
        ):
            state = np.array([goal, 0 * goal, 0 * goal])
        self.position, self._velocity, self._acceleration = state
        return self.position.copy()

    def _keep_inside(self, state: np.ndarray) -> np.ndarray:
        """The next state ``[3, n]``, with joints that could not stop in time on their stop."""
        assert self.position is not None
        dt, n = self.period_s, state.shape[1]
        lower = np.minimum(self.limits.lower, self.position) - 1e-10
        upper = np.maximum(self.limits.upper, self.position) + 1e-10
        stop = self._solve(*state)
        if stop is None:
            held = np.ones(n, dtype=bool)
        else:
            extrema = stop.position_extrema
            low, high = np.array([(e.min, e.max) for e in extrema]).T
            held = ((low < lower) | (high > upper)) & bool(self._stop)
        if not held.any():
            self._stop = [(stop, 0.0)] * n
            return state
        state = np.where(held, self._on_stop(dt), state)
        self._stop = [
            (plan, at + dt) if h else (stop, 0.0)
            for h, (plan, at) in zip(held, self._stop, strict=True)
        ]
        return state

    def _on_stop(self, dt: float) -> np.ndarray:
        """State ``[3, n]`` after a period of the stop that was tried last."""
        assert self.position is not None
        if not self._stop:  # at rest where it was reset
            return np.array([self.position, self._velocity, self._acceleration])
        rows = []
        for i, (plan, at) in enumerate(self._stop):
            position, velocity, acceleration = plan.at_time(at + dt)
            rows.append((position[i], velocity[i], acceleration[i]))
        return np.array(rows).T

    def _solve(
        self,
        position: np.ndarray,
        velocity: np.ndarray,
        acceleration: np.ndarray,
        speed: np.ndarray | None = None,
    ) -> Any | None:
        """Fastest trajectory from a state to rest; None if Ruckig finds none.

        With ``speed`` ``[n]`` the state is relative to a goal that moves with it, and the
        trajectory ends at the goal; without, it ends where it may.
        """
        r, n = self._ruckig, len(position)
        ask = r.InputParameter(n)
        ask.current_position, ask.current_velocity = position.tolist(), velocity.tolist()
        ask.current_acceleration = acceleration.tolist()
        ask.max_acceleration, ask.max_jerk = self._bounds
        ask.synchronization = r.Synchronization.No
        top, shift = self.limits.velocity, 0.0 if speed is None else speed
        ask.max_velocity, ask.min_velocity = (top - shift).tolist(), (-top - shift).tolist()
        if speed is None:
            ask.control_interface = r.ControlInterface.Velocity
        ask.target_position = ask.target_velocity = [0.0] * n
        ask.target_acceleration = [0.0] * n
        found = r.Trajectory(n)
        try:
            result = self._otg.calculate(ask, found)
        except r.RuckigError:
            return None
        return found if result in (r.Result.Working, r.Result.Finished) else None

    def _at_inner(self, tolerance: float) -> bool:
        if self.position is None or self._inner.position is None:
            return self.position is self._inner.position
        return bool((np.abs(self.position - self._inner.position) <= tolerance).all())


def _mean(rows: list[np.ndarray]) -> np.ndarray:
    """Mean of commands, exactly theirs where they are all the same."""
    table = np.array(rows)
    found: np.ndarray = np.minimum(
        np.maximum(table.mean(axis=0), table.min(axis=0)), table.max(axis=0)
    )
    return found
