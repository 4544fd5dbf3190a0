"""Whether the clock that stamps are compared with goes on at all."""

from __future__ import annotations

from pi05_ros.runtime.inputs.observation_buffer import NS


class ClockWatch:
    """Compares readings of the clock with a monotonic one."""

    def __init__(self) -> None:
        self._now_ns: int | None = None
        self._since_ns = 0

    def problem(self, now_ns: int, mono_ns: int, limit_s: float) -> str:
        """Note one reading; says what is wrong with the clock, empty if nothing is.

        Args:
            now_ns: the clock.
            mono_ns: monotonic time.
            limit_s: how long the clock may show the same time.

        """
        if now_ns != self._now_ns:
            self._now_ns, self._since_ns = now_ns, mono_ns
        if now_ns <= 0:
            return "no time yet: use_sim_time is set and nothing came on /clock"
        still_s = (mono_ns - self._since_ns) / NS
        if still_s > limit_s:
            return f"the clock has stood still for {still_s:.1f} s (is /clock published?)"
        return ""
