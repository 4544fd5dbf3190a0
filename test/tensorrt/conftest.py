"""A tiny model, its calibration and its exported graphs, made once for all tests here."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from pi05_ros.backends.export import export
from pi05_ros.backends.export.export import ExportedStage, export_all
from pi05_ros.backends.export.export_document import GraphPlan
from pi05_ros.backends.identity import weights_id
from pi05_ros.backends.quantization.calibrate import calibrate, reference_engine
from pi05_ros.backends.quantization.calibration import Calibration
from pi05_ros.backends.quantization.samples import Sample, synthetic_samples
from pi05_ros.backends.staged.engine import StagedEngine
from pi05_ros.backends.staged.shapes import StageShapes
from pi05_ros.cli.main import main
from pi05_ros.model import Pi05, Pi05Config
from pi05_ros.policy import Observation
from pi05_ros.workflows.observations import save_observation

sys.path.insert(0, str(Path(__file__).parent))  # for modules that tests share

VIEWS, PROMPT, HORIZON = 2, 12, 10


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # on tiny models more threads only wait for each other
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def _export_each_stage_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tracing takes most of the time here: equal stages of several exports are copied."""
    real = export.export_stage
    kept: dict[Any, tuple[Path, ExportedStage]] = {}

    def export_stage(
        model: Pi05, stage: str, shapes: StageShapes, directory: Path, **options: Any
    ) -> ExportedStage:
        ranges = options.get("calibration")
        digest = None if ranges is None or stage == "vision" else ranges.digest
        steps = options.get("steps") if stage == "full" else None
        key = (weights_id(model), stage, shapes, options.get("activation"), digest, steps)
        if key not in kept:
            result = real(model, stage, shapes, directory, **options)
            folder = tmp_path_factory.mktemp(stage)
            for suffix in ("", ".data"):
                shutil.copy(f"{result.path}{suffix}", folder)
            kept[key] = folder, result
            return result
        folder, result = kept[key]
        shutil.copytree(folder, directory, dirs_exist_ok=True)
        return replace(result, path=directory / result.path.name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "export_stage", export_stage)
        yield


@pytest.fixture(scope="session")
def model() -> Pi05:
    return Pi05.random(Pi05Config.preset("tiny"), seed=3)


@pytest.fixture(scope="session")
def shapes(model: Pi05) -> StageShapes:
    return StageShapes.of(model.config, VIEWS, PROMPT, HORIZON)


@pytest.fixture(scope="session")
def samples(model: Pi05) -> list[Sample]:
    return synthetic_samples(
        model.config, 8, views=VIEWS, prompt_tokens=PROMPT, horizon=HORIZON, seed=1
    )


@pytest.fixture(scope="session")
def calibration(model: Pi05, shapes: StageShapes, samples: list[Sample]) -> Calibration:
    return calibrate(model, weights_id(model), samples, "fp8", shapes=shapes, allow_synthetic=True)


@pytest.fixture(scope="session")
def reference(model: Pi05, shapes: StageShapes) -> StagedEngine:
    return reference_engine(model, shapes)


@pytest.fixture(scope="session")
def fake_quant(model: Pi05, shapes: StageShapes, calibration: Calibration) -> StagedEngine:
    return reference_engine(model, shapes, calibration=calibration)


@pytest.fixture(scope="session")
def graphs_fp32(
    model: Pi05,
    shapes: StageShapes,
    calibration: Calibration,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("graphs") / "fp32"
    export_all(model, weights_id(model), shapes, folder, GraphPlan("fp32", calibration))
    return folder


@pytest.fixture(scope="session")
def graphs_fp16(
    model: Pi05,
    shapes: StageShapes,
    calibration: Calibration,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("graphs") / "fp16"
    plan = GraphPlan(calibration=calibration, full_steps=2)
    export_all(model, weights_id(model), shapes, folder, plan)
    return folder


@pytest.fixture(scope="session")
def graphs_mlp_only(
    model: Pi05,
    shapes: StageShapes,
    calibration: Calibration,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("graphs") / "mlp_only"
    plan = GraphPlan(calibration=calibration, layout="mlp_only")
    export_all(model, weights_id(model), shapes, folder, plan)
    return folder


@pytest.fixture(scope="module")
def observations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten saved observations of a robot, as a user would keep them."""
    folder = tmp_path_factory.mktemp("observations")
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[0:60, 0:80]
    for index in range(10):
        phase = generator.uniform(0, 6, 3)
        waves = [np.sin(rows / 9 + p) * np.cos(columns / 11 - p) for p in phase]
        picture = (127 + 120 * np.stack(waves, axis=-1)).astype(np.uint8)
        save_observation(
            folder / f"{index:03d}.safetensors",
            Observation(
                images={"base": picture, "wrist": picture[::-1]},
                state=generator.uniform(-0.5, 0.5, 7),
                prompt="pick up the block",
                stamp_ns=index,
            ),
        )
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, observations: Path) -> Path:
    """Cache with a calibration."""
    folder = tmp_path_factory.mktemp("cache")
    words = ["quantize", "random:tiny", "--cache", str(folder), "--steps", "4"]
    assert main([*words, "--observations", str(observations)]) == 0
    return folder


@pytest.fixture(scope="session")
def fake_module() -> ModuleType:
    import fake_tensorrt

    return fake_tensorrt


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, fake_module: ModuleType) -> Callable[..., Any]:
    """Put a fake TensorRT and a fake GPU (the CPU) in place; returns its faults."""

    def put(version: str = "10.13.3.9") -> Any:
        faults = fake_module.Faults()
        monkeypatch.setitem(sys.modules, "tensorrt", fake_module.make_fake(version, faults))
        import pi05_ros.backends.tensorrt as package
        from pi05_ros.backends.tensorrt import binding

        def cpu(*, fp8: bool, near: torch.device | None = None) -> torch.device:
            return torch.device("cpu")

        monkeypatch.setattr(binding, "require_gpu", cpu)
        monkeypatch.setattr(package, "require_gpu", cpu)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a fake GPU")
        return faults

    return put
