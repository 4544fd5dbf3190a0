"""The check: it passes what is right and names what is wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pi05_ros.backends.quantization.samples import Sample, edge_cases
from pi05_ros.backends.staged.engine import StagedEngine, StageRunner
from pi05_ros.backends.verification.inspector import EngineFacts, read_layers
from pi05_ros.backends.verification.judgment import Thresholds
from pi05_ros.backends.verification.metrics import distance, duplicate_layers
from pi05_ros.backends.verification.report import markdown, write_files, write_json
from pi05_ros.backends.verification.verify import Report, check_engine

Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]


class Broken:
    """A runner whose outputs are changed."""

    def __init__(self, inner: StageRunner, change: Change) -> None:
        self.inner = inner
        self.change = change

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.change({k: v.clone() for k, v in self.inner.run(inputs).items()})

    def close(self) -> None:
        """Nothing of its own."""


def broken(engine: StagedEngine, stage: str, change: Change) -> StagedEngine:
    runners = {**engine.runners, stage: Broken(engine.runners[stage], change)}
    return StagedEngine(
        engine.model,
        engine.shapes,
        runners,
        backend="broken",
        precision=engine.precision,
        dtype=engine.dtype,
        device=engine.device,
    )


def run(
    engine: StagedEngine,
    reference: StagedEngine,
    fake_quant: StagedEngine | None,
    samples: list[Sample],
    **options: object,
) -> Report:
    return check_engine(engine, reference, fake_quant, samples[:2], steps=3, **options)  # type: ignore[arg-type]


def refused(report: Report) -> str:
    assert not report.ok
    return " | ".join(finding.item for finding in report.failures)


def test_the_simulation_itself_passes(
    reference: StagedEngine, fake_quant: StagedEngine, samples: list[Sample]
) -> None:
    golden = [*samples[:2], *edge_cases(samples, 12)]
    report = check_engine(fake_quant, reference, fake_quant, golden, steps=3)
    assert report.ok, [f.as_dict() for f in report.failures]
    assert len(report.layers) == 6
    assert len(report.steps) == 3
    assert [row["name"] for row in report.actions][2:] == [
        "edge: last camera missing",
        "edge: one-token prompt",
        "edge: full prompt",
    ]
    assert all(abs(row["ratio"] - 1) < 1e-6 for row in report.layers)


def test_unquantized_engines_are_judged_by_distance(
    reference: StagedEngine, samples: list[Sample]
) -> None:
    assert run(reference, reference, None, samples).ok

    def drift(values: dict[str, Tensor]) -> dict[str, Tensor]:
        noise = torch.randn(values["velocity"].shape, generator=torch.Generator().manual_seed(0))
        return {"velocity": values["velocity"] + 0.1 * noise}

    bad = broken(reference, "denoise_step", drift)
    assert "actions, chained: cosine" in refused(run(bad, reference, None, samples))


def _nan(values: dict[str, Tensor]) -> dict[str, Tensor]:
    values["keys"][1, 0, 0, 0, 0] = math.nan
    return values


def _same_layer(values: dict[str, Tensor]) -> dict[str, Tensor]:
    values["values"][2] = values["values"][1]
    return values


def _zeros_from_layer_one(values: dict[str, Tensor]) -> dict[str, Tensor]:
    values["keys"][1:] = 0
    return values


def _constant(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"velocity": torch.full_like(values["velocity"], 0.5)}


def _sign(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"velocity": -values["velocity"]}


def _twice_the_error(values: dict[str, Tensor]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    keys = values["keys"]
    return {**values, "keys": keys + 0.1 * torch.randn(keys.shape, generator=generator)}


def _dark(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"image_tokens": 0.9 * values["image_tokens"]}


@pytest.mark.parametrize(
    ("stage", "change", "item"),
    [
        ("prefill", _nan, "NaN or infinity"),
        ("prefill", _same_layer, "two layers are equal (values 1 = 2)"),
        ("prefill", _zeros_from_layer_one, "two layers are equal (keys 1 = 2)"),
        ("prefill", _zeros_from_layer_one, "an output is constant"),
        ("prefill", _twice_the_error, "prefill: keys of layer 0: error ratio"),
        ("denoise_step", _constant, "actions are constant | denoise: step 0: cosine"),
        ("denoise_step", _sign, "denoise: step 2: cosine"),
        ("vision", _dark, "vision: relative error"),
    ],
)
def test_broken_engines_are_named(
    stage: str,
    change: Change,
    item: str,
    reference: StagedEngine,
    fake_quant: StagedEngine,
    samples: list[Sample],
) -> None:
    report = run(broken(fake_quant, stage, change), reference, fake_quant, samples)
    found = refused(report)
    wanted = item.split(" | ")
    assert any(word in found for word in wanted), found


def test_thresholds_are_kept_and_used(
    reference: StagedEngine, fake_quant: StagedEngine, samples: list[Sample]
) -> None:
    strict = replace(Thresholds(), prefill_cosine=0.999999)
    report = run(fake_quant, reference, fake_quant, samples, thresholds=strict)
    assert "prefill: keys of layer 0: cosine" in refused(report)
    assert report.as_dict()["thresholds"]["prefill_cosine"] == 0.999999


@pytest.mark.parametrize(
    ("limit", "item"),
    [
        ("vision_cosine", "vision: cosine"),
        ("vision_relative", "vision: relative error"),
        ("ratio", "prefill: values of layer 2: error ratio"),
        ("ratio", "denoise: step 1: error ratio"),
        ("prefill_cosine", "prefill: keys of layer 1: cosine"),
        ("denoise_cosine", "denoise: step 2: cosine"),
        ("actions_cosine", "actions, chained: cosine"),
        ("actions_mean_abs", "actions, chained: mean absolute error"),
        ("actions_ratio", "actions, chained: error ratio"),
    ],
)
def test_every_limit_can_refuse(
    limit: str,
    item: str,
    reference: StagedEngine,
    fake_quant: StagedEngine,
    samples: list[Sample],
) -> None:
    """Alone: an engine that is right but for a limit nothing can keep."""
    beyond = 1.5 if limit.endswith("cosine") else -1.0
    strict = replace(Thresholds(actions_mean_abs=1.0), **{limit: beyond})
    report = check_engine(
        fake_quant, reference, fake_quant, samples[:1], steps=3, thresholds=strict
    )
    word = item.rpartition(": ")[2]
    found = [finding.item for finding in report.failures]
    assert item in found
    assert all(other.endswith(word) for other in found)
    if limit == "actions_cosine":  # the other one is for engines without quantization
        plain = replace(Thresholds(), plain_cosine=beyond)
        bad = check_engine(reference, reference, None, samples[:1], steps=3, thresholds=plain)
        assert [finding.item for finding in bad.failures] == [item]


def test_engine_without_fp8_kernels_is_refused(
    reference: StagedEngine, fake_quant: StagedEngine, samples: list[Sample]
) -> None:
    for facts, item in (
        (EngineFacts(10, 3), "prefill: quantized products"),
        (EngineFacts(10, 16, half_islands=["softmax_1"]), "softmax or norm in half"),
        (EngineFacts(10, 0, detailed=False), "without layer details"),
    ):
        found = {"prefill": (facts, 16)}
        report = run(fake_quant, reference, fake_quant, samples, inspector=found)
        assert item in refused(report)
    good = {"prefill": (EngineFacts(10, 16), 16), "vision": (EngineFacts(5, 0), 0)}
    assert run(fake_quant, reference, fake_quant, samples, inspector=good).ok


def _layer(kind: str, types: dict[str, str], names: str) -> dict[str, object]:
    return {
        "Name": "kernel",
        "LayerType": kind,
        "Inputs": [types],
        "Outputs": [],
        "Metadata": names,
    }


def test_inspector_reads_both_forms_and_fused_kernels() -> None:
    old = {"Format/Datatype": "Row major linear FP8 format"}
    new = {"Format": "Row major linear", "Datatype": "FP8"}
    for types in (old, new):
        fused = "[ONNX Layer: /layers/0/q_proj/MatMul]\x1e[ONNX Layer: /layers/0/k_proj/MatMul]"
        text = json.dumps({"Layers": [_layer("gemm", types, fused)]})
        names = ["/layers/0/q_proj/MatMul", "/layers/0/k_proj/MatMul"]
        assert read_layers(text, names) == EngineFacts(1, 2)
        more = read_layers(text, [*names, "/layers/0/v_proj/MatMul"])
        assert (more.quantized, more.missing) == (2, ["/layers/0/v_proj/MatMul"])
    half = {"Format/Datatype": "Row major linear FP16 format"}
    text = json.dumps({"Layers": [_layer("gemm", half, "a"), _layer("SoftMax", half, "b")]})
    facts = read_layers(text, ["a"])
    assert (facts.quantized, facts.half_islands) == (0, ["kernel"])
    for nothing in ({"Layers": ["only a name"]}, {"Layers": []}, {"Layers": 3}, {}, []):
        assert not read_layers(json.dumps(nothing), ["a"]).detailed


def test_inspector_looks_for_the_number_type_that_was_asked_for() -> None:
    int8 = {"Format/Datatype": "Row major Int8 format"}
    text = json.dumps({"Layers": [_layer("gemm", int8, "[ONNX Layer: /q_proj/MatMul]")]})
    assert read_layers(text, ["/q_proj/MatMul"], "int8") == EngineFacts(1, 1)
    assert read_layers(text, ["/q_proj/MatMul"], "fp8").missing == ["/q_proj/MatMul"]


def test_a_name_inside_another_does_not_count() -> None:
    fp8 = {"Format/Datatype": "FP8"}
    text = json.dumps(
        {"Layers": [_layer("kgen", fp8, "[ONNX Layer: /layers/10/q_proj/MatMul_1]")]}
    )
    assert (
        read_layers(text, ["/layers/1/q_proj/MatMul", "/layers/10/q_proj/MatMul"]).quantized == 0
    )


def test_distance_is_safe_on_odd_values() -> None:
    a = torch.tensor([1.0, 2.0, 3.0])
    assert distance(a, a).relative == 0
    assert distance(a, a).cosine == pytest.approx(1)
    assert not distance(torch.tensor([1.0, math.inf]), a[:2]).finite
    assert math.isnan(distance(a, torch.zeros(3)).cosine)
    assert distance(torch.ones(3), a).constant
    with pytest.raises(ValueError, match="differ"):
        distance(a, a[:2])


def test_duplicates_are_found_by_bits() -> None:
    layers = torch.randn(4, 2, 3)
    assert duplicate_layers(layers) == []
    layers[3] = layers[0]
    assert duplicate_layers(layers) == [(0, 3)]


def test_report_files(
    reference: StagedEngine, fake_quant: StagedEngine, samples: list[Sample], tmp_path: Path
) -> None:
    good = run(fake_quant, reference, fake_quant, samples)
    path = write_files(good, tmp_path, {"machine": "test"})
    text = path.read_text()
    assert "passed" in text.splitlines()[0]
    assert "- machine: test" in text
    assert (tmp_path / "check.png").stat().st_size > 5000
    bad = run(broken(fake_quant, "prefill", _nan), reference, fake_quant, samples)
    text = markdown(bad, {})
    assert "REFUSED" in text.splitlines()[0]
    assert "| NaN or infinity |" in text
    write_json(bad, tmp_path / "check.json", {"weights": "x"})
    content = json.loads((tmp_path / "check.json").read_text())
    assert content["verdict"] == "refuse"
    assert content["facts"] == {"weights": "x"}
