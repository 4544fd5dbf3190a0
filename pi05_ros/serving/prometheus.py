"""Prometheus metrics of the policy server; names and units after Prometheus' conventions."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
RESULTS = ("answered", "refused", "replaced", "late", "draining", "failed")
"""Values of the label ``result`` of ``pi05_requests_total``."""


class CheapHistogram(Collector):
    """A histogram of seconds that costs next to nothing until it is asked for."""

    def __init__(self, name: str, text: str, registry: CollectorRegistry) -> None:
        self._name, self._text = name, text
        self._lock = threading.Lock()
        self._counts = [0] * (len(_SECONDS) + 1)
        self._sum = 0.0
        registry.register(self)

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        place = bisect_left(_SECONDS, seconds)
        with self._lock:
            self._counts[place] += 1
            self._sum += seconds

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Of the registry: the buckets, each with all shorter ones."""
        with self._lock:
            counts, total = list(self._counts), self._sum
        buckets, below = [], 0
        for bound, count in zip((*map(str, _SECONDS), "+Inf"), counts, strict=True):
            below += count
            buckets.append((bound, float(below)))
        yield HistogramMetricFamily(self._name, self._text, buckets=buckets, sum_value=total)


class ServerMetrics:
    """Counters of one server in a registry of their own.

    Args:
        queue_length: asked at each scrape.

    """

    def __init__(self, queue_length: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        registry = self._registry
        self.requests = Counter(
            "pi05_requests", "Requests by how they ended.", ["result"], registry=registry
        )
        for result in RESULTS:  # so that rates begin at zero
            self.requests.labels(result)
        self.answered = self.requests.labels("answered")
        self.sessions = Gauge("pi05_sessions", "Open connections.", registry=registry)
        waiting = Gauge("pi05_waiting_requests", "Requests in the queue.", registry=registry)
        waiting.set_function(lambda: float(queue_length()))
        self.inference = CheapHistogram(
            "pi05_inference_seconds",
            "Inference of one request, seconds.",
            registry,
        )
        self.wait = CheapHistogram(
            "pi05_queue_wait_seconds",
            "From arrival of a request to the beginning of its inference, seconds.",
            registry,
        )
        self.total = CheapHistogram(
            "pi05_request_seconds",
            "From arrival of a request to its answer handed to the socket, seconds.",
            registry,
        )
        self.received = Counter("pi05_received_bytes", "Bytes of requests.", registry=registry)
        self.refused = Counter(
            "pi05_refused_connections", "Connections refused.", ["reason"], registry=registry
        )

    def text(self) -> bytes:
        """Exposition format 0.0.4."""
        return generate_latest(self._registry)
