"""Backend onnx: exported graphs as a policy engine, cached per checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from pi05_ros.backends import BackendError, Precision, create_engine
from pi05_ros.backends import onnx as onnx_backend
from pi05_ros.backends.files import model_folder
from pi05_ros.backends.identity import weights_id
from pi05_ros.backends.onnx import engine as onnx_engine
from pi05_ros.backends.quantization.calibrate import calibrate
from pi05_ros.backends.quantization.samples import synthetic_samples
from pi05_ros.backends.staged.shapes import StageShapes
from pi05_ros.model import Pi05, Pi05Config

SIZES = {"views": 2, "horizon": 10, "max_prompt_tokens": 8}


def small_config() -> Pi05Config:
    """Fewer layers: what takes time here is tracing them."""
    tiny = Pi05Config.preset("tiny")
    return replace(
        tiny,
        vision=replace(tiny.vision, num_hidden_layers=1),
        vlm=replace(tiny.vlm, depth=2),
        expert=replace(tiny.expert, depth=2),
    )


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> Pi05:
    return Pi05.random(small_config(), seed=5)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_equals_eager_and_reuses_its_graphs(model: Pi05, cache: Path) -> None:
    engine = create_engine(model, "onnx", cache=cache, **SIZES)
    eager = create_engine(model, "eager", horizon=10)
    images = torch.randint(0, 256, (1, 60, 80, 3), dtype=torch.uint8)
    tokens = torch.tensor([2, 17, 40])
    noise = torch.randn(10, 32, generator=torch.Generator().manual_seed(0))
    found = engine.sample(images, tokens, noise)
    torch.testing.assert_close(found, eager.sample(images, tokens, noise), rtol=1e-4, atol=1e-5)
    assert engine.precision == Precision("fp32", "fp32", "fp32")
    assert engine.backend == "onnx"
    before = {p: p.stat().st_mtime_ns for p in cache.rglob("*.onnx")}
    create_engine(model, "onnx", cache=cache, **SIZES).close()
    assert before == {p: p.stat().st_mtime_ns for p in cache.rglob("*.onnx")}
    engine.close()


def test_another_checkpoint_gets_its_own_graphs(model: Pi05, cache: Path) -> None:
    other = Pi05.random(small_config(), seed=6)
    folder = next(cache.rglob("export.json")).parent
    with pytest.raises(BackendError, match="have weights sha256"):
        create_engine(other, "onnx", graphs=folder, cache=cache, **SIZES)
    with pytest.raises(BackendError, match="have shapes"):
        create_engine(model, "onnx", graphs=folder, cache=cache, **{**SIZES, "horizon": 9})
    same = create_engine(model, "onnx", graphs=folder, **SIZES)
    assert same.sample(torch.zeros(0, 3, 56, 56), torch.tensor([2]), torch.zeros(10, 32)).shape


def test_fp8_needs_a_calibration_of_these_weights(model: Pi05, cache: Path) -> None:
    fp8 = Precision("fp16", "fp8", "fp8")
    with pytest.raises(BackendError, match="pi05 calibrate --for tensorrt"):
        create_engine(model, "onnx", fp8, cache=cache, **SIZES)
    shapes = StageShapes.of(model.config, 2, 8, 10)
    samples = synthetic_samples(model.config, 8, views=2, prompt_tokens=8, horizon=10)
    found = calibrate(model, "sha256:other", samples, shapes=shapes, steps=2, allow_synthetic=True)
    wrong = cache / "wrong"
    found.save(wrong)
    with pytest.raises(BackendError, match="made for weights"):
        create_engine(model, "onnx", fp8, calibration=wrong, cache=cache, **SIZES)
    identity = weights_id(model)
    found.info["weights"] = identity
    found.save(model_folder(identity, cache) / "quant" / "first")
    engine = create_engine(model, "onnx", fp8, cache=cache, **SIZES)
    sample = samples[0]
    expected = create_engine(model, "eager", horizon=10).sample(
        sample.images, sample.tokens, sample.noise
    )
    actions = engine.sample(sample.images, sample.tokens, sample.noise)
    error = float((actions - expected).norm() / expected.norm())
    assert 1e-4 < error < 0.1  # quantized, and still the same policy


@pytest.mark.parametrize("name", ["stages", "shapes", "layout", "quantised_stages", "preset"])
def test_graphs_whose_description_is_damaged_are_refused(
    name: str, model: Pi05, cache: Path
) -> None:
    create_engine(model, "onnx", cache=cache, **SIZES).close()
    path = next(cache.rglob("export.json"))
    whole = path.read_text()
    content = json.loads(whole)
    for other in ({k: v for k, v in content.items() if k != name}, {**content, name: [[3]]}):
        path.write_text(json.dumps(other))
        with pytest.raises(BackendError, match=r"damaged .*export again: pi05 export"):
            create_engine(model, "onnx", graphs=path.parent, **SIZES)
    path.write_text(whole)


@pytest.mark.parametrize(
    ("precision", "message"),
    [
        (Precision("bf16"), "has fp32 and fp16"),
        (Precision("fp16", "fp32", "fp16"), "does not go with"),
    ],
)
def test_precisions_that_do_not_exist(precision: Precision, message: str) -> None:
    with pytest.raises(BackendError, match=message):
        onnx_backend.choose_precision(precision)


def test_missing_package_is_named(model: Pi05, monkeypatch: pytest.MonkeyPatch) -> None:
    def find_spec(name: str) -> object | None:
        return None if name == "onnxruntime" else object()

    monkeypatch.setattr(onnx_backend.importlib.util, "find_spec", find_spec)
    assert onnx_backend.usable() == (
        False,
        "onnxruntime is not installed: pip install onnx onnxruntime onnxscript "
        "(pins: requirements/tensorrt.txt)",
    )
    with pytest.raises(BackendError, match="onnxruntime is not installed"):
        onnx_backend.create(model, Precision(), **SIZES)


def test_onnxruntime_that_does_not_load_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_backend.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    works, why = onnx_backend.usable()
    assert not works
    assert "onnxruntime is there but does not load" in why


class _Session:
    """An ONNX Runtime session as far as its providers go."""

    asked: ClassVar[list[Any]] = []
    starts: ClassVar[list[str]] = []

    def __init__(self, path: str, options: Any, providers: list[Any]) -> None:
        self.asked[:] = providers

    def get_providers(self) -> list[str]:
        return self.starts

    def get_inputs(self) -> list[Any]:
        return []

    get_outputs = get_inputs


def test_cuda_means_cuda_and_the_device_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ONNX Runtime goes on without a word on the CPU where CUDA does not start."""
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "InferenceSession", _Session)
    monkeypatch.setattr(onnx_engine, "_has_cuda", lambda: True)
    second = torch.device("cuda", 1)
    monkeypatch.setattr(_Session, "starts", ["CPUExecutionProvider"])
    with pytest.raises(BackendError, match=r"could not start its CUDA provider.*use device cpu"):
        onnx_engine.OrtRunner(Path("x.onnx"), second)
    monkeypatch.setattr(_Session, "starts", ["CUDAExecutionProvider", "CPUExecutionProvider"])
    onnx_engine.OrtRunner(Path("x.onnx"), second)
    assert _Session.asked == [("CUDAExecutionProvider", {"device_id": 1}), "CPUExecutionProvider"]


