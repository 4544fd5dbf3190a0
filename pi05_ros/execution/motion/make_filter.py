"""Chooses what keeps commands within the limits."""

from __future__ import annotations

import numpy as np

from pi05_ros.errors import InvalidValueError
from pi05_ros.execution.executor_settings import JERK_LIMITING, LIMITING, ExecutorSettings
from pi05_ros.execution.limit_sources.joint_limits import JointLimits
from pi05_ros.execution.motion.jerk_path_filter import JerkPathFilter
from pi05_ros.execution.motion.motion_filter import MotionFilter
from pi05_ros.execution.motion.path_filter import PathFilter
from pi05_ros.execution.motion.ruckig_filter import RuckigFilter, tracked_limits

Filter = MotionFilter | PathFilter | JerkPathFilter | RuckigFilter


def make_filter(limits: JointLimits, settings: ExecutorSettings) -> Filter:
    """What keeps commands within the limits, as the settings say.

    Raises:
        InvalidValueError: a setting that is not known, or two that do not go together.

    """
    for name, value, accepted in (
        ("limiting", settings.limiting, LIMITING),
        ("jerk_limiting", settings.jerk_limiting, JERK_LIMITING),
    ):
        if value not in accepted:
            raise InvalidValueError(f"{name} {value!r}; accepted: {', '.join(accepted)}")
    jerky = settings.jerk_limiting != "off" and bool(np.isfinite(limits.jerk_limits).any())
    if settings.jerk_limiting == "ruckig":
        return RuckigFilter(_plain(tracked_limits(limits), settings), limits, settings.period_s)
    if not jerky:
        return _plain(limits, settings)
    if settings.limiting == "joint":
        raise InvalidValueError(
            "limiting joint keeps no jerk limits, but joints have max_jerk; "
            "set jerk_limiting to ruckig, or to off"
        )
    return JerkPathFilter(limits, settings.period_s, settings.speed_scale_max, settings.blend_in_s)


def _plain(limits: JointLimits, settings: ExecutorSettings) -> MotionFilter | PathFilter:
    """Velocity and acceleration limits only."""
    if settings.limiting == "joint":
        return MotionFilter(limits, settings.period_s)
    return PathFilter(limits, settings.period_s, settings.speed_scale_max, settings.blend_in_s)
