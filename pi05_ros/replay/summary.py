"""Figures of one replay: chunk rate, latency percentiles, skipped ticks and their reasons."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pi05_ros.bags.chunk_record import ChunkRecord

PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class Spread:
    """Percentiles of a sample in milliseconds; NaN if there is none."""

    p50: float
    p95: float
    p99: float
    maximum: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float] | np.ndarray) -> Spread:
        """Percentiles by linear interpolation; NaN values are left out."""
        array = np.asarray(values, dtype=np.float64)
        array = array[np.isfinite(array)]
        if array.size == 0:
            return cls(*(float("nan"),) * 4, 0)
        p50, p95, p99 = (float(np.percentile(array, q)) for q in PERCENTILES)
        return cls(p50, p95, p99, float(np.max(array)), int(array.size))

    def text(self) -> str:
        """`p50 / p95 / p99 / max` in milliseconds."""
        if not self.count:
            return "no samples"
        shown = {"p50": self.p50, "p95": self.p95, "p99": self.p99, "max": self.maximum}
        return "  ".join(f"{name} {value:.1f}" for name, value in shown.items()) + " ms"


@dataclass(frozen=True)
class ReplaySummary:
    """What a replay gave.

    Attributes:
        bag: what was replayed.
        mode: "live" or "offline".
        rate_hz: asked rate.
        active_s: seconds of bag time during which all inputs were there.
        chunks: number of chunks received.
        expected: rate times active time.
        skipped: reason -> ticks that published nothing.
        latency_ms: oldest used sample's stamp -> chunk received (live) on the bag's clock.
        inference_ms: the policy's call as measured by the node.
        notes: sentences that a reader must know.
        assumptions: facts about the policy that no file told.
        doubts: why its numbers may mean something else than is taken here.

    """

    bag: str
    mode: str
    rate_hz: float
    active_s: float
    chunks: int
    expected: float
    skipped: dict[str, int]
    latency_ms: Spread
    inference_ms: Spread
    policy: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()

    @property
    def measured_hz(self) -> float:
        """Chunks per second of active bag time."""
        return self.chunks / self.active_s if self.active_s > 0 else 0.0

    def rate_kept(self, share: float) -> bool:
        """True if at least that share of the asked chunks arrived."""
        return self.chunks > 0 and self.chunks >= share * self.expected

    def lines(self) -> list[str]:
        """Lines for people."""
        skipped = ", ".join(f"{count} {reason}" for reason, count in self.skipped.items())
        lines = [
            f"chunks          {self.chunks} in {self.active_s:.1f} s of bag = "
            f"{self.measured_hz:.2f} Hz (asked {self.rate_hz:g} Hz)",
        ]
        if self.mode == "live":
            lines.append(
                f"latency         {self.latency_ms.text()}  (sample stamp -> chunk received)"
            )
        lines.append(f"inference       {self.inference_ms.text()}")
        lines.append(f"skipped ticks   {skipped or 'none'}")
        lines += [f"note            {note}" for note in self.notes]
        lines += [f"assumed         {assumption}" for assumption in self.assumptions]
        lines += [f"doubt           {doubt}" for doubt in self.doubts]
        return lines

    def write(self, path: Path) -> None:
        """Write as JSON (NaN as null)."""
        data = asdict(self) | {"measured_hz": self.measured_hz}
        path.write_text(json.dumps(_plain(data), indent=2) + "\n", encoding="utf-8")


def latencies_ms(chunks: Sequence[ChunkRecord]) -> np.ndarray:
    """Stamp of the oldest used sample -> chunk received, per chunk."""
    return np.asarray([(c.received_ns - c.observation_ns) / 1e6 for c in chunks])


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not np.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
