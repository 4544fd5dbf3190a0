"""Joint targets over time, the way a trajectory controller follows what it is sent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pi05_ros.errors import InvalidValueError

MAX_POSITION = 1e6
"""Larger values (rad or share of the gripper) are nonsense, and differences of them overflow."""


class JointPlan:
    """Positions over time per joint, linear from where the joint's target is now.

    Joints are independent, so that arm and gripper may be commanded by different messages.
    """

    def __init__(self, names: Sequence[str], positions: np.ndarray) -> None:
        self.names = tuple(names)
        self._times = [np.zeros(1) for _ in self.names]
        self._values = [np.array([float(p)]) for p in positions]

    def command(
        self, names: Sequence[str], start_s: float, times_s: np.ndarray, positions: np.ndarray
    ) -> None:
        """Replace the plan of some joints.

        Args:
            names: joints, all known, each once.
            start_s: time from which ``times_s`` count.
            times_s: increasing, at least one, ``[P]``.
            positions: ``[P, len(names)]``, within +-MAX_POSITION.

        Raises:
            ValueError: no, unknown or repeated joints, wrong shapes, values that are not finite
                or too large, times that do not increase.

        """
        unknown = sorted(set(names) - set(self.names))
        if unknown:
            raise InvalidValueError(f"unknown joints {unknown}; accepted: {', '.join(self.names)}")
        if not names or len(set(names)) != len(names):
            raise InvalidValueError(f"joints {list(names)}; accepted: one or more, each once")
        times = np.asarray(times_s, dtype=np.float64)
        table = np.asarray(positions, dtype=np.float64)
        if times.ndim != 1 or not times.size or table.shape != (times.size, len(names)):
            raise InvalidValueError(
                f"{table.shape} positions for {times.size} times, {len(names)} names"
            )
        if not (np.isfinite(table).all() and np.isfinite(times).all()):
            raise InvalidValueError("command holds NaN or infinite values")
        if (np.abs(table) > MAX_POSITION).any():
            raise InvalidValueError(f"command holds positions beyond {MAX_POSITION:g}")
        if (np.diff(times) <= 0).any() or times[0] < 0:
            raise InvalidValueError("times from start must be positive and increase")
        now = self.at(start_s)
        for column, name in enumerate(names):
            i = self.names.index(name)
            first = [now[i]] if times[0] > 0 else []
            head = [start_s] if times[0] > 0 else []
            self._times[i] = np.concatenate([head, start_s + times])
            self._values[i] = np.concatenate([first, table[:, column]])

    def at(self, now_s: float) -> np.ndarray:
        """Targets ``[n]`` at a time; the ends are held."""
        return np.array(
            [
                np.interp(now_s, times, values)
                for times, values in zip(self._times, self._values, strict=True)
            ]
        )
