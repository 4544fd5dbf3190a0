"""Compare an engine with the plain model, stage by stage, and pass judgment.

Two correct implementations of one FP8 graph differ from each other about as much as FP8 differs
from FP32, because a rounding difference of the last bit flips codes. Their *error against the
unquantized model* agrees within about one percent. So the main criterion is the ratio of that
error to the one of the same quantization simulated in torch.

isolated  each stage gets the reference's input: says which stage is wrong
chained   the engine gets pixels, prompt and noise: says what the robot would get
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from pi05_ros.backends.quantization.samples import Sample
from pi05_ros.backends.staged.engine import StagedEngine, StagedKVCache
from pi05_ros.backends.verification.inspector import EngineFacts
from pi05_ros.backends.verification.judgment import (
    Finding,
    Judge,
    StageResult,
    Thresholds,
    judge_actions,
    judge_kernels,
    judge_stages,
    plain,
    worst,
)
from pi05_ros.backends.verification.metrics import distance, duplicate_layers

REPORT_SCHEMA = 1


@dataclass
class Report:
    """Result of a check.

    Attributes:
        ok: the engine may be used.
        findings: everything that was judged, failures included.
        layers: per K/V layer: cosine, error, error of the simulation, ratio (isolated).
        steps: per denoise step the same.
        actions: per sample, chained.
        inspector: per stage.

    """

    ok: bool
    findings: list[Finding]
    layers: list[dict[str, Any]]
    steps: list[dict[str, Any]]
    actions: list[dict[str, Any]]
    inspector: dict[str, dict[str, Any]]
    thresholds: Thresholds
    backend: str
    precision: dict[str, str]
    samples: int
    flow_steps: int

    @property
    def failures(self) -> list[Finding]:
        """What refused the engine."""
        return [f for f in self.findings if not f.ok and f.level == "refuse"]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "schema": REPORT_SCHEMA,
            "verdict": "pass" if self.ok else "refuse",
            "backend": self.backend,
            "precision": self.precision,
            "samples": self.samples,
            "flow_steps": self.flow_steps,
            "thresholds": asdict(self.thresholds),
            "findings": [finding.as_dict() for finding in self.findings],
            "layers": self.layers,
            "steps": self.steps,
            "actions": self.actions,
            "inspector": self.inspector,
        }


def _row(result: StageResult) -> dict[str, Any]:
    return {
        "cosine": plain(result.worst_cosine()),
        "relative": plain(_mean([d.relative for d in result.engine])),
        "fake_relative": plain(_mean([d.relative for d in result.fake])),
        "max_abs": plain(worst(max, [d.max_abs for d in result.engine])),
        "ratio": plain(result.ratio()),
    }


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


@torch.no_grad()
def check_engine(
    engine: StagedEngine,
    reference: StagedEngine,
    fake_quant: StagedEngine | None,
    samples: Sequence[Sample],
    *,
    steps: int = 10,
    thresholds: Thresholds | None = None,
    inspector: Mapping[str, tuple[EngineFacts, int]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Run all samples through both and judge.

    Args:
        engine: under test.
        reference: float32 stages of the same checkpoint.
        fake_quant: the same with simulated quantizers; None if nothing is quantized.
        samples: golden observations and edge cases.
        steps: flow steps.
        thresholds: what refuses; None takes the defaults.
        inspector: stage -> (facts, number of quantized products it must have); None where there
            is no engine to inspect.
        progress: called with (samples done, samples).

    """
    limits = thresholds or Thresholds()
    found = _Measurement(engine.shapes.depth, steps)
    for index, sample in enumerate(samples):
        found.add(engine, reference, fake_quant, sample)
        if progress is not None:
            progress(index + 1, len(samples))
    judge = Judge()
    judge_stages(judge, limits, found)
    judge_actions(judge, limits, found.final, quantized=fake_quant is not None)
    facts = judge_kernels(judge, inspector or {})
    return Report(
        ok=all(f.ok for f in judge.findings if f.level == "refuse"),
        findings=judge.findings,
        layers=[
            {"layer": layer, "tensor": name, **_row(results[layer])}
            for layer in range(engine.shapes.depth)
            for name, results in found.cache.items()
        ],
        steps=[{"step": i, **_row(result)} for i, result in enumerate(found.flow)],
        actions=found.actions,
        inspector=facts,
        thresholds=limits,
        backend=engine.backend,
        precision=asdict(engine.precision),
        samples=len(samples),
        flow_steps=steps,
    )


