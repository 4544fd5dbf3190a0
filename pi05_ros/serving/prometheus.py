"""Prometheus metrics of the policy server; names and units after Prometheus' conventions."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
RESULTS = ("answered", "refused", "replaced", "late", "draining", "failed")
"""Values of the label ``result`` of ``pi05_requests_total``."""


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
        self.inference = Histogram(
            "pi05_inference_seconds",
            "Inference of one request, seconds.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.wait = Histogram(
            "pi05_queue_wait_seconds",
            "From arrival of a request to the beginning of its inference, seconds.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.total = Histogram(
            "pi05_request_seconds",
            "From arrival of a request to its answer handed to the socket, seconds.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.received = Counter("pi05_received_bytes", "Bytes of requests.", registry=registry)
        self.refused = Counter(
            "pi05_refused_connections", "Connections refused.", ["reason"], registry=registry
        )

    def text(self) -> bytes:
        """Exposition format 0.0.4."""
        return generate_latest(self._registry)
