"""What the executor is told once: its period, time limits and what it takes for granted."""

from __future__ import annotations

from dataclasses import dataclass, field

from pi05_ros.execution.interlocks import InterlockSettings

LIMITING = ("path", "joint")
JERK_LIMITING = ("path", "ruckig", "off")


@dataclass(frozen=True)
class ExecutorSettings:
    """Time limits of the executor, and what it takes for granted.

    Attributes:
        period_s: control period.
        max_chunk_age_s: chunks whose step 0 lies farther back are refused on arrival.
        max_future_s: chunks whose step 0 lies farther ahead are refused (clocks disagree).
        max_chunk_s: chunks whose steps last longer in all are refused.
        max_state_age_s: joint states older than this stop the motion.
        following_lag_s: how far an arm may be from its commands, as a time at full velocity; one
            that is farther has been moved by somebody else.
        gripping: joints that what they hold may keep far from their commands; they do not count.
        settle_s: commands start only after joint states have been coming for this long.
        limiting: "path" slows time along the path where limits bind; "joint" limits each joint on
            its own.
        jerk_limiting: what keeps jerk limits, where joints have some: "path" slows time along the
            path, "ruckig" tracks it with Ruckig, "off" keeps none.
        speed_scale_max: how fast the path catches up with the clock, seconds per second.
        blend_in_s: with limiting path, shortest time to get from rest, or from teleoperation,
            onto a chunk's path.
        tracking_error_time_s: a joint that is farther from its commands than following_lag_s
            allows, for this long, is a fault; 0 watches nothing.
        teleop_timeout_s: teleoperation that is silent for this long hands the arm back.
        command_delay_s: chunks are followed so much earlier than their times say.
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
