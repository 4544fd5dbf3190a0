"""Notices joints that do not follow their commands."""

from __future__ import annotations

from collections import deque

import numpy as np

from pi05_ros.execution.executor_settings import ExecutorSettings
from pi05_ros.execution.limit_sources.joint_limits import JointLimits

WINDOW_S = 0.5
"""Commands of this past are compared: a controller may follow with so much delay."""


class TrackingWatch:
    """Compares measured joints with the range of the commands of the last half second.

    Args:
        limits: of all joints.
        tolerance: how far ``[n]`` a joint may be outside that range.
        duration_s: for how long at a stretch; 0 watches nothing.
        ignored: joints that what they hold may keep away.

    """

    def __init__(
        self,
        limits: JointLimits,
        tolerance: np.ndarray,
        duration_s: float,
        ignored: tuple[str, ...] = (),
    ) -> None:
        self._limits = limits
        self._tolerance = tolerance
        self._duration_ns = int(duration_s * 1e9)
        self._counts = np.array([name not in ignored for name in limits.names])
        self._commands: deque[tuple[int, np.ndarray]] = deque()
        self._away_ns = np.full(len(limits.names), -1, dtype=np.int64)

    @staticmethod
    def of(limits: JointLimits, settings: ExecutorSettings) -> TrackingWatch:
        """The watch that settings ask for."""
        tolerance = limits.velocity * settings.following_lag_s
        return TrackingWatch(limits, tolerance, settings.tracking_error_time_s, settings.gripping)

    def clear(self) -> None:
        """Forget the past: commanding starts anew."""
        self._commands.clear()
        self._away_ns[:] = -1

    def check(self, command: np.ndarray, measured: np.ndarray | None, now_ns: int) -> str:
        """Take note of a command ``[n]``; what is wrong with a joint in words, or empty."""
        if not self._duration_ns:
            return ""
        self._commands.append((now_ns, command))
        while now_ns - self._commands[0][0] > WINDOW_S * 1e9:
            self._commands.popleft()
        if measured is None:
            return ""
        past = np.stack([positions for _, positions in self._commands])
        error = self._limits.difference(measured, command)
        low = past.min(axis=0) - command - self._tolerance
        high = past.max(axis=0) - command + self._tolerance
        away = ((error < low) | (error > high)) & self._counts
        self._away_ns = np.where(away, np.where(self._away_ns < 0, now_ns, self._away_ns), -1)
        late = away & (now_ns - self._away_ns >= self._duration_ns)
        for i in np.flatnonzero(late):
            return (
                f"{self._limits.names[i]} does not follow: {abs(error[i]):.3f} from its command "
                f"for {(now_ns - self._away_ns[i]) / 1e9:.1f} s"
            )
        return ""
