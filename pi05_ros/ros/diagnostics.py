"""The two entries of /diagnostics: inputs and inference."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from pi05_ros.backends.engine import EngineHealth
from pi05_ros.runtime.inputs.clock_watch import ClockWatch
from pi05_ros.runtime.inputs.observation_buffer import NS, Inputs, Problem
from pi05_ros.runtime.parameters import PolicyParameters
from pi05_ros.runtime.statistics import Statistics
from pi05_ros.runtime.text import printable

PERIOD_S = 1.0


@dataclass(frozen=True)
class Context:
    """What the entries need besides inputs and statistics."""

    node: str  # fully qualified name
    active: bool
    state: str
    parameters: PolicyParameters
    info: Any | None = None  # PolicyInfo while a policy is loaded
    health: EngineHealth = field(default_factory=EngineHealth)
    problem: str = ""  # why the engine cannot answer
    unheard: str = ""  # publishers that the node cannot hear

    @property
    def hardware_id(self) -> str:
        """Robot and device, empty without a policy."""
        return "" if self.info is None else f"{self.info.robot} on {self.info.device}"

    @property
    def backend_reason(self) -> str:
        """Why the backend is not the one that was asked for."""
        return "" if self.info is None else str(self.info.backend_reason)

    def engine_values(self) -> dict[str, object]:
        """What runs the model; empty texts without a policy."""
        if self.info is None:
            return dict.fromkeys(("backend", "backend_reason", "precision", "device"), "")
        precision = self.info.precision
        return {
            "backend": self.info.backend,
            "backend_reason": self.info.backend_reason,
            "precision": f"{precision.vision}/{precision.prefill}/{precision.denoise}",
            "device": self.info.device,
            **{f"assumption.{i}": text for i, text in enumerate(self.info.assumptions, 1)},
            **{f"doubt.{i}": text for i, text in enumerate(self.info.doubts, 1)},
        }


def _status(
    name: str, context: Context, level: bytes, text: str, values: dict[str, object]
) -> DiagnosticStatus:
    return DiagnosticStatus(
        level=level,
        name=f"{context.node}: {name}",
        message=printable(text),
        hardware_id=printable(context.hardware_id),
        values=[KeyValue(key=printable(k), value=printable(v)) for k, v in values.items()],
    )


class Diagnostics:
    """Builds the array once per period and remembers what the last one has seen."""

    def __init__(self) -> None:
        self._received: dict[str, int] = {}
        self._unreadable: dict[str, int] = {}
        self._published = 0
        self._skipped = 0
        self._last_ns: int | None = None
        self._clock = ClockWatch()

    def build(
        self,
        context: Context,
        inputs: Inputs,
        statistics: Statistics,
        now_ns: int,
        mono_ns: int,
    ) -> DiagnosticArray:
        """Array without its stamp."""
        elapsed_s = (mono_ns - self._last_ns) / NS if self._last_ns else PERIOD_S
        self._last_ns = mono_ns
        return DiagnosticArray(
            status=[
                self._inputs(context, inputs, now_ns, mono_ns, elapsed_s),
                self._inference(context, statistics, elapsed_s, mono_ns),
            ]
        )

    def _inputs(
        self, context: Context, inputs: Inputs, now_ns: int, mono_ns: int, elapsed_s: float
    ) -> DiagnosticStatus:
        values: dict[str, object] = {}
        texts: list[str] = []
        problems: list[Problem] = inputs.check(now_ns, mono_ns) if inputs.sources else []
        for name, source in inputs.sources.items():
            new = source.received - self._received.get(name, 0)
            self._received[name] = source.received
            unreadable = source.unreadable - self._unreadable.get(name, 0)
            self._unreadable[name] = source.unreadable
            if unreadable > 0:
                texts.append(f"{name}: {unreadable} samples unusable: {source.last_error}")
            if source.doubt:
                texts.append(f"{name}: {source.doubt}")
            values[f"{name}.rate_hz"] = f"{max(new, 0) / elapsed_s:.1f}"
            values[f"{name}.age_ms"] = (
                f"{(now_ns - source.newest.stamp_ns) / 1e6:.0f}" if source.newest else "none"
            )
            values[f"{name}.received"] = source.received
            if source.unrelated:
                values[f"{name}.without_wanted_joint"] = source.unrelated
            values[f"{name}.dropped"] = sum(source.dropped.values())
            for code, count in sorted(source.dropped.items()):
                values[f"{name}.dropped.{code}"] = count
            for code, count in sorted(source.refused.items()):
                values[f"{name}.refused.{code}"] = count
            if source.last_error:
                values[f"{name}.last_error"] = source.last_error
                if source.last_error_ns is not None:
                    age_s = (mono_ns - source.last_error_ns) / NS
                    values[f"{name}.last_error_age_s"] = f"{age_s:.1f}"
        if inputs.sources:
            values["clock_jumps"] = inputs.clock_jumps
        if context.unheard:
            values["unheard"] = context.unheard
            texts.append(context.unheard)
        limit_s = context.parameters.dead_source_timeout_s
        clock = self._clock.problem(now_ns, mono_ns, limit_s)
        if not context.active:
            return _status("inputs", context, DiagnosticStatus.STALE, context.state, values)
        if clock:  # ages mean nothing then
            return _status("inputs", context, DiagnosticStatus.ERROR, clock, values)
        texts = [*(f"{problem.source}: {problem.text}" for problem in problems), *texts]
        if not texts:
            return _status("inputs", context, DiagnosticStatus.OK, "all inputs fresh", values)
        dead = any(problem.code in ("dead", "missing") for problem in problems)
        level = DiagnosticStatus.ERROR if dead else DiagnosticStatus.WARN
        return _status("inputs", context, level, "; ".join(texts), values)

    def _inference(
        self, context: Context, statistics: Statistics, elapsed_s: float, mono_ns: int
    ) -> DiagnosticStatus:
        dropped_by, skipped_by = statistics.counters()
        published, skipped = statistics.published, sum(skipped_by.values())
        rate_hz = max(published - self._published, 0) / elapsed_s
        newly_skipped = skipped - self._skipped
        self._published, self._skipped = published, skipped
        percentiles = statistics.percentiles()
        values: dict[str, object] = {
            **context.engine_values(),
            "rate_hz": f"{rate_hz:.1f}",
            "asked_rate_hz": f"{context.parameters.rate_hz:g}",
            "published": published,
            **{key: f"{value:.2f}" for key, value in percentiles.items()},
            "skipped_ticks": skipped,
            **{f"skipped_ticks.{key}": n for key, n in sorted(skipped_by.items())},
            "nan_chunks": dropped_by.get("nan", 0),
            "late_chunks": dropped_by.get("late", 0),
            "dropped_chunks": sum(dropped_by.values()),
            "errors": statistics.errors,
            **context.health.values,
        }
        overlap = context.parameters.overlap
        if overlap:
            values["overlapped"] = statistics.overlapped
        failing = statistics.failing
        if failing:
            age_s = mono_ns / NS - statistics.failing_since_s
            values["last_error"] = failing
            values["last_error_age_s"] = f"{age_s:.1f}"
            failing += f" ({age_s:.0f} s ago)" if age_s > 2 * PERIOD_S else ""
        if not context.active:
            return _status("inference", context, DiagnosticStatus.STALE, context.state, values)
        if context.problem:
            return _status("inference", context, DiagnosticStatus.ERROR, context.problem, values)
        if failing:
            return _status("inference", context, DiagnosticStatus.ERROR, failing, values)
        period_ms = 1e3 / context.parameters.rate_hz
        slow_ms = percentiles.get("inference_p95_ms", 0.0)
        if slow_ms > period_ms * (2 if overlap else 1):  # with overlap two are under way
            periods = "two periods" if overlap else "the period"
            text = f"inference p95 {slow_ms:.0f} ms exceeds {periods} of {period_ms:.0f} ms"
            return _status("inference", context, DiagnosticStatus.WARN, text, values)
        if "fallback from" in context.backend_reason:
            return _status(
                "inference", context, DiagnosticStatus.WARN, context.backend_reason, values
            )
        if context.health.warning:
            return _status(
                "inference", context, DiagnosticStatus.WARN, context.health.warning, values
            )
        if context.info is not None and context.info.doubts:
            text = "doubts about the checkpoint: " + "; ".join(context.info.doubts)
            return _status("inference", context, DiagnosticStatus.WARN, text, values)
        if newly_skipped:
            text = f"{newly_skipped} ticks without an inference since the last report"
            return _status("inference", context, DiagnosticStatus.WARN, text, values)
        return _status("inference", context, DiagnosticStatus.OK, f"{rate_hz:.1f} Hz", values)
