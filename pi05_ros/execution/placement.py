"""Where the arm is, compared with its commands and with its limits."""

from __future__ import annotations

import numpy as np

from pi05_ros.execution.executor_settings import ExecutorSettings
from pi05_ros.execution.limit_sources.joint_limits import JointLimits

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