def test_empty_pictures_and_closed_engines_are_named(model: Pi05, cache: Path) -> None:
    engine = create_engine(model, "onnx", cache=cache, **SIZES)
    tokens, noise = torch.tensor([2]), torch.zeros(10, 32)
    with pytest.raises(BackendError, match=r"image is empty: \[0, 9, 3\]"):
        engine.prefill(torch.zeros(1, 0, 9, 3, dtype=torch.uint8), tokens)
    context = engine.prefill(torch.zeros(0, 3, 56, 56), tokens)
    runner = engine.runners["vision"]
    for _ in range(2):
        runner.close()
        engine.close()
    with pytest.raises(BackendError, match="is closed"):
        runner.run({"pixels": torch.zeros(2, 3, 56, 56)})
    with pytest.raises(BackendError, match="is closed"):
        engine.prefill(torch.zeros(0, 3, 56, 56), tokens)
    with pytest.raises(BackendError, match="is closed"):
        engine.denoise(context, noise)


@pytest.mark.parametrize(("given", "expected"), [(None, "1"), ("0", "0"), ("1", "1")])
def test_telemetry_is_off_before_onnxruntime_is_imported(given: str | None, expected: str) -> None:
    code = """
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            print(os.environ.get("ORT_DISABLE_TELEMETRY"))
sys.meta_path.insert(0, Watch())
from pi05_ros.backends.onnx_runtime import load_runtime
load_runtime()
"""
    env = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    env |= {} if given is None else {"ORT_DISABLE_TELEMETRY": given}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
        env=env,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == expected
