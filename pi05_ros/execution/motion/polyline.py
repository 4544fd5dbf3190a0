"""A joint-space path as straight pieces over progress, and steps along it within limits.

Progress ``s`` is in seconds of the chunk that the path is from. One control period moves from
``q(s)`` to ``q(s')``; with the move of the period before, ``move'``, the limits are, per joint,
``|move| <= v dt`` and ``|move - move'| <= a dt^2``, exactly as somebody measures them who records
the commands. Plain Python numbers: paths have few joints, and arrays that small are slower.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from math import inf

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
        slopes = np.zeros_like(points)
        np.divide(points[1:] - points[:-1], (s[1:] - s[:-1])[:, None], out=slopes[:-1])
        self._slopes: list[list[float]] = slopes.tolist()
        self._arrays = (s, points, slopes)
        self._brakes: dict[int, float] = {}

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
        begins, vertices, slopes = self._arrays
        i = np.maximum(begins.searchsorted(s, side="right") - 1, 0)
        found: np.ndarray = vertices[i] + slopes[i] * (s - begins[i])[:, None]
        return found

    def slope_of(self, piece: int) -> list[float]:
        """Change of the joints per unit of progress on a piece."""
        return self._slopes[piece]

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
            step = place.advance - self._brake(place.piece)
            if step <= 0:
                return Place(place.piece, place.s, (0.0,) * len(place.move), 0.0)
            s = place.s + step
            last = place.piece + 1 >= len(self.s)
            if not last and s <= self.s[place.piece + 1]:
                slope = self._slopes[place.piece]
                return Place(place.piece, s, tuple([d * step for d in slope]), step)
        return self.advance(place, place.s, place.s + reach, least=True)

    def _brake(self, piece: int) -> float:
        """Largest change of progress per period on a piece; worked out when it is asked for."""
        found = self._brakes.get(piece)
        if found is None:
            pairs = zip(self.bounds.change, self._slopes[piece], strict=True)
            found = min((a / abs(d) for a, d in pairs if d), default=inf)
            self._brakes[piece] = found
        return found

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
