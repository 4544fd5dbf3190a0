"""Engines on the fake TensorRT from building to running; failures at run time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_sets import CPU, SIZES, Install, build, check, keep

from pi05_ros.backends import tensorrt as backend
from pi05_ros.backends.engine import Precision
from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.export.export_document import read_export
from pi05_ros.backends.quantization.calibrate import reference_engine
from pi05_ros.backends.quantization.calibration import Calibration
from pi05_ros.backends.quantization.samples import Sample
from pi05_ros.backends.staged.engine import StagedEngine
from pi05_ros.backends.staged.shapes import STAGES
from pi05_ros.backends.tensorrt.engine_report import require_verified
from pi05_ros.backends.tensorrt.engine_set import UnverifiedEngineError
from pi05_ros.backends.tensorrt.engine_store import load_runners
from pi05_ros.backends.verification.verify import check_engine
from pi05_ros.model import Pi05


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
    with pytest.raises(UnverifiedEngineError, match="never checked here"):
        backend.create(model, Precision(), cache=tmp_path, **SIZES)
    report = check(found, graphs_fp16, reference, fake_quant, samples)
    assert report.ok, [f.as_dict() for f in report.failures]
    keep(found, report)
    engine = backend.create(model, Precision(), cache=tmp_path, **SIZES)
    assert "passing report" in engine.reason
    sample = samples[3]
    actions = engine.sample(sample.images, sample.tokens, sample.noise)
    truth = reference.sample(sample.images, sample.tokens, sample.noise)
    assert float((actions - truth).norm() / truth.norm()) < 0.05
    again = engine.sample(sample.images, sample.tokens, sample.noise)
    assert torch.equal(actions, again)
    kept = engine.prefill(sample.images, sample.tokens)
    engine.prefill(samples[4].images, samples[4].tokens)
    assert torch.equal(engine.denoise(kept, sample.noise), actions)
    assert engine.sample(sample.images[:1], sample.tokens, sample.noise, 3).shape == (10, 32)
    assert backend.verified(model, Precision(), cache=tmp_path, **SIZES)[0]
    engine.close()
    del engine
    assert faults.live_contexts == 0


def test_errors_are_recorded_and_counted(install: Install) -> None:
    install()
    import tensorrt as trt

    from pi05_ros.backends.tensorrt import callbacks

    classes = callbacks.callbacks_of(trt)
    logger = classes.logger()
    recorder = classes.error_recorder(logger)
    for index in range(callbacks.KEPT + 1):
        assert not recorder.has_overflowed()
        assert recorder.report_error(trt.ErrorCodeTRT.INTERNAL_ERROR, f"error {index}")
    assert recorder.has_overflowed()
    assert recorder.num_errors() == callbacks.KEPT == len(logger.kept)
    assert recorder.get_error_desc(1) == "error 1"
    assert recorder.get_error_code(1) == trt.ErrorCodeTRT.INTERNAL_ERROR
    assert logger.last_errors(1).endswith(f"INTERNAL_ERROR: error {callbacks.KEPT}")
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
            "cannot load .*UNSPECIFIED_ERROR: Serialization assertion failed",
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
    runners = load_runners(found, CPU).runners
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
    runners = load_runners(build(graphs_fp16, tmp_path), CPU).runners
    assert len({id(runner.scratch) for runner in runners.values()}) == 1


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
    truth = reference.prefill(sample.images, sample.tokens).keys[2]
    errors = [
        float((each.prefill(sample.images, sample.tokens).keys[2].float() - truth).norm())
        for each in (engine, whole)
    ]
    assert errors[0] < errors[1]
    # Layer 0's engine in every layer, the mistake that cost others all success: refused.
    engine.runners["prefill"].module.layers[1].mlp = engine.runners["prefill"].module.layers[0].mlp
    assert not check_engine(engine, reference, simulated, samples[:2], steps=3).ok
    engine.close()


@pytest.mark.parametrize("version", ["10.13.3.9", "11.4.0.106"])
@pytest.mark.parametrize(
    ("fault", "item"),
    [
        ("drop_fp8", "prefill: quantized products"),
        ("half_softmax", "vision: softmax or norm in half precision"),
        ("no_layer_details", "denoise_step: engine built without layer details"),
    ],
)
def test_engines_that_are_not_what_was_asked_for_are_refused(
    fault: str,
    item: str,
    version: str,
    install: Install,
    graphs_fp16: Path,
    tmp_path: Path,
    reference: StagedEngine,
    fake_quant: StagedEngine,
    samples: list[Sample],
) -> None:
    """Right numbers, and still not the engine: only its own description tells."""
    faults = install(version)
    setattr(faults, fault, True)
    found = build(graphs_fp16, tmp_path)
    report = check(found, graphs_fp16, reference, fake_quant, samples)
    assert item in [finding.item for finding in report.failures]
    assert not any("cosine" in finding.item for finding in report.failures)
    keep(found, report)
    with pytest.raises(UnverifiedEngineError, match="failed their check"):
        require_verified(found, CPU)


def test_everything_happens_on_the_device_of_the_engine(
    install: Install,
    graphs_fp16: Path,
    tmp_path: Path,
    model: Pi05,
    samples: list[Sample],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """TensorRT takes the current CUDA device, whatever the addresses: there may be two."""
    install()
    from pi05_ros.backends.tensorrt import binding, engine_store, flow_loop, runtime
    from pi05_ros.backends.tensorrt.engine import TensorrtEngine

    second = torch.device("cuda", 1)
    assert isinstance(binding.on_device(second), torch.cuda.device)
    current: list[torch.device] = []

    @contextlib.contextmanager
    def on_device(device: torch.device) -> Iterator[None]:
        current.append(device)
        yield
        current.pop()

    def only_there(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def call(*args: Any, **options: Any) -> Any:
            assert current, name
            return real(*args, **options)

        monkeypatch.setattr(owner, name, call)

    import tensorrt as trt

    for module in (engine_store, runtime, flow_loop):
        monkeypatch.setattr(module, "on_device", on_device)
    only_there(trt.Builder, "build_serialized_network")
    only_there(trt.Runtime, "deserialize_cuda_engine")
    only_there(trt.ICudaEngine, "create_execution_context")
    only_there(trt.IExecutionContext, "execute_async_v3")
    engine = TensorrtEngine(model, build(graphs_fp16, tmp_path), CPU)
    sample = samples[0]
    engine.sample(sample.images, sample.tokens, sample.noise, 2)
    engine.close()
    assert not current
