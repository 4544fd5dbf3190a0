"""Path-consistent motion that keeps jerk limits too: every command comes with a tried-out stop."""

from __future__ import annotations

import numpy as np

from pi05_ros.execution.limit_sources.joint_limits import JointLimits
from pi05_ros.execution.motion.jerk_motion import JerkMotion
from pi05_ros.execution.motion.jerk_stop import eased, stop_moves
from pi05_ros.execution.motion.path_filter import CATCH_UP_S, PathFilter
from pi05_ros.execution.motion.polyline import Place, Polyline

_TRIALS = 6
_SOFTER = ((1.0, 1.0), (0.6, 0.3))
"""Shares of acceleration and jerk that a stop may use: a soft one has room for corners."""
_GRACE_NS = 300_000_000
"""How long the arm goes on along the path of the chunk before when a new one cannot be joined."""


class JerkPathFilter(PathFilter):
    """Moves along the path of the chunks within velocity, acceleration and jerk limits.

    As `PathFilter`, but what is tried out before a command is taken is a whole stop: progress of
    every period until rest, with the differences of the commands up to the third order checked
    for each joint. If nothing better is found, that stop goes on. A corner of the path changes the
    velocity within one period, so it is passed as slowly as the jerk limit asks: by at most
    ``max_jerk`` times the period squared. Arguments as of `PathFilter`.
    """

    def __init__(
        self,
        limits: JointLimits,
        period_s: float,
        speed_scale_max: float,
        blend_in_s: float = 0.0,
    ) -> None:
        super().__init__(limits, period_s, speed_scale_max, blend_in_s)
        rounding = 1 - 1e-9
        self._most = (
            limits.velocity * period_s * rounding,
            limits.acceleration * period_s**2 * rounding,
            limits.jerk_limits * period_s**3 * rounding,
        )
        self._change_bounds: list[float] = self._most[1].tolist()
        self._jerk_bounds: list[float] = self._most[2].tolist()
        n = len(limits.names)
        self._jerky = JerkMotion(limits, period_s)
        self._move, self._change = np.zeros((2, n))
        self._stop: list[float] = []  # progress of the periods to come, until rest
        self._speed, self._speed_change = 0.0, 0.0  # progress per period and its change
        self._grace_until_ns: int | None = None
        self._rated: Polyline | None = None  # path of the rates by piece
        self._rates_by_piece: dict[int, tuple[float, float]] = {}

    def reset(self, position: np.ndarray) -> None:
        """Start at rest at a measured position ``[n]``, wherever it is."""
        super().reset(position)
        self._move, self._change = np.zeros((2, len(self.limits.names)))
        self._jerky.take_over(np.array(position, dtype=np.float64), self._move, self._change)
        self._stop, self._speed, self._speed_change = [], 0.0, 0.0
        self._grace_until_ns = None

    def planning_copy(self) -> JerkPathFilter:
        """An independent copy to try out what comes next."""
        other = super().planning_copy()
        assert isinstance(other, JerkPathFilter)
        other._jerky = self._jerky.planning_copy()
        other._stop = list(self._stop)
        return other

    @property
    def resting(self) -> bool:
        """Whether the last command did not move any joint, and its change has faded."""
        return not (self._move.any() or self._change.any())

    @property
    def velocity(self) -> np.ndarray:
        """Velocity ``[n]`` of the last period."""
        return self._move / self.period_s

    def brake(self) -> np.ndarray:
        """Next command ``[n]`` of a stop that stays on the path."""
        if self.position is None:
            raise RuntimeError("the filter has no start position yet")
        if self._path is None:
            return self._free_step(None)
        return self._step_to(self._stop[0] if self._stop else self._progress)

    def steer(self, target: np.ndarray) -> np.ndarray:
        """Next command ``[n]`` towards a target ``[n]`` that is on no path: joint by joint."""
        if self.position is None:
            raise RuntimeError("the filter has no start position yet")
        if self._path is not None:
            self._jerky.take_over(self.position, self._move, self._change)
            self._path = self._place = self._chunk = None
        self._blend_until_ns = None
        self._jerky.speed_scale = self.speed_scale
        return self._free_step(target)

    def _free_step(self, target: np.ndarray | None) -> np.ndarray:
        self.position = self._jerky.step(target)
        self._move, self._change = self._jerky.move, self._jerky.change
        return self.position.copy()

    @property
    def _last_move(self) -> tuple[float, ...]:
        return tuple(self._move.tolist())

    @property
    def _progress(self) -> float:
        assert self._place is not None
        return self._place.s

    def _accept(self, path: Polyline, place: Place) -> bool:
        """Go over to a new path if the arm can stop on it."""
        speed, change = _projected(path.slope(place.s), self._move, self._change)
        stop = self._stop_on(path, place.s, speed, change)
        if stop is None:
            return False
        self._speed, self._speed_change, self._stop = speed, change, stop
        self._grace_until_ns = None
        return True

    def _unjoined(self, now_ns: int) -> np.ndarray:
        """Go on along the path of the chunk before for a while, then brake on it."""
        if self._grace_until_ns is None:
            self._grace_until_ns = now_ns + _GRACE_NS
        if self._chunk is not None and self._path is not None:
            left_ns = self._grace_until_ns - now_ns
            clock = (now_ns - self._chunk.start_ns) / 1e9
            if 0 <= left_ns <= _GRACE_NS and clock >= 0:
                return self._advance(clock)
        return self.brake()

    def _advance(self, clock: float) -> np.ndarray:
        """Farthest place that is not ahead of the clock and from which a stop is found."""
        path, s = self._path, self._progress
        assert path is not None
        assert self._chunk is not None
        catch_up = min(self.speed_scale_max, 1 + (clock - s) / CATCH_UP_S)
        slowed = min(self.speed_scale, self._chunk.pace_at(s))
        scale = slowed if slowed < 1 else catch_up
        least = self._stop[0] if self._stop else s
        most = (slowed if slowed < 1 else self.speed_scale_max) * self.period_s
        most = max(most, least - s) + 1e-12
        limit, jerk = self._rates(path, s, self._speed)
        want = min(clock, s + self._faster(scale * self.period_s, limit, jerk))
        low, high = least, want
        for trial in range(_TRIALS):
            if high - low <= 1e-12:
                break
            goal = high if trial == 0 else (low + high) / 2
            speed = goal - s
            stop = self._stop_on(path, goal, speed, speed - self._speed, most, first=goal)
            if stop is not None:
                self._stop, low = stop, goal
                if trial == 0:
                    break
            else:
                high = goal
        return self._step_to(self._stop[0] if self._stop else s)

    def _faster(self, most: float, limit: float, jerk: float) -> float:
        """Next speed of progress whose change can fade before the speed exceeds ``most``."""
        speed = self._speed
        low, high = 0.0, min(self._speed_change + jerk, limit, most - speed)
        if speed + high + eased(high, jerk) <= most:
            return speed + high
        for _ in range(_TRIALS):
            change = (low + high) / 2
            if speed + change + eased(change, jerk) <= most:
                low = change
            else:
                high = change
        return speed + low

    def _step_to(self, s: float) -> np.ndarray:
        """Take a place whose differences have been checked."""
        assert self._path is not None
        assert self.position is not None
        before, here = self.position, np.array(self._path.at(s))
        speed = s - self._progress
        if speed == 0.0:
            here = before
        self._change = here - before - self._move
        self._move = here - before
        self._speed, self._speed_change = speed, speed - self._speed
        self._stop = self._stop[1:]
        self.position = here.copy()
        self._place = Place(self._path.piece(s), s, tuple(self._move.tolist()))
        return self.position.copy()

    def _rates(self, path: Polyline, s: float, speed: float) -> tuple[float, float]:
        """Change of progress per period and its change that all pieces near ahead allow."""
        first = path.piece(s)
        limit, jerk = self._piece_rates(path, first)
        last = path.piece(s + speed * speed / (2 * max(limit, 1e-12)) + 2 * speed)
        for i in range(first + 1, last + 1):
            one, other = self._piece_rates(path, i)
            limit, jerk = min(limit, one), min(jerk, other)
        return limit, jerk

    def _piece_rates(self, path: Polyline, piece: int) -> tuple[float, float]:
        """Change of progress per period and its change that one piece allows."""
        if path is not self._rated:
            self._rated, self._rates_by_piece = path, {}
        found = self._rates_by_piece.get(piece)
        if found is None:
            slope = [abs(d) for d in path.slope_of(piece)]
            limit, jerk = self._reach, self._reach
            for d, a, j in zip(slope, self._change_bounds, self._jerk_bounds, strict=True):
                if d > 0:
                    limit, jerk = min(limit, a / d), min(jerk, j / d)
            found = self._rates_by_piece[piece] = (limit, jerk)
        return found

    def _stop_on(
        self,
        path: Polyline,
        s: float,
        speed: float,
        change: float,
        most: float = np.inf,
        first: float | None = None,
    ) -> list[float] | None:
        """Progress of a stop from a place with a speed of progress, or None if none is found.

        Args:
            path: with the present command on it.
            s, speed, change: state from which the stop begins.
            most: speed of progress that it may reach while ``change`` fades.
            first: a period in front of the stop, already in ``speed``.

        """
        head = [] if first is None else [first]
        tried: list[np.ndarray] = []  # the result of the last look

        def keeps(moves: list[float], rest: bool = False) -> bool:
            places = np.concatenate([head, s + np.cumsum(moves)])
            tried[:] = [places]
            steps = places[1:] - places[:-1]
            kept = ((steps >= -1e-15) & (steps <= most)).all()
            return bool(kept) and self._within(path, places, rest)

        limit, jerk = self._rates(path, s, speed)
        for share, jerk_share in _SOFTER:
            moves = stop_moves(speed, change, limit * share, jerk * jerk_share, keeps)
            if moves[-1] == 0.0 and keeps(moves, rest=True):
                found: list[float] = np.maximum.accumulate(tried[0]).tolist()
                return found
        return None

    def _within(self, path: Polyline, places: np.ndarray, rest: bool) -> bool:
        """Whether the commands at these places ``[k]`` keep the limits; with ``rest`` behind."""
        assert self.position is not None
        k, n = len(places) + 1, len(self._move)
        rows = np.empty((k, n))
        rows[0], rows[1:] = self.position, path.at_many(places)
        moves, changes = np.zeros((2, k + 2 if rest else k, n))
        moves[0], changes[0] = self._move, self._change
        np.subtract(rows[1:], rows[:-1], out=moves[1:k])
        np.subtract(moves[1:], moves[:-1], out=changes[1:])
        most_move, most_change, most_jerk = self._most
        return bool(
            (np.abs(changes[1:] - changes[:-1]) <= most_jerk).all()
            and (np.abs(changes[1:]) <= most_change).all()
            and (np.abs(moves[1:]) <= most_move).all()
        )


def _projected(slope: list[float], move: np.ndarray, change: np.ndarray) -> tuple[float, float]:
    """Speed of progress, and its change, that are nearest to those of the joints."""
    d = np.array(slope)
    length = float(d @ d)
    if length == 0.0:
        return 0.0, 0.0
    return max(0.0, float(move @ d) / length), float(change @ d) / length
