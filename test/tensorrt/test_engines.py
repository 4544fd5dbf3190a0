"""Build, check, load and run engines on the fake TensorRT: every failure says what to do."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pi05_ros.backends import create_engine
from pi05_ros.backends import tensorrt as backend
from pi05_ros.backends.engine import Precision
from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.tensorrt import binding, engines, room, store
from pi05_ros.backends.tensorrt.calibration import Calibration
from pi05_ros.backends.tensorrt.engines import (
    EngineSet,
    UnprovenEngineError,
    build_engines,
    find_proven,
    load_runners,
    open_set,
    require_match,
    require_proof,
    write_report,
)
from pi05_ros.backends.tensorrt.export import read_export
from pi05_ros.backends.tensorrt.identity import weights_id
from pi05_ros.backends.tensorrt.inspector import quantised_products, read_layers
from pi05_ros.backends.tensorrt.pipeline import StagedEngine
from pi05_ros.backends.tensorrt.prove import Report, check_engine
from pi05_ros.backends.tensorrt.quantize import reference_engine
from pi05_ros.backends.tensorrt.samples import Sample
from pi05_ros.backends.tensorrt.shapes import STAGES
from pi05_ros.model import Pi05

CPU = torch.device("cpu")
Install = Callable[..., Any]
SIZES = {"views": 2, "horizon": 10, "max_prompt_tokens": 12}


def build(graphs: Path, root: Path, level: int = 3) -> EngineSet:
    from pi05_ros.backends.tensorrt.compile import BuildFlags

    return build_engines(graphs, BuildFlags(optimization_level=level), CPU, root=root)


def inspect(found: EngineSet, graphs: Path) -> dict[str, Any]:
    facts = {}
    for stage in STAGES:
        expected = quantised_products(str(graphs / f"{stage}.onnx"))
        text = (found.folder / f"layers_{stage}.json").read_text()
        facts[stage] = (read_layers(text, expected), len(expected))
    return facts


def check(
    found: EngineSet,
    graphs: Path,
    reference: StagedEngine,
    fake_quant: StagedEngine,
    samples: list[Sample],
) -> Report:
    from pi05_ros.backends.tensorrt.engine import TensorrtEngine

    engine = TensorrtEngine(reference.model, found, CPU)
    report = check_engine(
        engine,
        reference,
        fake_quant,
        samples[:2],
        steps=4,
        inspector=inspect(found, graphs),
    )
    engine.close()
    return report


@pytest.mark.parametrize("version", ["10.13.3.9", "11.4.0.106"])
def test_built_checked_loaded_and_run(
    version: str,
    install: Install,
    graphs_fp16: Path,
    tmp_path: Path,
    reference: StagedEngine,
    fake_quant: StagedEngine,
    samples: list[Sample],
    model: Pi05,
) -> None:
    faults = install(version)
    found = build(graphs_fp16, tmp_path)
    assert {p.name for p in found.folder.iterdir()} == {
        *(f"{stage}.plan" for stage in STAGES),
        *(f"layers_{stage}.json" for stage in STAGES),
        "key.json",
        "build.log",
    }
    log = (found.folder / "build.log").read_text()
    assert "trtexec --onnx=" in log
    assert ("--stronglyTyped" in log) == version.startswith("10.")
    assert found.precision == Precision("fp16", "fp8", "fp8")
    with pytest.raises(UnprovenEngineError, match="never checked here"):
        backend.create(model, Precision(), cache=tmp_path, **SIZES)
    report = check(found, graphs_fp16, reference, fake_quant, samples)
    assert report.ok, [f.as_dict() for f in report.failures]
    write_report(found, report, "golden")
    engine = backend.create(model, Precision(), cache=tmp_path, **SIZES)
    assert "passing report" in engine.reason
    sample = samples[3]
    actions = engine.sample(sample.images, sample.tokens, sample.noise)
    truth = reference.sample(sample.images, sample.tokens, sample.noise)
    assert float((actions - truth).norm() / truth.norm()) < 0.05
    again = engine.sample(sample.images, sample.tokens, sample.noise)
    assert torch.equal(actions, again)
    kept = engine.context(sample.images, sample.tokens)
    engine.context(samples[4].images, samples[4].tokens)
    assert torch.equal(engine.denoise(kept, sample.noise), actions)
    assert engine.sample(sample.images[:1], sample.tokens, sample.noise, 3).shape == (10, 32)
    assert backend.proven(model, Precision(), cache=tmp_path, **SIZES)[0]
    engine.close()
    del engine
    assert faults.live_contexts == 0


def test_timing_cache_is_reused_and_stale_ones_are_replaced(
    install: Install, graphs_fp16: Path, tmp_path: Path
) -> None:
    faults = install()
    found = build(graphs_fp16, tmp_path)
    cache = found.folder.parent.parent / "timing.cache"
    assert cache.read_bytes() == b"measured"
    faults.stale_timing_cache = True
    build(graphs_fp16, tmp_path, level=2)


def test_builder_failures_name_their_reasons(
    install: Install, graphs_fp16: Path, tmp_path: Path
) -> None:
    faults = install()
    faults.builder_is_null = True
    with pytest.raises(BackendError, match=r"cannot create a builder.*error: 35"):
        build(graphs_fp16, tmp_path)
    faults.builder_is_null = False
    faults.parser_errors = [("/layers/0/x", "unsupported"), ("", "bad shape")]
    with pytest.raises(BackendError, match=r"/layers/0/x: unsupported\n.*node 7: bad shape"):
        build(graphs_fp16, tmp_path)
    faults.parser_errors = []
    faults.build_returns_none = True
    with pytest.raises(BackendError, match=r"could not build.*INTERNAL_ERROR: no implementation"):
        build(graphs_fp16, tmp_path)
    folder = next(tmp_path.rglob("engines")).iterdir()
    assert not any((path / "key.json").exists() for path in folder)


def test_flags_are_checked(install: Install) -> None:
    install()
    from pi05_ros.backends.tensorrt.compile import BuildFlags

    with pytest.raises(BackendError, match="accepted are 0 to 5"):
        BuildFlags(optimization_level=6)
    with pytest.raises(BackendError, match="0 and more"):
        BuildFlags(workspace_mib=-1)


def test_progress_reaches_the_caller(install: Install, graphs_fp16: Path, tmp_path: Path) -> None:
    install()
    from pi05_ros.backends.tensorrt.compile import BuildFlags

    seen: list[tuple[str, str, int, int]] = []
    build_engines(
        graphs_fp16,
        BuildFlags(workspace_mib=64),
        CPU,
        root=tmp_path,
        progress=lambda *words: seen.append(words),
    )
    assert ("vision", "Building engine", 2, 2) in seen


def test_altered_graphs_are_not_built(install: Install, graphs_fp16: Path, tmp_path: Path) -> None:
    install()
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in graphs_fp16.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    data = copy / "prefill.onnx.data"
    data.write_bytes(data.read_bytes()[:-1] + b"\x01")
    with pytest.raises(BackendError, match="is not what was exported"):
        build(copy, tmp_path)


def test_full_disk(
    install: Install, graphs_fp16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install()

    class Usage:
        free = 1000

    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(BackendError, match="MiB free, the plans need"):
        build(graphs_fp16, tmp_path)
    monkeypatch.undo()
    target = tmp_path / "x.plan"

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.os, "fsync", fail)
    with pytest.raises(BackendError, match="No space left on device"):
        store.write_atomically(target, b"plan")
    assert list(tmp_path.glob("*.plan")) == list(tmp_path.glob(".x.plan*")) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MemTotal: 8 kB\nMemAvailable:  102400 kB\n", r"^100 MiB of host memory are available"),
        ("MemAvailable: 99999999999 kB\n", ""),
        ("MemFree: 1 kB\nMemAvailable:\n", ""),  # nobody says: go on
    ],
)
def test_too_little_host_memory(
    text: str,
    message: str,
    install: Install,
    graphs_fp16: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install()
    information = tmp_path / "meminfo"
    information.write_text(text)
    monkeypatch.setattr(room, "MEMORY_INFO", information)
    if message:
        with pytest.raises(BackendError, match=message) as caught:
            build(graphs_fp16, tmp_path)
        assert re.search(r"building \w+ needs about 5\d\d MiB", str(caught.value))
        assert not list(tmp_path.rglob("*.plan"))
    else:
        room.require_room(graphs_fp16, read_export(graphs_fp16), tmp_path, CPU)
    monkeypatch.setattr(room, "MEMORY_INFO", tmp_path / "missing")
    assert room.available_memory() is None


def test_too_little_gpu_memory(
    graphs_fp16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    with pytest.raises(BackendError, match="0 MiB of GPU memory are free, building"):
        room.require_room(graphs_fp16, read_export(graphs_fp16), tmp_path, torch.device("cuda", 0))


def test_errors_are_recorded_and_counted(install: Install) -> None:
    install()
    import tensorrt as trt

    from pi05_ros.backends.tensorrt import native

    logger = native.Logger()
    recorder = native.ErrorRecorder(logger)
    for index in range(native.KEPT + 1):
        assert not recorder.has_overflowed()
        assert recorder.report_error(trt.ErrorCodeTRT.INTERNAL_ERROR, f"error {index}")
    assert recorder.has_overflowed()
    assert recorder.num_errors() == native.KEPT == len(logger.kept)
    assert recorder.get_error_desc(1) == "error 1"
    assert recorder.get_error_code(1) == trt.ErrorCodeTRT.INTERNAL_ERROR
    assert logger.last_errors(1).endswith(f"INTERNAL_ERROR: error {native.KEPT}")
    recorder.clear()
    assert (recorder.num_errors(), recorder.has_overflowed()) == (0, False)
    assert logger.kept


def test_runtime_failures(install: Install, graphs_fp16: Path, tmp_path: Path) -> None:
    faults = install()
    found = build(graphs_fp16, tmp_path)
    for name, value, message in (
        ("runtime_is_null", True, "cannot create a runtime"),
        (
            "deserialize_returns_none",
            True,
            "cannot load .*INTERNAL_ERROR: Serialization assertion failed",
        ),
        ("context_is_none", True, "no execution context"),
        ("refuse_address_of", "pixels", "refuses the address of pixels"),
        ("missing_shapes", ["pixels"], "lacks shapes of pixels"),
        ("wrong_dtype_of", "mask", "mask of prefill.plan is"),
        ("wrong_shape_of", "velocity", "velocity of denoise_step.plan is"),
        ("extra_tensor", "state", "has tensors"),
    ):
        before = getattr(faults, name)
        setattr(faults, name, value)
        with pytest.raises(BackendError, match=message):
            load_runners(found, CPU)
        setattr(faults, name, before)
    runners = load_runners(found, CPU)
    faults.execute_returns_false = True
    buffers = runners["vision"].buffers
    with pytest.raises(BackendError, match=r"failed to run: .*FAILED_EXECUTION: .*illegal access"):
        runners["vision"].run({"pixels": buffers["pixels"]})
    faults.execute_returns_false = False
    with pytest.raises(BackendError, match=r"pixels is torch\.float32"):
        runners["vision"].run({"pixels": buffers["pixels"].float()})
    with pytest.raises(BackendError, match=r"takes torch.float16 \[2, 3, 56, 56\]"):
        runners["vision"].run({"pixels": buffers["pixels"][:1]})
    runners["vision"].close()
    with pytest.raises(BackendError, match="is closed"):
        runners["vision"].enqueue()


def test_stages_share_scratch_memory(install: Install, graphs_fp16: Path, tmp_path: Path) -> None:
    install()
    runners = load_runners(build(graphs_fp16, tmp_path), CPU)
    assert len({id(runner.scratch) for runner in runners.values()}) == 1


def test_only_the_exact_key_is_loaded(
    install: Install,
    graphs_fp16: Path,
    tmp_path: Path,
    reference: StagedEngine,
    fake_quant: StagedEngine,
    samples: list[Sample],
    model: Pi05,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install()
    found = build(graphs_fp16, tmp_path)
    write_report(found, check(found, graphs_fp16, reference, fake_quant, samples), "golden")
    weights = weights_id(model)
    require_proof(found)
    require_match(open_set(found.folder), weights, CPU)
    with pytest.raises(UnprovenEngineError, match="are of weights"):
        require_match(found, "sha256:other", CPU)
    facts = engines.machine_facts(CPU)
    monkeypatch.setattr(engines, "machine_facts", lambda d: {**facts, "gpu": "another"})
    with pytest.raises(UnprovenEngineError, match="with gpu 'cpu', here it is 'another'"):
        find_proven(weights, found.shapes, Precision(), CPU, tmp_path)
    monkeypatch.setattr(engines, "machine_facts", lambda d: facts)
    install("11.4.0.106")
    with pytest.raises(
        UnprovenEngineError, match=r"built by TensorRT 10\.13\.3\.9, this is 11\.4"
    ):
        find_proven(weights, found.shapes, Precision(), CPU, tmp_path)
    install()
    with pytest.raises(UnprovenEngineError, match="run prefill in fp8, asked for is fp16"):
        find_proven(weights, found.shapes, Precision(prefill="fp16"), CPU, tmp_path)
    with pytest.raises(BackendError, match="are for horizon 10, the policy needs 9"):
        backend.create(model, Precision(), cache=tmp_path, **{**SIZES, "horizon": 9})
    assert find_proven(weights, found.shapes, Precision(), CPU, tmp_path).folder == found.folder


def test_altered_files_are_refused(
    install: Install, graphs_fp16: Path, tmp_path: Path, model: Pi05
) -> None:
    install()
    found = build(graphs_fp16, tmp_path)
    plan = found.folder / "prefill.plan"
    whole = plan.read_bytes()
    plan.write_bytes(whole[:-3])
    with pytest.raises(UnprovenEngineError, match="missing, cut short or altered"):
        open_set(found.folder)
    plan.write_bytes(whole)
    key = found.folder / "key.json"
    content = json.loads(key.read_text())
    content["document"]["flags"]["tf32"] = True
    key.write_text(json.dumps(content))
    with pytest.raises(UnprovenEngineError, match="does not match its content"):
        open_set(found.folder)
    key.write_text("[]")
    with pytest.raises(UnprovenEngineError, match="not a mapping"):
        open_set(found.folder)
    key.write_bytes(b"\xff")
    with pytest.raises(UnprovenEngineError, match="damaged"):
        open_set(found.folder)
    key.unlink()
    with pytest.raises(UnprovenEngineError, match="no finished build"):
        open_set(found.folder)
    with pytest.raises(UnprovenEngineError, match="no engines of this checkpoint"):
        find_proven("sha256:none", found.shapes, Precision(), CPU, tmp_path)


def test_reports_of_other_plans_or_refusals_do_not_count(
    install: Install,
    graphs_fp16: Path,
    tmp_path: Path,
    reference: StagedEngine,
    fake_quant: StagedEngine,
    samples: list[Sample],
) -> None:
    faults = install()
    found = build(graphs_fp16, tmp_path)
    report = check(found, graphs_fp16, reference, fake_quant, samples)
    path = write_report(found, report, "golden")
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "plans": {}}))
    with pytest.raises(UnprovenEngineError, match="not about these plans"):
        require_proof(found)
    faults.perturb = 0.3
    bad = check(found, graphs_fp16, reference, fake_quant, samples)
    assert not bad.ok
    write_report(found, bad, "golden")
    with pytest.raises(UnprovenEngineError, match=r"failed their check .*--optimization-level 2"):
        require_proof(found)


def test_folder_of_others_is_refused(install: Install, graphs_fp16: Path, tmp_path: Path) -> None:
    install()
    found = build(graphs_fp16, tmp_path)
    os.chmod(found.folder, 0o777)
    with pytest.raises(BackendError, match="others may write"):
        open_set(found.folder)


def test_fallback_only_when_allowed_and_visible(
    install: Install, tmp_path: Path, model: Pi05, caplog: pytest.LogCaptureFixture
) -> None:
    install()
    with pytest.raises(UnprovenEngineError, match="run: pi05 build"):
        backend.create(model, Precision(), cache=tmp_path, **SIZES)
    with caplog.at_level(logging.ERROR):
        engine = create_engine(model, "tensorrt", cache=tmp_path, allow_fallback=True, **SIZES)
    assert engine.backend == "eager"
    assert engine.reason.startswith("fallback from tensorrt: no engines of this checkpoint")
    assert "backend tensorrt cannot be used, eager is" in caplog.text
    assert create_engine(model, "auto", **SIZES).backend == "eager"


def test_absent_old_and_new_tensorrt(
    install: Install, monkeypatch: pytest.MonkeyPatch, model: Pi05
) -> None:
    assert not binding.usable()[0]
    with pytest.raises(BackendError, match="not installed: pip install tensorrt"):
        binding.require_tensorrt()
    for version in ("10.12.0.36", "12.0.0.1", "8.6.1"):
        install(version)
        with pytest.raises(BackendError, match=r"needed are 10\.13 up to 11\.x"):
            binding.require_tensorrt()
    with pytest.raises(BackendError, match="cannot read"):
        binding.parse_version("unknown")
    works, why = backend.proven(model, Precision(), 2, 10, 12)
    assert not works
    assert "not supported" in why


def test_gpu_without_fp8_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendError, match="no CUDA device"):
        binding.require_gpu(fp8=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 7))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Orin")
    with pytest.raises(BackendError, match=r"Orin \(compute capability 8.7\) has no FP8"):
        binding.require_gpu(fp8=True)
    assert binding.require_gpu(fp8=False) == torch.device("cuda", 0)
    second = torch.device("cuda", 1)
    assert binding.require_gpu(fp8=False, near=second) == second
    assert binding.require_gpu(fp8=False, near=CPU) == torch.device("cuda", 0)


def test_engines_of_the_mlps_alone(
    install: Install,
    graphs_mlp_only: Path,
    model: Pi05,
    calibration: Calibration,
    reference: StagedEngine,
    samples: list[Sample],
    tmp_path: Path,
) -> None:
    """FP8 engines for the prefill's MLPs, torch attention in half precision around them."""
    from pi05_ros.backends.tensorrt.engine import TensorrtEngine

    install()
    document = read_export(graphs_mlp_only)
    assert set(document["stages"]) == {
        "vision",
        "prefill_mlp_00",
        "prefill_mlp_01",
        "denoise_step",
    }
    assert document["stages"]["prefill_mlp_01"]["matmuls"] == {"fp8": 3}
    found = build(graphs_mlp_only, tmp_path)
    simulated = reference_engine(model, reference.shapes, None, calibration, layout="mlp_only")
    engine = TensorrtEngine(model, found, CPU)
    report = check_engine(engine, reference, simulated, samples[:2], steps=3)
    assert report.ok, [f.as_dict() for f in report.failures]
    whole = reference_engine(model, reference.shapes, None, calibration)
    sample = samples[0]
    truth = reference.context(sample.images, sample.tokens).keys[2]
    errors = [
        float((each.context(sample.images, sample.tokens).keys[2].float() - truth).norm())
        for each in (engine, whole)
    ]
    assert errors[0] < errors[1]
    # Layer 0's engine in every layer, the mistake that cost others all success: refused.
    engine.runners["prefill"].module.layers[1].mlp = engine.runners["prefill"].module.layers[0].mlp
    assert not check_engine(engine, reference, simulated, samples[:2], steps=3).ok
    engine.close()


def test_swapped_graphs_are_not_built(
    install: Install, graphs_mlp_only: Path, tmp_path: Path
) -> None:
    install()
    graphs = tmp_path / "graphs"
    graphs.mkdir()
    for path in graphs_mlp_only.iterdir():
        (graphs / path.name).write_bytes(path.read_bytes())
    for suffix in ("", ".data"):
        source = graphs / f"prefill_mlp_00.onnx{suffix}"
        (graphs / f"prefill_mlp_01.onnx{suffix}").write_bytes(source.read_bytes())
    with pytest.raises(BackendError, match=r"prefill_mlp_01\.onnx\S* is not what was exported"):
        build(graphs, tmp_path)
