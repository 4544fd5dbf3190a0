"""Prometheus metrics of the nodes, from what they say on /diagnostics.

Names and units after Prometheus' conventions: seconds, hertz, `_total` for what only grows. A node
that has said nothing for `STALE_S` has no metrics but its age.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pi05_ros.runtime.text import printable
from pi05_ros.tables import markdown_table

STALE_S = 10.0
MOST_SERIES = 2000
MODES = ("waiting", "following", "holding", "stopped", "fault", "teleoperated")


@dataclass(frozen=True)
class Rule:
    """One metric.

    Attributes:
        entry: diagnostics entry: inputs, inference or executor.
        pattern: of the key; its named groups become labels.
        name, text: of the metric; a name that ends in ``_total`` is a counter.
        scale: from the diagnostics' unit to the metric's.

    """

    entry: str
    pattern: str
    name: str
    text: str
    scale: float = 1.0

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels besides `node`."""
        return tuple(re.compile(self.pattern).groupindex)


_SOURCE = r"(?P<source>[^.]+)"
RULES = (
    Rule("inputs", rf"{_SOURCE}\.rate_hz", "pi05_input_rate_hertz", "Samples per second."),
    Rule(
        "inputs", rf"{_SOURCE}\.age_ms", "pi05_input_age_seconds",
        "Age of the newest sample, seconds.", 1e-3,
    ),
    Rule("inputs", rf"{_SOURCE}\.received", "pi05_input_received_total", "Samples received."),
    Rule(
        "inputs", rf"{_SOURCE}\.dropped\.(?P<reason>.+)", "pi05_input_dropped_total",
        "Samples that could not be used.",
    ),
    Rule(
        "inputs", rf"{_SOURCE}\.refused\.(?P<reason>.+)", "pi05_input_refused_total",
        "Ticks at which a sample was not good enough for an inference.",
    ),
    Rule("inputs", "clock_jumps", "pi05_clock_jumps_total", "Jumps of the node's clock."),
    Rule("inference", "rate_hz", "pi05_chunk_rate_hertz", "Chunks published per second."),
    Rule("inference", "asked_rate_hz", "pi05_asked_rate_hertz", "Inferences asked per second."),
    Rule("inference", "published", "pi05_chunks_total", "Chunks published."),
    Rule(
        "inference", r"(?P<stage>[a-z_]+)_p(?P<percentile>\d+)_ms", "pi05_stage_seconds",
        "Time of a stage, seconds, percentile over the last inferences.", 1e-3,
    ),
    Rule(
        "inference", r"skipped_ticks\.(?P<reason>.+)", "pi05_skipped_ticks_total",
        "Ticks without an inference.",
    ),
    Rule(
        "inference", r"(?P<reason>nan|late)_chunks", "pi05_dropped_chunks_total",
        "Chunks computed and not published.",
    ),
    Rule("inference", "errors", "pi05_inference_errors_total", "Inferences that failed."),
    Rule("executor", "reason_age_s", "pi05_executor_reason_age_seconds",
         "For how long mode and reason have been these, seconds."),
    Rule("executor", "speed_scale", "pi05_executor_speed_ratio", "Part of the chunks' speed."),
    Rule(
        "executor", "lag_ms", "pi05_executor_lag_seconds",
        "How far the arm is behind the clock because limits bind, seconds.", 1e-3,
    ),
    Rule("executor", "intervention", "pi05_executor_intervention",
         "1 while a person is in charge."),
    Rule("executor", "accepted", "pi05_executor_chunks_total", "Chunks accepted."),
    Rule(
        "executor", r"clipped_to_limits\.(?P<joint>.+)", "pi05_executor_clipped_total",
        "Commands that were clipped to a joint's limits.",
    ),
    Rule(
        "executor", r"refused\.(?P<reason>.+)", "pi05_executor_refused_total", "Chunks refused.",
    ),
    Rule("executor", "clock_jumps", "pi05_executor_clock_jumps_total",
         "Jumps of the executor's clock."),
)  # fmt: skip


@dataclass
class _Entry:
    """The newest values of one diagnostics entry."""

    level: int
    at_s: float
    values: dict[str, str] = field(default_factory=dict)


class DiagnosticsMetrics(Collector):
    """Holds the newest diagnostics and gives them to Prometheus.

    Args:
        now_s: asked for the time, seconds on a clock that only rises.

    """

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._entries: dict[tuple[str, str], _Entry] = {}
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def take(self, name: str, level: int, values: Mapping[str, str]) -> None:
        """Take one status, whose name is ``NODE: ENTRY``; those of other nodes are left out."""
        node, found, entry = name.rpartition(": ")
        if not found or entry not in ("inputs", "inference", "executor"):
            return
        key = printable(node)[:120], entry
        if key in self._entries or len(self._entries) < 100:
            self._entries[key] = _Entry(level, self._now_s(), dict(values))

    def collect(self) -> Iterator[Metric]:
        """Metrics of all nodes."""
        entries, now_s = dict(self._entries), self._now_s()
        labels = ("node", "entry")
        age = GaugeMetricFamily(
            "pi05_diagnostics_age_seconds", "Since a node spoke, seconds.", labels=labels
        )
        level = GaugeMetricFamily(
            "pi05_diagnostics_level", "0 ok, 1 warning, 2 error, 3 not active.", labels=labels
        )
        mode = GaugeMetricFamily(
            "pi05_executor_mode",
            "1 for the mode that the executor is in.",
            labels=("node", "mode"),
        )
        for (node, entry), told in entries.items():
            age.add_metric((node, entry), now_s - told.at_s)
            if now_s - told.at_s > STALE_S:
                continue
            level.add_metric((node, entry), told.level)
            if entry == "executor":
                for word in MODES:
                    mode.add_metric((node, word), float(told.values.get("mode") == word))
        yield age
        yield level
        yield mode
        for rule in RULES:
            yield self._family(rule, entries, now_s)

    def _family(
        self, rule: Rule, entries: Mapping[tuple[str, str], _Entry], now_s: float
    ) -> Metric:
        kind = CounterMetricFamily if rule.name.endswith("_total") else GaugeMetricFamily
        family = kind(rule.name, rule.text, labels=("node", *rule.labels))
        pattern = re.compile(rule.pattern)
        for (node, entry), told in entries.items():
            if entry != rule.entry or now_s - told.at_s > STALE_S:
                continue
            for key, text in told.values.items():
                match = pattern.fullmatch(key)
                value = _number(text) if match else None
                if match and value is not None and len(family.samples) < MOST_SERIES:
                    found = [printable(match[label])[:120] for label in rule.labels]
                    family.add_metric((node, *found), value * rule.scale)
        return family


def metrics_table() -> str:
    """All metrics as a Markdown table."""
    rows: list[tuple[str, str, str]] = [
        ("pi05_diagnostics_age_seconds", "node, entry", "Since a node spoke, seconds."),
        ("pi05_diagnostics_level", "node, entry", "0 ok, 1 warning, 2 error, 3 not active."),
        ("pi05_executor_mode", "node, mode", "1 for the executor's mode."),
    ]
    rows += [(rule.name, ", ".join(("node", *rule.labels)), rule.text) for rule in RULES]
    return markdown_table(
        ("metric", "labels", "what"), [(f"`{name}`", labels, text) for name, labels, text in rows]
    )


def _number(text: str) -> float | None:
    if text in ("True", "False"):
        return float(text == "True")
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
