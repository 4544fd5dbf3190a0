"""Exported graphs: their rules, and their numbers in ONNX Runtime against torch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from pi05_ros.backends import onnx as onnx_backend
from pi05_ros.backends.engine import Precision
from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.export import export
from pi05_ros.backends.export.export_document import graph_hash, read_export
from pi05_ros.backends.onnx import engine as onnx_engine
from pi05_ros.backends.onnx.engine import OrtRunner
from pi05_ros.backends.quantization.calibration import Calibration
from pi05_ros.backends.quantization.samples import Sample, edge_cases
from pi05_ros.backends.staged.engine import StagedEngine
from pi05_ros.backends.staged.shapes import STAGES, StageShapes
from pi05_ros.model import Pi05

CPU = torch.device("cpu")


def ort_engine(folder: Path, like: StagedEngine, dtype: torch.dtype) -> StagedEngine:
    runners = {stage: OrtRunner(folder / f"{stage}.onnx", CPU) for stage in STAGES}
    return StagedEngine(
        like.model,
        like.shapes,
        runners,
        backend="onnx",
        precision=Precision(),
        dtype=dtype,
        device=CPU,
    )


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def test_float32_twin_equals_fake_quant_torch(
    graphs_fp32: Path, fake_quant: StagedEngine, samples: list[Sample]
) -> None:
    twin = ort_engine(graphs_fp32, fake_quant, torch.float32)
    for sample in [*samples[:2], *edge_cases(samples, fake_quant.shapes.prompt_tokens)]:
        expected = fake_quant.prefill(sample.images, sample.tokens)
        found = twin.prefill(sample.images, sample.tokens)
        valid = fake_quant.prefix(sample.images, sample.tokens).valid
        for name in ("keys", "values"):
            a, b = getattr(found, name)[..., valid, :], getattr(expected, name)[..., valid, :]
            assert (a - b).abs().max() <= 1e-5 * b.abs().max(), (sample.name, name)
        a = twin.denoise(expected, sample.noise, steps=10)
        b = fake_quant.denoise(expected, sample.noise, steps=10)
        assert (a - b).abs().max() <= 1e-5 * b.abs().max(), sample.name


def test_half_artifact_errs_as_much_as_fake_quant(
    graphs_fp16: Path,
    fake_quant: StagedEngine,
    reference: StagedEngine,
    samples: list[Sample],
) -> None:
    half = ort_engine(graphs_fp16, fake_quant, torch.float16)
    errors = {"half": 0.0, "fake": 0.0}
    for sample in samples[:4]:
        truth = reference.sample(sample.images, sample.tokens, sample.noise)
        found = half.sample(sample.images, sample.tokens, sample.noise)
        assert torch.isfinite(found).all()
        errors["half"] += relative(found, truth)
        fake = fake_quant.sample(sample.images, sample.tokens, sample.noise)
        errors["fake"] += relative(fake, truth)
    assert 0.9 <= errors["half"] / errors["fake"] <= 1.15


def test_full_graph_equals_the_stages_with_the_same_steps(
    graphs_fp16: Path, fake_quant: StagedEngine, samples: list[Sample]
) -> None:
    half = ort_engine(graphs_fp16, fake_quant, torch.float16)
    full = OrtRunner(graphs_fp16 / "full.onnx", CPU)
    sample = samples[0]
    inputs = half.prefix(sample.images, sample.tokens)
    found = full.run(
        {
            "pixels": inputs.pixels,
            "prompt_embeddings": inputs.prompt_embeddings,
            "positions": inputs.positions,
            "mask": inputs.mask,
            "action_positions": inputs.action_positions,
            "noise": sample.noise[None],
        }
    )["actions"][0]
    expected = half.sample(sample.images, sample.tokens, sample.noise, steps=2)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_counts_of_quantized_products_are_exact(graphs_fp16: Path, model: Pi05) -> None:
    document = read_export(graphs_fp16)
    depth = model.config.vlm.depth
    stages = document["stages"]
    assert "fp8" not in stages["vision"]["matmuls"]
    assert stages["prefill"]["matmuls"]["fp8"] == 7 * (depth - 1) + 2
    expected = {"fp8": 7 * depth, "FLOAT": 2, "FLOAT16": 2 * depth}
    assert stages["denoise_step"]["matmuls"] == expected
    assert stages["full"]["matmuls"]["fp8"] == 7 * (depth - 1) + 2 + 2 * 7 * depth


def test_weights_lie_beside_the_graph(graphs_fp16: Path) -> None:
    graph, data = graphs_fp16 / "prefill.onnx", graphs_fp16 / "prefill.onnx.data"
    document = read_export(graphs_fp16)
    assert data.stat().st_size > 50_000
    # Codes of one byte each, norms and scales: far below two bytes per weight.
    assert document["stages"]["prefill"]["initializer_bytes"] < 2 * 64 * 64 * 40
    assert graph.stat().st_size < 200_000


def test_scales_may_lie_beside_the_graph_too(
    model: Pi05,
    shapes: StageShapes,
    calibration: Calibration,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At real size the scales of a layer are larger than what stays inline."""
    monkeypatch.setattr(export, "INLINE_BYTES", 33)
    export.export_stage(model, "prefill", shapes, tmp_path, calibration=calibration)


