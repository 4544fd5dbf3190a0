"""What refuses an engine: limits, findings, and the judgment of distances and kernels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from pi05_ros.backends.verification.inspector import EngineFacts
from pi05_ros.backends.verification.metrics import Distance


@dataclass(frozen=True)
class Thresholds:
    """What refuses an engine; kept in the report. A comparison with NaN refuses."""

    vision_cosine: float = 0.9995
    vision_relative: float = 0.02
    ratio: float = 1.5
    ratio_warn: float = 1.2
    prefill_cosine: float = 0.98
    denoise_cosine: float = 0.99
    actions_cosine: float = 0.995
    plain_cosine: float = 0.9995
    actions_mean_abs: float = 0.02
    actions_ratio: float = 2.0


@dataclass
class Finding:
    """One number that was judged."""

    item: str
    value: float
    limit: float
    ok: bool
    level: str = "refuse"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {key: plain(value) for key, value in asdict(self).items()}


@dataclass
class StageResult:
    """Distances of one output over samples, for engine and simulation."""

    engine: list[Distance] = field(default_factory=list)
    fake: list[Distance] = field(default_factory=list)

    def worst_cosine(self) -> float:
        """Smallest cosine of the engine; NaN if any is."""
        return worst(min, [d.cosine for d in self.engine])

    def ratio(self) -> float:
        """Error of the engine over error of the simulation, both summed over samples."""
        theirs = sum(d.relative for d in self.fake)
        if not self.fake or theirs < 1e-5:
            return math.nan  # nothing is quantized here: only the distances count
        return sum(d.relative for d in self.engine) / theirs


def worst(pick: Callable[[list[float]], float], values: list[float]) -> float:
    """Smallest or largest value; NaN if any is."""
    return math.nan if any(math.isnan(v) for v in values) else pick(values)


def plain(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class Judge:
    """Collects findings."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def at_least(self, item: str, value: float, limit: float) -> None:
        """The value must reach the limit; NaN fails."""
        self.findings.append(Finding(item, value, limit, bool(value >= limit)))

    def at_most(self, item: str, value: float, limit: float, level: str = "refuse") -> None:
        """The value must not pass the limit; NaN fails."""
        self.findings.append(Finding(item, value, limit, bool(value <= limit), level))

    def ratio(self, item: str, value: float, refuse: float, warn: float) -> None:
        """Where nothing is quantized there is no ratio and nothing to judge."""
        if math.isnan(value):
            return
        self.at_most(item, value, refuse)
        if value <= refuse:
            self.at_most(f"{item} (warning)", value, warn, level="warn")

    def never(self, item: str, happened: bool) -> None:
        """Something must not have happened."""
        self.findings.append(Finding(item, float(happened), 0.0, not happened))


class Measured(Protocol):
    """Distances of all samples, by stage, isolated."""

    vision: StageResult
    cache: dict[str, list[StageResult]]
    flow: list[StageResult]
    duplicates: set[str]


def judge_stages(judge: Judge, limits: Thresholds, found: Measured) -> None:
    """Judge vision, keys and values, and velocities, each on the reference's input."""
    vision, cache, flow, duplicates = found.vision, found.cache, found.flow, found.duplicates
    judge.at_least("vision: cosine", vision.worst_cosine(), limits.vision_cosine)
    judge.at_most(
        "vision: relative error",
        worst(max, [d.relative for d in vision.engine]),
        limits.vision_relative,
    )
    for name, results in cache.items():
        for layer, result in enumerate(results):
            item = f"prefill: {name} of layer {layer}"
            judge.at_least(f"{item}: cosine", result.worst_cosine(), limits.prefill_cosine)
            judge.ratio(f"{item}: error ratio", result.ratio(), limits.ratio, limits.ratio_warn)
    for index, result in enumerate(flow):
        item = f"denoise: step {index}"
        judge.at_least(f"{item}: cosine", result.worst_cosine(), limits.denoise_cosine)
        judge.ratio(f"{item}: error ratio", result.ratio(), limits.ratio, limits.ratio_warn)
    everything = [vision, *flow, *(r for results in cache.values() for r in results)]
    judge.never("NaN or infinity", any(not d.finite for r in everything for d in r.engine))
    judge.never("an output is constant", any(d.constant for r in everything for d in r.engine))
    judge.never(
        "two layers are equal" + (f" ({', '.join(sorted(duplicates)[:3])})" if duplicates else ""),
        bool(duplicates),
    )


def judge_actions(
    judge: Judge, limits: Thresholds, final: StageResult, *, quantized: bool
) -> None:
    """Judge the actions of the whole chain."""
    needed = limits.actions_cosine if quantized else limits.plain_cosine
    judge.at_least("actions, chained: cosine", final.worst_cosine(), needed)
    judge.at_most(
        "actions, chained: mean absolute error",
        worst(max, [d.mean_abs for d in final.engine]),
        limits.actions_mean_abs,
    )
    judge.ratio(
        "actions, chained: error ratio", final.ratio(), limits.actions_ratio, limits.actions_ratio
    )
    judge.never("actions are not finite", any(not d.finite for d in final.engine))
    judge.never("actions are constant", any(d.constant for d in final.engine))


def judge_kernels(
    judge: Judge, inspector: Mapping[str, tuple[EngineFacts, int]]
) -> dict[str, dict[str, Any]]:
    """Judge the kernels of engines: stage -> (facts, quantized products it must have)."""
    facts = {}
    for stage, (found, expected) in inspector.items():
        facts[stage] = {**asdict(found), "expected": expected}
        judge.never(f"{stage}: engine built without layer details", not found.detailed)
        if expected:
            judge.at_least(f"{stage}: quantized products", found.quantized, expected)
        judge.never(f"{stage}: softmax or norm in half precision", bool(found.half_islands))
        judge.never(f"{stage}: product stored as a sum of codes", bool(found.bare_codes))
        judge.never(f"{stage}: float64", bool(found.doubles))
    return facts
