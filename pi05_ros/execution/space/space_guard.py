"""Decides which commands keep clear of everything, and how fast the arm may go near it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pi05_ros.execution.space.scene import Scene
from pi05_ros.execution.space.space_file import SpaceSpec

AHEAD_S = 0.3
"""How far ahead the commanded path is looked at to slow down in time."""
SLOWEST = 0.1
"""Smallest share of the speed in a margin; what stops the arm is the check of every command."""
RECOVERY_S = 0.5
"""The speed comes back from 0 to full in this time."""
MAX_LOOKS = 200
_NOISE_M = 1e-5
_TOOL_SHARE = 0.95


@dataclass(frozen=True)
class SpaceReport:
    """What is near, and what it does to the arm.

    Attributes:
        pair: link and link or obstacle that are nearest, or in the way; empty: nothing is checked.
        distance: between them in m, below 0 in contact; NaN without a pair.
        frame: link in whose axes ``at`` is: the root of the URDF.
        at: middle ``[3]`` between their nearest points in m.
        scale: part of the speed that is allowed, 0 to 1.
        held: why the arm brakes or stands, in words; empty: it does not because of space.

    """

    pair: tuple[str, ...] = ()
    distance: float = float("nan")
    frame: str = ""
    at: tuple[float, float, float] = (0.0, 0.0, 0.0)
    scale: float = 1.0
    held: str = ""


class SpaceGuard:
    """Checks rows of commands that follow each other, the present one first.

    Between two rows the joints are taken to move straight. How much nearer a pair can come on
    the way is bounded by its `Scene.reach`; where that bound leaves a doubt, the middle is looked
    at too. A pair that is nearer than the stop distance already, as at the start, may only move
    apart.

    Args:
        scene: distances.
        spec: margin, stop distance, tool speed.
        columns: which of the commanded joints are the scene's, in its order.
        period_s: control period.

    """

    def __init__(
        self, scene: Scene, spec: SpaceSpec, columns: Sequence[int], period_s: float
    ) -> None:
        self._scene, self._spec, self._columns = scene, spec, list(columns)
        self._period_s = period_s
        self._best = np.zeros(len(scene.pairs))  # largest distance so far, at most the stop one
        self._scale = 1.0
        self.report = SpaceReport(frame=scene.root_frame)

    @property
    def scale(self) -> float:
        """Part of the speed that is allowed, of the last `look_ahead`."""
        return self._scale

    def reset(self, position: np.ndarray) -> None:
        """Start at a position ``[n]``, wherever it is."""
        self._scale = 1.0
        self._best = np.minimum(self._scene.distances(position[self._columns]), self._spec.stop)

    def problem(self, rows: np.ndarray) -> str:
        """Why commands ``[k, n]`` must not be sent one after the other, in words; else empty.

        The first row is the present command. Afterwards `report` says which pair and where.
        """
        rows = rows[:, self._columns]
        return self._too_near(rows) or self._too_fast(rows)

    def _too_near(self, rows: np.ndarray) -> str:
        stop = self._spec.stop
        here = self._scene.distances(rows[0])
        inside = here < stop
        floor = np.where(inside, self._best - 10 * _NOISE_M, stop)
        if inside.any():
            return self._moves_in(rows, here, inside, floor)
        last = self._scene.distances(rows[-1])
        if (last < floor).any():
            return self._say(last, floor, "would touch")
        travelled = np.vstack(
            [
                np.zeros(len(floor)),
                np.cumsum(np.abs(np.diff(rows, axis=0)) @ self._scene.reach.T, 0),
            ]
        )
        looks = 0
        todo = [(0.0, float(len(rows) - 1), here, last)]
        while todo:
            begin, end, a, b = todo.pop()
            way = _between(travelled, end) - _between(travelled, begin)
            if ((a + b - way) / 2 >= floor - stop / 2).all():
                continue
            looks += 1
            if looks > MAX_LOOKS:
                return self._say(np.minimum(a, b), floor, "may touch")
            middle = _middle(begin, end)
            found = self._scene.distances(_between(rows, middle))
            if (found < floor).any():
                return self._say(found, floor, "would touch")
            todo += [(middle, end, found, b), (begin, middle, a, found)]
        return ""

    def _moves_in(
        self, rows: np.ndarray, here: np.ndarray, inside: np.ndarray, floor: np.ndarray
    ) -> str:
        """The same for a start inside the stop distance: row by row, such pairs only apart."""
        best, before = here.copy(), here
        for row, previous in zip(rows[1:], rows[:-1], strict=True):
            found = self._scene.distances(row)
            low = np.where(inside & (best < self._spec.stop), best - _NOISE_M, self._spec.stop)
            low = np.maximum(low, floor)
            if (found < low).any():
                return self._say(found, low, "may only move away from")
            way = np.abs(row - previous) @ self._scene.reach.T
            if ((found + before - way) / 2 < 0)[~inside].any():
                return self._say(np.where(inside, np.inf, found), low, "may touch")
            best, before = np.maximum(best, found), found
        return ""

    def _say(self, found: np.ndarray, floor: np.ndarray, what: str) -> str:
        """Words for the pair that is farthest below what it may be."""
        pair = int(np.argmin(found - floor))
        self._note(pair, found[pair])
        a, b = self._scene.pairs[pair]
        x, y, z = self.report.at
        return (
            f"{a} {what} {b}: {found[pair]:.3f} m apart at ({x:.3f}, {y:.3f}, {z:.3f}) m in "
            f"{self.report.frame}"
        )

    def _note(self, pair: int, distance: float) -> None:
        x, y, z = self._scene.where(pair).tolist()
        self.report = SpaceReport(
            self._scene.pairs[pair],
            float(distance),
            self._scene.root_frame,
            (x, y, z),
            self._scale,
        )

    def _too_fast(self, rows: np.ndarray) -> str:
        tool = self._spec.tool
        if tool is None or len(rows) < 2:
            return ""
        most = tool.max_speed * self._period_s
        places = np.array([self._scene.tool_at(row) for row in rows])
        steps = np.linalg.norm(np.diff(places, axis=0), axis=1)
        if (steps <= most).all():
            return ""
        k = int(np.argmax(steps))
        x, y, z = places[k].tolist()
        return (
            f"{tool.frame} would move at {steps[k] / self._period_s:.3f} m/s, limit "
            f"{tool.max_speed:g}, at ({x:.3f}, {y:.3f}, {z:.3f}) m in {self._scene.root_frame}"
        )

    def look_ahead(self, rows: np.ndarray, ahead_s: float) -> float:
        """Part of the speed that is right for the way ``[k, n]`` of the next seconds.

        The first row is the present command, the last one ``ahead_s`` later at full speed. The
        answer falls at once and rises slowly.
        """
        rows = rows[:, self._columns]
        found = np.array([self._scene.distances(row) for row in rows[::2]])
        wanted = 1.0
        if found.size:
            margin, stop = self._spec.margin, self._spec.stop
            nearest = found.min(axis=0)
            nearing = nearest < found[0] - 1e-4
            share = np.where(nearing, (nearest - stop) / (margin - stop), 1.0)
            wanted = float(np.clip(share.min(), SLOWEST, 1.0))
        if self._spec.tool is not None and len(rows) > 1:
            places = np.array([self._scene.tool_at(row) for row in rows])
            steps = np.linalg.norm(np.diff(places, axis=0), axis=1)
            fastest = float(np.max(steps)) * (len(rows) - 1) / ahead_s
            if fastest > 0:
                slower = _TOOL_SHARE * self._spec.tool.max_speed / fastest
                # Just below 1 the arm does not hurry to catch up with the clock either.
                slower = slower if slower < 1 else 0.999 if slower < 1.4 else 1.0
                wanted = min(wanted, slower)
        rise = self._period_s / RECOVERY_S
        self._scale = min(max(wanted, 1e-3), self._scale + rise, 1.0)
        return self._scale

    def accept(self, position: np.ndarray, held: str) -> None:
        """Take note of the command ``[n]`` that is sent, and of why it is braking, if it is."""
        found = self._scene.distances(position[self._columns])
        self._best = np.maximum(self._best, np.minimum(found, self._spec.stop))
        if held:
            kept = self.report
            self.report = SpaceReport(
                kept.pair, kept.distance, kept.frame, kept.at, self._scale, held
            )
        elif len(found):
            self._note(int(np.argmin(found)), found.min())


def _between(rows: np.ndarray, place: float) -> np.ndarray:
    """Row at a place between two rows, straight."""
    low = int(place)
    if low == place:
        return np.asarray(rows[low])
    share = place - low
    return np.asarray((1 - share) * rows[low] + share * rows[low + 1])


def _middle(begin: float, end: float) -> float:
    """Middle of two places, a whole row where one lies between them."""
    middle = (begin + end) / 2
    whole = float(round(middle))
    return whole if begin < whole < end else middle
