"""A tiny model, its calibration and its exported graphs, made once for all tests here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pi05_ros.backends.tensorrt.calibration import Calibration
from pi05_ros.backends.tensorrt.export import export_all
from pi05_ros.backends.tensorrt.identity import weights_id
from pi05_ros.backends.tensorrt.pipeline import StagedEngine
from pi05_ros.backends.tensorrt.quantize import calibrate, reference_engine
from pi05_ros.backends.tensorrt.samples import Sample, synthetic_samples
from pi05_ros.backends.tensorrt.shapes import StageShapes
from pi05_ros.model import Pi05, Pi05Config

VIEWS, PROMPT, HORIZON = 2, 12, 10


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    torch.set_num_threads(2)


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
    export_all(
        model, weights_id(model), shapes, folder, activation="fp32", calibration=calibration
    )
    return folder


@pytest.fixture(scope="session")
def graphs_fp16(
    model: Pi05,
    shapes: StageShapes,
    calibration: Calibration,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("graphs") / "fp16"
    export_all(
        model,
        weights_id(model),
        shapes,
        folder,
        activation="fp16",
        calibration=calibration,
        full_steps=2,
    )
    return folder
