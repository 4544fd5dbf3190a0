"""Device times of the parts of the last call, between CUDA events."""

from __future__ import annotations

import math

import torch

from pi05_ros.backends.engine import EngineTimings

NAN = float("nan")


class Stopwatch:
    """Named marks in the stream; the time between two of them once both have passed."""

    def __init__(self, device: torch.device) -> None:
        self._on = device.type == "cuda"
        self._events: dict[str, torch.cuda.Event] = {}
        self._set: set[str] = set()

    def mark(self, name: str) -> None:
        """Record a mark behind what was enqueued."""
        if not self._on:
            return
        if name not in self._events:
            self._events[name] = torch.cuda.Event(enable_timing=True)
        self._events[name].record()
        self._set.add(name)

    def forget(self, *names: str) -> None:
        """Marks of an earlier call that must not be read any more."""
        self._set.difference_update(names)

    def ms(self, start: str, end: str) -> float:
        """Milliseconds between two marks; NaN where one is missing or still ahead."""
        if not {start, end} <= self._set:
            return NAN
        first, last = self._events[start], self._events[end]
        return first.elapsed_time(last) if first.query() and last.query() else NAN

    def timings(self) -> EngineTimings:
        """Times of the marks that `CudaEngine` sets, of its last call."""
        whole = self.ms("sample", "sampled")
        if not math.isnan(whole):
            return EngineTimings(model_ms=whole)
        denoise_ms = self.ms("denoise", "denoised")
        return EngineTimings(
            vision_ms=self.ms("prefix", "prefill"),
            prefill_ms=self.ms("prefill", "prefilled"),
            denoise_ms=denoise_ms,
            model_ms=self.ms("prefix", "prefilled") + denoise_ms,
        )
