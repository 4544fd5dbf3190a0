"""Reasons for which nothing may be followed: stops, halts, faults, permission, heartbeat."""

from __future__ import annotations

from dataclasses import dataclass

from pi05_ros.execution.command import FAULT, STOPPED


@dataclass(frozen=True)
class InterlockSettings:
    """Which permissions are needed.

    Attributes:
        require_enable: nothing is followed before `Interlocks.enable`.
        heartbeat_timeout_s: longest silence of the heartbeat; 0 needs none.

    """

    require_enable: bool = False
    heartbeat_timeout_s: float = 0.0


class Interlocks:
    """Everything that has to be fulfilled before the arm may follow.

    A stop and a fault last until `resume`; a halt and a missing permission until they are taken
    back. A heartbeat that falls silent is a fault, so that an unsteady network does not make the
    arm stop and go.

    Attributes:
        enabled: permission was given, or none is needed.
        halted: a halt is set.
        stopped: why `stop` was called, else empty.
        fault: what went wrong, else empty.

    """

    def __init__(self, settings: InterlockSettings) -> None:
        self._settings = settings
        self._beat_ns: int | None = None
        self.enabled = not settings.require_enable
        self.halted = False
        self.stopped = ""
        self.fault = ""

    def beat(self, now_ns: int) -> None:
        """Take note of a heartbeat."""
        self._beat_ns = now_ns

    def rewind(self, now_ns: int) -> None:
        """The clock jumped back: silence counts from now."""
        if self._beat_ns is not None:
            self._beat_ns = now_ns

    def resume(self) -> None:
        """End a stop and a fault; halts and missing permissions stay."""
        self.stopped = self.fault = ""

    def check(self, now_ns: int) -> str:
        """Why nothing may be followed, else empty; notices a heartbeat that has fallen silent."""
        limit_s = self._settings.heartbeat_timeout_s
        if limit_s and self._beat_ns is not None and now_ns - self._beat_ns > limit_s * 1e9:
            self.fault = self.fault or f"the heartbeat was silent for more than {limit_s:g} s"
            self._beat_ns = None
        return self.reason

    @property
    def mode(self) -> str:
        """What the arm is in while there is a reason."""
        return FAULT if self.fault else STOPPED

    @property
    def reason(self) -> str:
        """The first reason that holds: fault, halt, stop, permission, heartbeat."""
        if self.fault:
            return f"{self.fault}; call resume when that is settled"
        if self.halted:
            return "halted"
        if self.stopped:
            return self.stopped
        if not self.enabled:
            return "not enabled"
        if self._settings.heartbeat_timeout_s and self._beat_ns is None:
            return "no heartbeat"
        return ""
