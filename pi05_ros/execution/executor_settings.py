"""What the executor is told once: its period, time limits and what it takes for granted."""

from __future__ import annotations

from dataclasses import dataclass, field

from pi05_ros.execution.interlocks import InterlockSettings

LIMITING = ("path", "joint")
JERK_LIMITING = ("path", "ruckig", "off")


@dataclass(frozen=True)
class ExecutorSettings:
    """Time limits of the executor, and what it takes for granted.

    Those with the name of a parameter are described in docs/executor.md.

    Attributes:
        period_s: control period.
        gripping: joints that what they hold may keep far from their commands; they do not count.
        settle_s: commands start only after joint states have been coming for this long.
        interlocks: permissions that are needed.
        random_weights_allowed: chunks of random weights are refused unless this is set, which
            is only right for a simulation.

    """

    period_s: float = 0.05
    max_chunk_age_s: float = 1.0
    max_future_s: float = 0.2
    max_chunk_s: float = 10.0
    max_state_age_s: float = 0.5
    following_lag_s: float = 0.1
    gripping: tuple[str, ...] = ()
    settle_s: float = 0.0
    limiting: str = "path"
    jerk_limiting: str = "path"
    speed_scale_max: float = 1.25
    blend_in_s: float = 0.0
    tracking_error_time_s: float = 0.0
    teleop_timeout_s: float = 0.5
    command_delay_s: float = 0.0
    interlocks: InterlockSettings = field(default_factory=InterlockSettings)
    random_weights_allowed: bool = False
