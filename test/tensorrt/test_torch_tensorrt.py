"""torch-tensorrt: versions are checked first, the modules it gets are quantized and exportable."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.experimental import torch_tensorrt as ours
from pi05_ros.backends.quantization.calibrate import reference_engine
from pi05_ros.backends.quantization.calibration import Calibration
from pi05_ros.backends.quantization.samples import Sample
from pi05_ros.backends.staged.engine import StagedEngine
from pi05_ros.backends.staged.shapes import StageShapes
from pi05_ros.model import Pi05


@pytest.mark.parametrize("release", sorted(ours.TENSORRT_OF))
def test_each_release_goes_with_one_torch_and_one_tensorrt(release: tuple[int, int]) -> None:
    major, minor = release
    trt = ".".join(map(str, ours.TENSORRT_OF[release]))
    found = ours.check_versions(f"{major}.{minor}.0", f"{major}.{minor}.1+cu130", f"{trt}.1.2")
    assert found == release
    with pytest.raises(BackendError, match=f"needs torch {major}"):
        ours.check_versions(f"{major}.{minor}.0", f"{major}.{minor + 1}.0", f"{trt}.1.2")
    with pytest.raises(BackendError, match=rf"built for TensorRT {trt}, here is 10\.3"):
        ours.check_versions(f"{major}.{minor}.0", f"{major}.{minor}.0", "10.3.0")
    typed = "use_explicit_typing" in ours.compile_options(release)
    assert typed == (release < (2, 13))


def test_unknown_release_and_missing_package() -> None:
    with pytest.raises(BackendError, match=r"2\.8\.0 is not known; accepted: 2\.9"):
        ours.check_versions("2.8.0", "2.8.0", "10.12.0")
    with pytest.raises(BackendError, match="torch-tensorrt is not installed"):
        ours.load_compiler()


def test_modules_reach_the_compiler_quantized(
    install: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    model: Pi05,
    shapes: StageShapes,
    calibration: Calibration,
    reference: StagedEngine,
    samples: list[Sample],
) -> None:
    major, minor = (int(word) for word in torch.__version__.split(".")[:2])
    install(".".join(map(str, ours.TENSORRT_OF[major, minor])) + ".0.114")
    seen: list[tuple[int, dict[str, Any]]] = []

    def compile_program(program: Any, arg_inputs: list[torch.Tensor], **options: Any) -> Any:
        operator = torch.ops.tensorrt.quantize_op.default
        count = sum(node.target is operator for node in program.graph.nodes)
        seen.append((count, options))
        return program.module()

    fake = ModuleType("torch_tensorrt")
    fake.__version__ = f"{major}.{minor}.0"  # type: ignore[attr-defined]
    fake.__spec__ = ModuleSpec("torch_tensorrt", None)
    fake.dynamo = SimpleNamespace(compile=compile_program)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_tensorrt", fake)
    engine = ours.torch_tensorrt_engine(model, shapes, calibration)
    depth = model.config.vlm.depth
    # Two quantizers per Linear: three Linears per MLP, seven per expert layer.
    assert [count for count, _ in seen] == [6] * (depth - 1) + [14 * depth]
    assert all(options["require_full_compilation"] for _, options in seen)
    sample = samples[0]
    found = engine.sample(sample.images, sample.tokens, sample.noise)
    truth = reference.sample(sample.images, sample.tokens, sample.noise)
    simulated = reference_engine(model, shapes, None, calibration, layout="mlp_only").sample(
        sample.images, sample.tokens, sample.noise
    )
    error = float((found - truth).norm() / truth.norm())
    assert 0.3 < error / float((simulated - truth).norm() / truth.norm()) < 3
    engine.close()

    def cannot(program: Any, **options: Any) -> Any:
        raise AssertionError("no converter for aten.sin")

    fake.dynamo = SimpleNamespace(compile=cannot)  # type: ignore[attr-defined]
    with pytest.raises(BackendError, match=r"cannot compile prefill_mlp_00: no converter"):
        ours.torch_tensorrt_engine(model, shapes, calibration)


def test_other_presets_are_refused(model: Pi05, calibration: Calibration) -> None:
    stage = ours.make_stage(model, "denoise_step", torch.float32)
    other = Calibration("w8a16", calibration.amax)
    with pytest.raises(BackendError, match="takes FP8 presets"):
        ours.modelopt_module(stage, "denoise_step", "", other)
