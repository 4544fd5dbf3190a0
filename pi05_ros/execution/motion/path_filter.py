"""Path-consistent motion: where limits bind, time slows down along the path."""

from __future__ import annotations

import copy

import numpy as np

from pi05_ros.errors import InvalidValueError
from pi05_ros.execution.limit_sources.joint_limits import JointLimits
from pi05_ros.execution.motion.motion_filter import AHEAD_ROWS, MotionFilter, rows_ahead
from pi05_ros.execution.motion.path_join import join
from pi05_ros.execution.motion.polyline import Bounds, Place, Polyline
from pi05_ros.execution.strategies import Strategy
from pi05_ros.execution.timed_chunk import TimedChunk

DEFAULT_SPEED_SCALE_MAX = 1.25
CATCH_UP_S = 0.2
"""The path catches up with the clock in this time, if speed_scale_max and the limits allow it."""
_SEARCH_STEPS = 6


class PathFilter:
    """Moves along the path of the chunks; every command lies on it.

    Each period takes the farthest place on the path that is not ahead of the clock, within the
    velocity and acceleration limits of the recorded commands, and from which braking comes to
    rest on the path, which is tried out step by step. Braking from there is therefore possible
    whatever comes next, and stays on the path too. Progress never runs backwards; after it was
    slowed it catches up with the clock by at most ``speed_scale_max`` seconds per second.

    A new chunk is joined by a smooth transition (`path_join`). Until one is found from which the
    arm can stop, it brakes on the path it is on.

    Args:
        limits: of all joints, complete.
        period_s: control period; every call of `follow` and `brake` stands for one.
        speed_scale_max: fastest progress, seconds of the path per second.
        blend_in_s: shortest time from a start at rest, or from `steer`, onto a path.

    """

    held = ""
    """Nothing but limits holds it, see `GuardedFilter`."""

    def __init__(
        self,
        limits: JointLimits,
        period_s: float,
        speed_scale_max: float = DEFAULT_SPEED_SCALE_MAX,
        blend_in_s: float = 0.0,
    ) -> None:
        if not (np.isfinite(speed_scale_max) and speed_scale_max >= 1):
            raise InvalidValueError(f"speed_scale_max is {speed_scale_max}; accepted: 1 or more")
        self.limits = limits.require_complete()
        self.period_s = period_s
        self.speed_scale_max = speed_scale_max
        self.blend_in_s = blend_in_s
        self.speed_scale = 1.0
        self.position: np.ndarray | None = None
        self._bounds = Bounds.of(limits.velocity, limits.acceleration, period_s)
        self._reach = speed_scale_max * period_s  # braking is no faster than that either
        self._path: Polyline | None = None
        self._place: Place | None = None
        self._chunk: TimedChunk | None = None
        self._free = MotionFilter(limits, period_s)  # moves that are on no path
        self._blend_until_ns: int | None = None

    def reset(self, position: np.ndarray) -> None:
        """Start at rest at a measured position ``[n]``, wherever it is."""
        self.position = np.array(position, dtype=np.float64)
        self._free.reset(self.position)
        self._blend_until_ns = None
        self._path = self._place = self._chunk = None

    def planning_copy(self) -> PathFilter:
        """An independent copy to try out what comes next."""
        other = copy.copy(self)
        other._free = self._free.planning_copy()
        return other

    def ahead(self, strategy: Strategy | None, now_ns: int, ahead_s: float) -> np.ndarray:
        """Places ``[k, n]`` on the way in front of the present command, which is the first.

        On the present path they are those of the next seconds of its time; a path that is still
        to be joined counts from the present command.
        """
        assert self.position is not None
        joined = strategy is None or strategy.path(now_ns) is self._chunk
        if self._path is None or self._place is None or not joined:
            return rows_ahead(self.position, strategy, self.limits, now_ns, ahead_s)
        s = self._place.s + np.linspace(0, ahead_s, AHEAD_ROWS + 1)
        return np.array([self._path.at(x) for x in s.tolist()])

    @property
    def resting(self) -> bool:
        """Whether the last command did not move any joint."""
        return self._free.resting if self._place is None else self._place.resting

    @property
    def velocity(self) -> np.ndarray:
        """Velocity ``[n]`` of the last period."""
        if self._place is None:
            return self._free.velocity.copy()
        return np.array(self._place.move) / self.period_s

    def lag_s(self, now_ns: int) -> float:
        """How far the path is behind the clock."""
        if self._chunk is None or self._place is None:
            return 0.0
        return max(0.0, (now_ns - self._chunk.start_ns) / 1e9 - self._place.s)

    def follow(self, strategy: Strategy, now_ns: int) -> np.ndarray | None:
        """Next command ``[n]`` towards where the strategy's path is at a time.

        None if no chunk reaches the time; then nothing has changed: call `brake`.
        """
        chunk = strategy.path(now_ns)
        if chunk is None:
            return None
        if self.position is None:
            raise RuntimeError("the filter has no start position yet")
        clock = max(0.0, (now_ns - chunk.start_ns) / 1e9)
        if self._place is None and self._blend_until_ns is None:
            self._blend_until_ns = now_ns + int(self.blend_in_s * 1e9)
        if chunk is not self._chunk:
            move = None if self.resting else self._last_move
            joined = join(
                chunk, self.position, move, clock, self.limits,
                self._bounds, self.period_s, self.speed_scale_max,
                self._blend_left_s(now_ns),
            )  # fmt: skip
            for path, place in joined:
                if self._accept(path, place):
                    self._path, self._place, self._chunk = path, place, chunk
                    break
            else:
                return self._unjoined(now_ns)
        return self._advance(clock)

    def _accept(self, path: Polyline, place: Place) -> bool:
        """Whether the arm can stop on a new path."""
        return path.can_stop(place, self._reach)

    def _unjoined(self, now_ns: int) -> np.ndarray:
        """Next command while no way onto a new chunk is found: brake on the path it is on."""
        return self.brake()

    @property
    def _last_move(self) -> tuple[float, ...]:
        if self._place is not None:
            return self._place.move
        return tuple((self._free.velocity * self.period_s).tolist())

    def _blend_left_s(self, now_ns: int) -> float:
        """Rest of the time that blending in takes; the clock may have been set back meanwhile."""
        left = ((self._blend_until_ns or 0) - now_ns) / 1e9
        return min(max(left, 0.0), self.blend_in_s)

    def brake(self) -> np.ndarray:
        """Next command ``[n]`` of the hardest braking that stays on the path."""
        if self.position is None:
            raise RuntimeError("the filter has no start position yet")
        if self._path is None or self._place is None:
            self.position = self._free.brake()
        elif not self._place.resting:
            return self._go(self._path.brake(self._place, self._reach))
        return self.position.copy()

    def steer(self, target: np.ndarray) -> np.ndarray:
        """Next command ``[n]`` towards a target ``[n]`` that is on no path: joint by joint."""
        if self.position is None:
            raise RuntimeError("the filter has no start position yet")
        if self._place is not None:
            self._free.take_over(self.position, self.velocity)
            self._path = self._place = self._chunk = None
        self._blend_until_ns = None
        self._free.speed_scale = self.speed_scale
        self.position = self._free.step(target)
        return self.position.copy()

    def _advance(self, clock: float) -> np.ndarray:
        """Farthest safe place that is not ahead of the clock."""
        path, place = self._path, self._place
        assert path is not None
        assert place is not None
        catch_up = min(self.speed_scale_max, 1 + (clock - place.s) / CATCH_UP_S)
        assert self._chunk is not None
        slowed = min(self.speed_scale, self._chunk.pace_at(place.s))
        scale = slowed if slowed < 1 else catch_up
        # Behind a corner braking may take more progress a period than before it: not from here.
        reach = slowed * self.period_s if slowed < 1 else self._reach
        want = min(clock, place.s + scale * self.period_s)
        least = path.brake(place, self._reach)
        if least is None or want <= least.s:
            return self._go(least)
        best = least
        low, high = least.s, want
        for trial in range(_SEARCH_STEPS + 1):
            goal = high if trial == 0 else (low + high) / 2
            there = path.advance(place, low, goal, least=False)
            if there is not None and path.can_stop(there, reach):
                best, low = there, max(low, there.s)
                if trial == 0:
                    break
            else:
                high = goal
        return self._go(best)

    def _go(self, place: Place | None) -> np.ndarray:
        if place is None:
            raise AssertionError("no braking on the path: a place was taken without trying it out")
        assert self._path is not None
        assert self.position is not None
        moved = not place.resting
        self._place = place
        if moved:
            self.position = np.array(self._path.at(place.s, place.piece))
        return self.position.copy()
