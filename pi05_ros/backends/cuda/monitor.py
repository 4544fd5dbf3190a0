"""Supervision of 8-bit inputs at run time: now and then a call records magnitudes.

Recording costs atomics in every kernel, so it has graphs of its own and happens in every N-th
call. What was found comes back through a copy that nobody waits for; it is looked at in a later
call or when somebody asks.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from pi05_ros.backends.cuda import scales
from pi05_ros.backends.cuda.buffers import Buffers
from pi05_ros.backends.cuda.graphs import Graphs
from pi05_ros.backends.cuda.scales import Saturation
from pi05_ros.backends.cuda.weights import Weights
from pi05_ros.backends.engine import EngineHealth

log = logging.getLogger("pi05_ros.cuda")

RECENT = 10  # monitored calls that a warning is kept for


class _Transfer:
    """Host copy of the magnitudes and scales of one part's sites, on its way or arrived."""

    def __init__(self, sites: slice, count: int, device: torch.device) -> None:
        self.sites = sites
        self.event = torch.cuda.Event() if device.type == "cuda" else None
        self.host = torch.empty(2, count, pin_memory=self.event is not None)
        self.under_way = False

    def start(self, amax: Tensor, scale: Tensor) -> None:
        """Enqueue the copy behind the call, and clear the cells for the next one."""
        self.host[0].copy_(amax[self.sites], non_blocking=True)
        self.host[1].copy_(scale[self.sites], non_blocking=True)
        amax[self.sites].zero_()
        if self.event is not None:
            self.event.record()
        self.under_way = True

    def arrived(self) -> bool:
        """Whether there is something to look at, which may be asked from any thread."""
        return self.under_way and (self.event is None or self.event.query())


class Monitor:
    """Counts calls, says which of them record, and keeps what they found.

    Args:
        every: every how many calls of a part one is recorded; 0 switches it off.
        sites: names of the sites in the order of `amax`.
        amax: largest magnitude of each site, float32 on the device.
        scale: scale of each site.
        inputs: kind of each site's input, as in `Weights`.

    """

    def __init__(
        self,
        every: int,
        sites: Sequence[str],
        amax: Tensor,
        scale: Tensor,
        inputs: Sequence[str],
    ) -> None:
        self.every = every
        self._sites = list(sites)
        self._largest = scales.limits(inputs)
        self.kind = "int8" if "int8" in inputs else "fp8"
        self._amax, self._scale = amax, scale
        first = next((i for i, s in enumerate(sites) if s.startswith("denoise.")), len(sites))
        ranges = {"prefill": slice(0, first), "denoise": slice(first, len(sites))}
        self._transfers = {
            part: _Transfer(span, span.stop - span.start, amax.device)
            for part, span in ranges.items()
        }
        self._calls = dict.fromkeys(ranges, 0)
        self.recorded = 0
        self.saturated = 0
        self._recent: deque[list[Saturation]] = deque(maxlen=RECENT)
        self._unreported: dict[str, Saturation] = {}
        self._lock = threading.Lock()  # diagnostics ask from a thread of their own

    @classmethod
    def of(cls, every: int, weights: Weights, buffers: Buffers) -> Monitor:
        """For an engine's sites; off where no input is quantized."""
        if not any(weights.inputs):
            every = 0
        return cls(every, weights.sites, buffers.amax, buffers.scales, weights.inputs)

    def due(self, parts: Sequence[str]) -> bool:
        """Count a call of "prefill", "denoise" or both; whether it is to record."""
        self.poll()
        if not self.every:
            return False
        for part in parts:
            self._calls[part] += 1
        return self._calls[parts[-1]] % self.every == 0

    def drain(self, parts: Sequence[str]) -> None:
        """Enqueue the device-to-host copy of this call's statistics."""
        for part in parts:
            transfer = self._transfers[part]
            if not transfer.under_way:
                transfer.start(self._amax, self._scale)

    def poll(self) -> None:
        """Look at copies that have arrived; waits for nothing."""
        with self._lock:
            for transfer in self._transfers.values():
                if transfer.arrived():
                    amax, scale = transfer.host
                    span = transfer.sites
                    found = scales.saturated(self._sites[span], amax, scale, self._largest[span])
                    transfer.under_way = False
                    self._take(found)

    def report(self) -> list[Saturation]:
        """Sites found out of range since the last report, worst first; waits for copies."""
        for transfer in self._transfers.values():
            if transfer.under_way and transfer.event is not None:
                transfer.event.synchronize()
        self.poll()
        with self._lock:
            rows = sorted(self._unreported.values(), key=lambda row: row.limit / row.largest)
            self._unreported.clear()
        return rows

    def health(self, source: str) -> EngineHealth:
        """Counters, and a warning while one of the last monitored calls left the range.

        `source`: where the scales come from.
        """
        self.poll()
        values = {f"{self.kind}_scales": source}
        if not self.every:
            return EngineHealth(values | {f"{self.kind}_monitor": "off"})
        values |= {
            f"{self.kind}_monitored_calls": str(self.recorded),
            f"{self.kind}_saturated_calls": str(self.saturated),
        }
        with self._lock:
            recent = list(self._recent)
        found = [row for rows in recent for row in rows]
        if not found:
            return EngineHealth(values)
        worst = min(found, key=lambda row: row.limit / row.largest)
        calls = sum(bool(rows) for rows in recent)
        values[f"{self.kind}_worst_site"] = worst.site
        return EngineHealth(
            values,
            f"{self.kind.upper()} saturation in {calls} of the last {len(recent)} monitored "
            f"calls, worst at {worst.site} ({worst.largest:.3g} > {worst.limit:.3g}); renew the "
            "scales with pi05 calibrate",
        )

    def _take(self, found: list[Saturation]) -> None:
        self.recorded += 1
        self.saturated += bool(found)
        first = not any(self._recent)  # not again while calls saturate: health says it
        self._recent.append(found)
        for row in found:
            known = self._unreported.get(row.site)
            if known is None or row.largest > known.largest:
                self._unreported[row.site] = row
        for row in found[:3] if first else ():
            log.warning(
                "%s saturation at %s: %.3g > %.3g",
                self.kind.upper(), row.site, row.largest, row.limit,
            )  # fmt: skip


class Recording(Protocol):
    """Stages whose kernels can record (`stages.stage.Stage`)."""

    def recording(self) -> AbstractContextManager[None]:
        """Kernels launched within record."""


class GraphRunner:
    """Runs launch sequences as graphs; now and then, or while observing, in recording form."""

    def __init__(self, graphs: Graphs, monitor: Monitor, stages: Recording) -> None:
        self._graphs = graphs
        self._monitor = monitor
        self._stages = stages
        self._observing = False

    @contextlib.contextmanager
    def observing(self) -> Iterator[None]:
        """All sequences run within record (for a calibration) and are not monitored."""
        self._observing = True
        try:
            yield
        finally:
            self._observing = False

    def run(self, key: Hashable, launch: Callable[[], None], parts: Sequence[str]) -> None:
        """Replay the graph of `key`, or capture it; `parts` as for `Monitor.due`."""

        def recording() -> None:
            with self._stages.recording():
                launch()

        if self._observing:
            self._graphs.run((key, "observing"), recording)
            return
        due = self._monitor.due(parts)
        self._graphs.run(key, launch, recording if self._monitor.every else None, due)
        if due:
            self._monitor.drain(parts)
