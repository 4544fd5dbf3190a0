"""When an inference may start: one per tick, aligned with the next frame of every camera.

A tick makes an inference due. It starts once every camera has delivered since the tick, so that
the images are as new as they can be, or when the wait is over. The wait never exceeds half a
period, which keeps the rate. A tick that finds the one before it still waiting is lost; the
count of those is the measure of overload.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Pacer:
    """State between a tick and the start of its inference; times are nanoseconds.

    Attributes:
        due_since: tick that waits for its inference, None if there is none.
        skipped: ticks lost because the one before them had not started.

    """

    due_since: int | None = None
    skipped: int = 0

    def tick(self, mono_ns: int) -> None:
        """Note that the timer fired."""
        if self.due_since is None:
            self.due_since = mono_ns
        else:
            self.skipped += 1

    def may_start(self, mono_ns: int, wait_ns: int, complete: bool) -> bool:
        """Whether the due inference should start now."""
        if self.due_since is None:
            return False
        return complete or mono_ns - self.due_since >= wait_ns

    def started(self) -> None:
        """Note that the due inference was started, or given up for lack of input."""
        self.due_since = None


def wait_ns(camera_wait_s: float, rate_hz: float) -> int:
    """Longest wait for camera frames in nanoseconds."""
    return int(min(camera_wait_s, 0.5 / rate_hz) * 1e9)