class _Measurement:
    """Distances of all samples so far, by stage."""

    def __init__(self, depth: int, steps: int) -> None:
        self.vision = StageResult()
        self.cache = {name: [StageResult() for _ in range(depth)] for name in ("keys", "values")}
        self.flow = [StageResult() for _ in range(steps)]
        self.final = StageResult()
        self.actions: list[dict[str, Any]] = []
        self.duplicates: set[str] = set()

    def add(
        self,
        engine: StagedEngine,
        reference: StagedEngine,
        fake_quant: StagedEngine | None,
        sample: Sample,
    ) -> None:
        """Run one sample, isolated and chained."""
        steps = len(self.flow)
        truth = _Reference(reference, sample, steps)
        self._isolated(engine, truth, fake=False)
        if fake_quant is not None:
            self._isolated(fake_quant, truth, fake=True)
        actions = engine.sample(sample.images, sample.tokens, sample.noise, steps)
        self.final.engine.append(distance(actions, truth.actions))
        if fake_quant is not None:
            simulated = fake_quant.sample(sample.images, sample.tokens, sample.noise, steps)
            self.final.fake.append(distance(simulated, truth.actions))
        self.actions.append(
            {
                "name": sample.name,
                **{key: plain(v) for key, v in asdict(self.final.engine[-1]).items()},
                "fake_relative": plain(self.final.fake[-1].relative) if fake_quant else None,
            }
        )

    def _isolated(self, engine: StagedEngine, truth: _Reference, *, fake: bool) -> None:
        """Each stage on the reference's input; the simulation has no vision of its own."""
        device, dtype = engine.device, engine.dtype
        inputs = truth.inputs
        images = truth.cameras * engine.shapes.image_tokens
        if images and not fake:
            tokens = engine.runners["vision"].run({"pixels": inputs.pixels.to(device, dtype)})
            seen = tokens["image_tokens"].flatten(0, 1)[:images]
            self.vision.engine.append(distance(seen, truth.embeddings[0, :images]))
        found = engine.runners["prefill"].run(
            {
                "embeddings": truth.embeddings.to(device, dtype),
                "positions": inputs.positions.to(device),
                "mask": inputs.mask.to(device),
            }
        )
        for name, results in self.cache.items():
            ours = found[name][..., inputs.valid.to(device), :]
            expected = getattr(truth.cache, name)[..., inputs.valid, :]
            if not fake:
                pairs = duplicate_layers(ours)
                self.duplicates.update(f"{name} {a} = {b}" for a, b in pairs)
            for layer, result in enumerate(results):
                side = result.fake if fake else result.engine
                side.append(distance(ours[layer], expected[layer]))
        table = engine.modulation(len(self.flow))
        for index, result in enumerate(self.flow):
            v = _velocity(engine, truth.cache, truth.trajectory[index], table[index])
            side = result.fake if fake else result.engine
            side.append(distance(v, truth.velocities[index]))


class _Reference:
    """Every intermediate of the reference for one sample."""

    def __init__(self, reference: StagedEngine, sample: Sample, steps: int) -> None:
        self.inputs = reference.prefix(sample.images, sample.tokens)
        self.embeddings = reference.embeddings(self.inputs)
        found = reference.runners["prefill"].run(
            {
                "embeddings": self.embeddings,
                "positions": self.inputs.positions,
                "mask": self.inputs.mask,
            }
        )
        self.cache = StagedKVCache(
            found["keys"], found["values"], self.inputs.mask, self.inputs.action_positions
        )
        self.cameras = sample.images.shape[0]
        table = reference.modulation(steps)
        x = sample.noise.to(reference.device, torch.float32)[None]
        self.trajectory: list[Tensor] = []
        self.velocities: list[Tensor] = []
        for index in range(steps):
            v = _velocity(reference, self.cache, x, table[index])
            self.trajectory.append(x)
            self.velocities.append(v)
            x = x - (1.0 / steps) * v
        self.actions = x[0]


def _velocity(engine: StagedEngine, cache: StagedKVCache, x: Tensor, row: Tensor) -> Tensor:
    inputs = {name: t.to(engine.device) for name, t in cache.step_inputs(x, row).items()}
    inputs |= {name: inputs[name].to(engine.dtype) for name in ("keys", "values")}
    return engine.runners["denoise_step"].run(inputs)["velocity"].clone()
