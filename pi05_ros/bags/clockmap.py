"""What the bag's clock showed at a moment of this machine's monotonic clock.

The player writes it while it plays; the recorder uses it to log each chunk at the bag time of
its arrival, so that latency (log time - observation stamp) is on one clock. CLOCK_MONOTONIC is
the same in all processes of a machine.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from pathlib import Path

from pi05_ros.small_files import MIB, read_json, write_atomically

TOLERANCE_NS = 200_000


class ClockMap:
    """Straight pieces: from `mono_ns[i]` on the bag clock runs from `clock_ns[i]` at `speed`."""

    def __init__(self, speed: float = 1.0) -> None:
        self.speed = speed
        self._mono: list[int] = []
        self._clock: list[int] = []

    def add(self, mono_ns: int, clock_ns: int) -> None:
        """Say that the clock shows `clock_ns` at `mono_ns`; kept only if it was not known."""
        if self._mono and abs(self.at(mono_ns) - clock_ns) <= TOLERANCE_NS:
            return
        self._mono.append(mono_ns)
        self._clock.append(clock_ns)

    def at(self, mono_ns: int) -> int:
        """Bag clock at a monotonic time (before the first piece: extrapolated)."""
        index = max(bisect_right(self._mono, mono_ns) - 1, 0)
        return self._clock[index] + round((mono_ns - self._mono[index]) * self.speed)

    def __bool__(self) -> bool:
        return bool(self._mono)

    def write(self, path: Path) -> None:
        """Write as JSON, in one step."""
        data = {"speed": self.speed, "mono_ns": self._mono, "clock_ns": self._clock}
        write_atomically(path, json.dumps(data))

    @classmethod
    def read(cls, path: Path) -> ClockMap:
        """Read what `write` wrote; an empty map if the file is not there."""
        clock_map = cls()
        if path.is_file():
            data = read_json(path, 256 * MIB)
            clock_map.speed = float(data["speed"])
            clock_map._mono = [int(value) for value in data["mono_ns"]]
            clock_map._clock = [int(value) for value in data["clock_ns"]]
        return clock_map
