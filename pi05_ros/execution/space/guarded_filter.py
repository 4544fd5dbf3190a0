"""A motion filter whose commands keep clear of what is around."""

from __future__ import annotations

import numpy as np

from pi05_ros.execution.motion.make_filter import Filter
from pi05_ros.execution.space.space_guard import AHEAD_S, SpaceGuard, SpaceReport
from pi05_ros.execution.strategies import Strategy

MAX_BRAKING_ROWS = 4000
HELD_AFTER_S = 0.1
"""Braking for a shorter time is slowing down."""


class GuardedFilter:
    """Sends a command only if it, and all of the stop after it, keep clear.

    Each command of the filter inside is tried out together with the whole stop that would follow
    it. If that is not clear, the stop after the command before goes on, which was tried then. So
    whatever chunks, teleoperation and stops do, the arm comes to rest clear of everything.

    Args:
        inner: what keeps the joint limits.
        guard: what is clear.

    """

    def __init__(self, inner: Filter, guard: SpaceGuard) -> None:
        self._inner = inner
        self._guard = guard
        self.limits, self.period_s = inner.limits, inner.period_s
        self.speed_scale = 1.0
        self._held_periods = 0

    @property
    def report(self) -> SpaceReport:
        """What is near, and whether it holds the arm."""
        return self._guard.report

    @property
    def held(self) -> str:
        """Why the arm stands, or has been braking for a while, because of space; else empty."""
        braking = self._held_periods * self.period_s >= HELD_AFTER_S
        return self._guard.report.held if braking or self.resting else ""

    @property
    def position(self) -> np.ndarray | None:
        """Last command ``[n]``."""
        return self._inner.position

    @position.setter
    def position(self, value: np.ndarray | None) -> None:
        self._inner.position = value

    @property
    def velocity(self) -> np.ndarray:
        """Velocity ``[n]`` of the last period."""
        return self._inner.velocity

    @property
    def resting(self) -> bool:
        """Whether the last command did not move any joint."""
        return self._inner.resting

    def lag_s(self, now_ns: int) -> float:
        """How far the path is behind the clock."""
        return self._inner.lag_s(now_ns)

    def reset(self, position: np.ndarray) -> None:
        """Start at rest at a measured position ``[n]``, wherever it is."""
        self._inner.reset(position)
        self._guard.reset(np.asarray(position, dtype=np.float64))

    def planning_copy(self) -> Filter:
        """A copy of the filter inside to try out what comes next; see `clear`."""
        return self._inner.planning_copy()

    def clear(self, rows: np.ndarray) -> bool:
        """Whether commands ``[k, n]``, the present one first, are clear."""
        kept = self._guard.report
        clear = not self._guard.problem(rows)
        self._guard.report = kept
        return clear

    def follow(self, strategy: Strategy, now_ns: int) -> np.ndarray | None:
        """Next command ``[n]`` along the path of the chunks; None if no chunk reaches the time."""
        if strategy.path(now_ns) is None or self.position is None:
            return None
        ahead_s = AHEAD_S * max(self._guard.scale * self.speed_scale, 0.1)
        rows = self._inner.ahead(strategy, now_ns, ahead_s)
        trial = self._trial(rows, ahead_s)
        return self._try(trial, trial.follow(strategy, now_ns))

    def steer(self, target: np.ndarray) -> np.ndarray:
        """Next command ``[n]`` towards a target ``[n]`` that is on no path."""
        assert self.position is not None
        reach = self.limits.velocity * AHEAD_S * max(self._guard.scale, 0.1)
        way = np.clip(target - self.position, -reach, reach)
        rows = self.position + np.linspace(0, 1, 5)[:, None] * way
        trial = self._trial(rows, AHEAD_S)
        command = self._try(trial, trial.steer(target))
        assert command is not None
        return command

    def brake(self) -> np.ndarray:
        """Next command ``[n]`` of the stop that was tried out."""
        command = self._inner.brake()
        self._guard.accept(command, "")
        return command

    def _trial(self, rows: np.ndarray, ahead_s: float) -> Filter:
        trial = self._inner.planning_copy()
        trial.speed_scale = self.speed_scale * self._guard.look_ahead(rows, ahead_s)
        return trial

    def _try(self, trial: Filter, command: np.ndarray | None) -> np.ndarray | None:
        if command is None:
            return None
        assert self.position is not None
        held = self._guard.problem(np.vstack([self.position, command, *_stop(trial)]))
        if held:
            command = self._inner.brake()
            self._held_periods += 1
        else:
            self._inner = trial
            self._held_periods = 0
        self._guard.accept(command, held)
        return command


def _stop(motion: Filter) -> list[np.ndarray]:
    """Commands of the stop after the last one, until rest."""
    motion = motion.planning_copy()
    rows: list[np.ndarray] = []
    while not motion.resting and len(rows) < MAX_BRAKING_ROWS:
        rows.append(motion.brake())
    return rows
