"""Counters and latency percentiles of the inference loop, as diagnostics show them."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np

WINDOW = 200


@dataclass
class Statistics:
    """Written by the worker and the executor thread, read by diagnostics.

    The warm-up inference never gets here, so it cannot distort the percentiles.

    Attributes:
        published: chunks handed to the middleware.
        dropped: chunks that were made and not published, by reason.
        skipped: ticks without an inference, by reason.
        errors: inferences that raised.
        overlapped: inferences that began while the one before was denoised.
        failing: sentence about the newest inference if it failed, else empty.
        failing_since_s: monotonic time of that inference.

    """

    published: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    errors: int = 0
    overlapped: int = 0
    failing: str = ""
    failing_since_s: float = 0.0
    _latencies: deque[tuple[float, float]] = field(
        default_factory=lambda: deque(maxlen=WINDOW), repr=False
    )
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add_latency(self, total_ms: float, inference_ms: float) -> None:
        """One published chunk: sample received -> published, and the policy's part of it."""
        with self._lock:
            self.published += 1
            self.failing = ""
            self._latencies.append((total_ms, inference_ms))

    def drop(self, reason: str, text: str) -> None:
        """Count a chunk that was made and not published."""
        with self._lock:
            self.dropped[reason] += 1
            if text:
                self._failed(text)

    def fail(self, text: str) -> None:
        """Count an inference that raised."""
        with self._lock:
            self.errors += 1
            self._failed(text)

    def _failed(self, text: str) -> None:
        self.failing = text
        self.failing_since_s = time.monotonic()

    def count_overlap(self) -> None:
        """Count an inference that began while the one before was denoised."""
        with self._lock:
            self.overlapped += 1

    def skip(self, reason: str) -> None:
        """Count a tick that led to no inference."""
        with self._lock:
            self.skipped[reason] += 1

    def counters(self) -> tuple[dict[str, int], dict[str, int]]:
        """Copies of `dropped` and `skipped`."""
        with self._lock:
            return dict(self.dropped), dict(self.skipped)

    def clear_latencies(self) -> None:
        """Forget latencies; counters stay."""
        with self._lock:
            self._latencies.clear()
            self.failing = ""

    def percentiles(self) -> dict[str, float]:
        """p50 and p95 of the last inferences in milliseconds; empty before the first."""
        with self._lock:
            rows = np.array(self._latencies)
        if not len(rows):
            return {}
        total, inference = rows[:, 0], rows[:, 1]
        times = {"latency": total, "inference": inference, "overhead": total - inference}
        return {
            f"{name}_p{percent}_ms": float(np.percentile(values, percent))
            for name, values in times.items()
            for percent in (50, 95)
        }