def test_node_names_are_module_paths(graphs_fp16: Path) -> None:
    import onnx

    graph = onnx.load(str(graphs_fp16 / "denoise_step.onnx"), load_external_data=False).graph
    names = [node.name for node in graph.node]
    assert len(names) == len(set(names))
    assert "/layers/1/mlp/gate_proj/MatMul" in names


def test_graph_hash_follows_weights_and_files(graphs_fp16: Path) -> None:
    document = read_export(graphs_fp16)
    assert graph_hash(document) == document["graph_hash"]
    assert graph_hash({**document, "weights": "sha256:other"}) != document["graph_hash"]


def test_damaged_or_foreign_exports_are_refused(tmp_path: Path, graphs_fp16: Path) -> None:
    with pytest.raises(BackendError, match="pi05 export"):
        read_export(tmp_path)
    (tmp_path / "export.json").write_text("{")
    with pytest.raises(BackendError, match="damaged"):
        read_export(tmp_path)
    (tmp_path / "export.json").write_text("[]")
    with pytest.raises(BackendError, match="not a mapping"):
        read_export(tmp_path)
    document = read_export(graphs_fp16)
    (tmp_path / "export.json").write_text(json.dumps({**document, "schema": 99}))
    with pytest.raises(BackendError, match="schema 99"):
        read_export(tmp_path)


def test_given_graphs_must_be_what_was_asked_for(
    graphs_fp16: Path, model: Pi05, shapes: StageShapes, tmp_path: Path
) -> None:
    sizes = {"views": shapes.views, "horizon": shapes.horizon, "max_prompt_tokens": 12}
    engine = onnx_backend.create(model, Precision(), graphs=graphs_fp16, **sizes)
    assert engine.precision == Precision("fp16", "fp8", "fp8")
    engine.close()
    for precision, sized, message in (
        (Precision(prefill="fp16"), sizes, "precision.prefill fp8, needed: fp16"),
        (Precision(vision="fp32"), sizes, "precision.vision fp16, needed: fp32"),
        (Precision(), {**sizes, "views": 1}, "have shapes"),
    ):
        with pytest.raises(BackendError, match=message):
            onnx_backend.create(model, precision, graphs=graphs_fp16, **sized)
    copy = shutil.copytree(graphs_fp16, tmp_path / "graphs")
    shutil.copy(copy / "vision.onnx", copy / "prefill.onnx")
    with pytest.raises(BackendError, match=r"prefill\.onnx is not what was exported"):
        onnx_backend.create(model, Precision(), graphs=copy, **sizes)


def test_onnx_runs_where_the_model_is_if_it_can(
    graphs_fp16: Path, model: Pi05, shapes: StageShapes, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.device] = []

    class Runner:
        def __init__(self, path: Path, device: torch.device, threads: int | None) -> None:
            seen.append(device)

    cuda = torch.device("cuda", 0)
    document = read_export(graphs_fp16)
    monkeypatch.setattr(onnx_engine, "OrtRunner", Runner)
    monkeypatch.setattr(Pi05, "device", property(lambda model: cuda))
    for able, expected in ((True, cuda), (False, CPU)):
        monkeypatch.setattr(onnx_engine, "_has_cuda", lambda able=able: able)
        engine = onnx_engine.engine_of(model, shapes, graphs_fp16, document)
        assert engine.device == expected == seen[-1]
        assert f"on {expected.type}, fp16 graphs" in engine.reason


def test_ort_refuses_what_is_no_graph(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"not a graph")
    with pytest.raises(BackendError, match="refuses"):
        OrtRunner(tmp_path / "x.onnx", CPU)


def test_export_without_quantization(model: Pi05, shapes: StageShapes, tmp_path: Path) -> None:
    exported = export.export_stage(model, "prefill", shapes, tmp_path)
    assert set(exported.report["matmuls"]) == {"FLOAT16"}
