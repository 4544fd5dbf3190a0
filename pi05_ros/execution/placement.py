"""Where the arm is, compared with its commands and with its limits."""

from __future__ import annotations

import numpy as np

from pi05_ros.execution.executor_settings import ExecutorSettings
from pi05_ros.execution.limit_sources.joint_limits import JointLimits

MOVED_AFTER_S = 0.5
"""An arm at rest that is elsewhere for this long was moved; braking takes less to settle."""
START_SLACK = 0.02
"""Share of a joint's range by which it may lie outside its limits when commanding starts."""


def elsewhere(
    limits: JointLimits,
    settings: ExecutorSettings,
    command: np.ndarray | None,
    measured: np.ndarray | None,
) -> str:
    """Which joint is not where it is commanded, and how far off; empty if none is."""
    if command is None or measured is None:
        return ""
    lag = np.abs(limits.difference(measured, command))
    far = lag > limits.velocity * settings.following_lag_s
    for i, name in enumerate(limits.names):
        if far[i] and name not in settings.gripping:
            return f"{name} is {lag[i]:.3f} from where it is held"
    return ""


def outside_limits(limits: JointLimits, measured: np.ndarray) -> str:
    """What is wrong with starting here; a little outside is where gravity leaves an arm."""
    for i, name in enumerate(limits.names):
        lower, upper = limits.lower[i], limits.upper[i]
        slack = START_SLACK * (upper - lower)
        if not lower - slack <= measured[i] <= upper + slack:
            return (
                f"{name} is at {measured[i]:.3f}, outside its limits {lower:.3f} to "
                f"{upper:.3f}; move it back by hand"
            )
    return ""


class RestWatch:
    """Says when an arm at rest is to be released: others move it, or may be moving it."""

    def __init__(self, settings: ExecutorSettings) -> None:
        self._settings = settings
        self._away_ns: int | None = None  # since when it is elsewhere

    def clear(self) -> None:
        """It is not at rest."""
        self._away_ns = None

    def check(self, away: str, now_ns: int, age_s: float) -> str:
        """Why to release it, or empty.

        Args:
            away: which joint is elsewhere, empty if none is.
            now_ns: time.
            age_s: age of the joint states.

        """
        if age_s > self._settings.max_state_age_s:
            # Twice: by then an arm that lags behind its commands has come to rest as well.
            late = age_s > 2 * self._settings.max_state_age_s
            return "joint states were missing" if late else ""
        if not away:
            self._away_ns = None
            return ""
        self._away_ns = now_ns if self._away_ns is None else self._away_ns
        if now_ns - self._away_ns >= MOVED_AFTER_S * 1e9:
            return f"{away}: it was moved, or cannot get there"
        return ""
