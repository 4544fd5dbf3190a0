"""A joint-space path as straight pieces over progress, and steps along it within limits.

Progress ``s`` is in seconds of the chunk that the path is from. One control period moves from
``q(s)`` to ``q(s')``; with the move of the period before, ``move'``, the limits are, per joint,
``|move| <= v dt`` and ``|move - move'| <= a dt^2``, exactly as somebody measures them who records
the commands. Plain Python numbers: paths have few joints, and arrays that small are slower.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np

MAX_BRAKING_STEPS = 4000
_ROUNDING = 1 - 1e-9
Row = tuple[float, ...]


@dataclass(frozen=True)
class Bounds:
    """Largest move per control period and largest change of it, per joint."""

    move: Row
    change: Row

    @staticmethod
    def of(velocity: np.ndarray, acceleration: np.ndarray, period_s: float) -> Bounds:
        """Bounds of limits ``[n]`` for a control period."""
        return Bounds(
            tuple((velocity * period_s * _ROUNDING).tolist()),
            tuple((acceleration * period_s**2 * _ROUNDING).tolist()),
        )


@dataclass(frozen=True)
class Place:
    """Where a command is on the path, and how it got there.

    Attributes:
        piece: index of the straight piece.
        s: progress.
        move: joint move of the last period.
        advance: progress of the last period if it was all on this piece, else None.

    """

    piece: int
    s: float
    move: Row
    advance: float | None = None

    @property
    def resting(self) -> bool:
        """Whether the last period moved no joint."""
        return not any(self.move)


class Polyline:
    """Straight pieces between vertices; behind the last one the path rests.

    Args:
        s: progress of the vertices ``[m]``, rising.
        points: joint positions ``[m, n]``.
        bounds: per control period.

    """

    def __init__(self, s: np.ndarray, points: np.ndarray, bounds: Bounds) -> None:
        self.s: list[float] = s.tolist()
        self.points: list[list[float]] = points.tolist()
        self.bounds = bounds
        self.end = self.s[-1]
        slopes = np.diff(points, axis=0) / np.diff(s)[:, None]
        with np.errstate(divide="ignore", over="ignore"):
            brakes = np.min(np.array(bounds.change) / np.abs(slopes), axis=1, initial=np.inf)
        self._slopes: list[list[float]] = [*slopes.tolist(), [0.0] * points.shape[1]]
        self._arrays = (points, np.array(self._slopes))
        self._brakes: list[float] = [*brakes.tolist(), np.inf]

    def piece(self, s: float) -> int:
        """Piece that a progress lies on."""
        return max(0, bisect_right(self.s, s) - 1)

    def at(self, s: float, piece: int | None = None) -> list[float]:
        """Joint positions at a progress."""
        i = self.piece(s) if piece is None else piece
        x = s - self.s[i]
        return [p + d * x for p, d in zip(self.points[i], self._slopes[i], strict=True)]

    def at_many(self, s: np.ndarray) -> np.ndarray:
        """Joint positions ``[k, n]`` at progresses ``[k]``."""
        vertices, slopes = self._arrays
        i = np.maximum(np.searchsorted(self.s, s, side="right") - 1, 0)
        found: np.ndarray = vertices[i] + slopes[i] * (s - np.array(self.s)[i])[:, None]
        return found

    def slope_of(self, piece: int) -> np.ndarray:
        """Change of the joints ``[n]`` per unit of progress on a piece."""
        found: np.ndarray = self._arrays[1][piece]
        return found

    def slope(self, s: float) -> list[float]:
        """Change of the joints per unit of progress, of the piece that begins or holds ``s``."""
        return self._slopes[self.piece(s)]

    def advance(self, place: Place, low: float, high: float, least: bool) -> Place | None:
        """Next place with progress in [low, high] within the bounds: the least or the largest.

        None if there is none.
        """
        here = self.at(place.s, place.piece)
        best: Place | None = None
        for i in range(place.piece, len(self.s)):
            begin = self.s[i]
            if begin > high:
                break
            end = self.s[i + 1] if i + 1 < len(self.s) else high
            x0, x1 = max(low, begin) - begin, min(high, end) - begin
            if x1 < x0:
                continue
            found = self._interval(i, here, place.move, x0, x1)
            if found is None:
                continue
            s = begin + (found[0] if least else found[1])
            there = self.at(s, i)
            move = tuple([b - a for a, b in zip(here, there, strict=True)])
            best = Place(i, s, move, s - place.s if i == place.piece else None)
            if least:
                return best
        return best

    def _interval(
        self, i: int, here: list[float], before: Row, x0: float, x1: float
    ) -> tuple[float, float] | None:
        """Part of [x0, x1] on piece ``i`` that keeps the bounds."""
        moves, changes = self.bounds.move, self.bounds.change
        for p, d, q, b, v, a in zip(
            self.points[i], self._slopes[i], here, before, moves, changes, strict=True
        ):
            base = p - q
            lo, hi = max(-v, b - a) - base, min(v, b + a) - base
            if d == 0.0:
                if lo > 1e-15 or hi < -1e-15:
                    return None
                continue
            first, last = (lo / d, hi / d) if d > 0 else (hi / d, lo / d)
            x0, x1 = max(x0, first), min(x1, last)
            if x1 < x0:
                return None
        return x0, x1

    def brake(self, place: Place, reach: float) -> Place | None:
        """Place after a period of braking as hard as the path allows; None if it cannot."""
        if place.advance is not None:
            step = place.advance - self._brakes[place.piece]
            if step <= 0:
                return Place(place.piece, place.s, (0.0,) * len(place.move), 0.0)
            s = place.s + step
            last = place.piece + 1 >= len(self.s)
            if not last and s <= self.s[place.piece + 1]:
                slope = self._slopes[place.piece]
                return Place(place.piece, s, tuple([d * step for d in slope]), step)
        return self.advance(place, place.s, place.s + reach, least=True)

    def can_stop(self, place: Place, reach: float) -> bool:
        """Whether braking from a place comes to rest on the path."""
        at: Place | None = place
        for _ in range(MAX_BRAKING_STEPS):
            if at is None:
                return False
            if at.resting:
                return True
            at = self.brake(at, reach)
        return False
