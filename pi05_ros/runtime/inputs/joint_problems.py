"""Why merged joint states cannot be used now, in words."""

from __future__ import annotations

from pi05_ros.runtime.inputs.joint_states import JointStateMerger

NS = 1_000_000_000


def joint_problem(
    joints: JointStateMerger, now_ns: int, on_change_ns: int
) -> tuple[str, str] | None:
    """Code and text of what is wrong beside age and skew: publishers disagree, a value is old.

    Args:
        joints: merged so far.
        now_ns: the clock of the stamps.
        on_change_ns: oldest value of a joint that is published on change.

    """
    for conflict in joints.conflicts(now_ns):
        return "conflict", str(conflict)
    for joint, stamp_ns in joints.on_change_stamps().items():
        if now_ns - stamp_ns > on_change_ns:
            return "stale", (
                f"{joint} was published {in_words(now_ns - stamp_ns)} ago (limit "
                f"{in_words(on_change_ns)} of max_on_change_age_s)"
            )
    return None


def lagging_joint(joints: JointStateMerger) -> str:
    """Which joint is the oldest, if others are newer."""
    merged, oldest = joints.merged(), joints.oldest()
    if merged is None or oldest is None or max(merged.stamps_ns) == oldest[1]:
        return ""
    lag_ns = max(merged.stamps_ns) - oldest[1]
    return (
        f"; {oldest[0]} lags {in_words(lag_ns)} behind other joints; if it is published only when "
        "it changes, name it in on_change_joints"
    )


def in_words(nanoseconds: int) -> str:
    """A duration in ms or s."""
    if abs(nanoseconds) >= 10 * NS:
        return f"{nanoseconds / NS:.1f} s"
    return f"{nanoseconds / 1e6:.0f} ms"
