"""What the executor node says about itself: mode, reasons with their ages, counters."""

from __future__ import annotations

from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from pi05_ros.execution.command import FAULT, STOPPED
from pi05_ros.execution.executor import (
    FOLLOWING,
    HOLDING,
    TELEOPERATED,
    WAITING,
    Command,
    Executor,
)
from pi05_ros.msg import ExecutorStatus
from pi05_ros.runtime.inputs.conversion import split_ns

LOW_CLOCK = "no time has come on /clock yet (use_sim_time is set)"
_MODES = {
    WAITING: ExecutorStatus.MODE_WAITING,
    FOLLOWING: ExecutorStatus.MODE_FOLLOWING,
    HOLDING: ExecutorStatus.MODE_HOLDING,
    STOPPED: ExecutorStatus.MODE_STOPPED,
    FAULT: ExecutorStatus.MODE_FAULT,
    TELEOPERATED: ExecutorStatus.MODE_TELEOPERATED,
}
STILL_CLOCK = "the clock stands still: nothing is commanded"


class ReasonAge:
    """Since when a mode and reason hold, on a clock that always runs."""

    def __init__(self) -> None:
        self._key: tuple[str, str] | None = None
        self._since_s = 0.0

    def update(self, mode: str, reason: str, now_s: float) -> float:
        """Seconds for which mode and reason have been these."""
        if (mode, reason) != self._key:
            self._key, self._since_s = (mode, reason), now_s
        return now_s - self._since_s


class ExecutorClockWatch:
    """Notices that the node's clock stands still, comparing it with one that always runs."""

    def __init__(self) -> None:
        self._last_ns: int | None = None

    def check(self, now_ns: int) -> str:
        """Empty, or what is wrong; call it about once per second."""
        still = now_ns == self._last_ns
        self._last_ns = now_ns
        if not still:
            return ""
        return STILL_CLOCK if now_ns else LOW_CLOCK


def ago(then_ns: int | None, now_ns: int) -> str:
    """Age in seconds as text; empty if there is no time or the clock was set since."""
    return f"{(now_ns - then_ns) / 1e9:.1f}" if then_ns is not None and now_ns >= then_ns else ""


def executor_diagnostics(
    name: str,
    core: Executor,
    command: Command,
    now_ns: int,
    reason_age_s: float,
    unheard: str,
    values: dict[str, Any],
) -> DiagnosticArray:
    """The diagnostics message.

    Args:
        name: fully qualified name of the node.
        core: counters are read from it.
        command: last command.
        now_ns: time on the node's clock.
        reason_age_s: for how long mode and reason have been these.
        unheard: publishers that the node cannot hear, and controllers that cannot hear it.
        values: what only the node knows, added at the end.

    """
    following = command.mode == FOLLOWING
    outside = core.watch.outside_now(now_ns)
    message = command.mode if following else f"{command.mode}: {command.reason}"
    if outside:
        message += f"; targets wholly outside the limits: {outside}"
    if unheard:
        message += f"; {unheard}"
    shown = {
        "mode": command.mode,
        "reason": command.reason,
        "reason_age_s": f"{reason_age_s:.1f}",
        "speed_scale": core.speed_scale,
        "hold_chunks": core.hold_chunks or core.hold_until_enabled,
        "lag_ms": f"{1e3 * core.filter.lag_s(now_ns):.0f}",
        "intervention": core.intervention,
        **_space_values(core),
        "accepted": core.accepted,
        "clipped_to_limits": core.clipped,
        **{f"clipped_to_limits.{joint}": n for joint, n in sorted(core.watch.clipped.items())},
        "targets_outside_limits": outside,
        "targets_at_one_end": core.watch.stuck(),
        "shortened": core.gate.shortened,
        "last_chunk_ends_early": core.gate.cut,
        "refused": core.refused.total(),
        **{f"refused.{reason.replace(' ', '_')}": n for reason, n in core.refused.items()},
        "last_refused": core.last_refusal,
        "last_refused_age_s": ago(core.gate.last_refusal_ns, now_ns),
        "clock_jumps": core.clock_jumps,
        "unheard": unheard,
        **values,
    }
    good = command.mode in (FOLLOWING, TELEOPERATED) and not outside and not unheard
    level = DiagnosticStatus.OK if good else DiagnosticStatus.WARN
    if command.mode == FAULT:
        level = DiagnosticStatus.ERROR
    status = DiagnosticStatus(
        level=level,
        name=f"{name}: executor",
        message=message,
        hardware_id=", ".join(core.joints),
        values=[KeyValue(key=key, value=str(value)) for key, value in shown.items()],
    )
    return DiagnosticArray(status=[status])


def status_message(
    core: Executor, command: Command, now_ns: int, reason_age_s: float
) -> ExecutorStatus:
    """The typed status; arguments as of `executor_diagnostics`."""
    sec, nanosec = split_ns(max(0, now_ns))
    locks, measured, commanded = core.interlocks, core.measured, core.filter.position
    message = ExecutorStatus(
        mode=_MODES[command.mode],
        reason=command.reason,
        reason_age_s=float(reason_age_s),
        policy_id=core.gate.policy_id or "",
        chunk_id=max(0, core.gate.chunk_id),
        lag_s=core.filter.lag_s(now_ns),
        stopped=bool(locks.stopped),
        halted=locks.halted,
        enabled=locks.enabled,
        fault=locks.fault,
        speed_scale=float(core.speed_scale),
        intervention=core.intervention,
        joints=list(core.joints),
        commanded=[] if commanded is None else commanded.tolist(),
        measured=[] if measured is None else measured.tolist(),
    )
    if (space := core.space) is not None:
        message.space_watched = True
        message.space_scale = float(space.scale)
        message.space_pair = list(space.pair)
        message.space_distance = float(space.distance)
        message.space_frame = space.frame
        message.space_at = list(space.at)
        message.space_held = space.held
    message.stamp.sec, message.stamp.nanosec = sec, nanosec
    return message


def _space_values(core: Executor) -> dict[str, Any]:
    """What is near the arm, for people; empty where space is not watched."""
    space = core.space
    if space is None:
        return {}
    x, y, z = space.at
    return {
        "space_scale": f"{space.scale:.2f}",
        "space_nearest": " / ".join(space.pair),
        "space_distance_m": f"{space.distance:.3f}",
        "space_at_m": f"({x:.3f}, {y:.3f}, {z:.3f}) in {space.frame}",
        "space_held": space.held,
    }
