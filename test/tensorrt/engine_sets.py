"""Builds and checks engines on the fake TensorRT, for the tests of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pi05_ros.backends.quantization.samples import Sample
from pi05_ros.backends.staged.engine import StagedEngine
from pi05_ros.backends.staged.shapes import STAGES
from pi05_ros.backends.tensorrt.engine_report import write_report
from pi05_ros.backends.tensorrt.engine_set import EngineSet, plan_digests
from pi05_ros.backends.tensorrt.engine_store import build_engines
from pi05_ros.backends.verification.inspector import quantized_products, read_layers
from pi05_ros.backends.verification.verify import Report, check_engine

CPU = torch.device("cpu")
Install = Callable[..., Any]
SIZES = {"views": 2, "horizon": 10, "max_prompt_tokens": 12}


def build(graphs: Path, root: Path, level: int = 3) -> EngineSet:
    from pi05_ros.backends.tensorrt.plan_compiler import BuildFlags

    return build_engines(graphs, BuildFlags(optimization_level=level), CPU, root=root)


def inspect(found: EngineSet, graphs: Path) -> dict[str, Any]:
    facts = {}
    for stage in STAGES:
        expected = quantized_products(str(graphs / f"{stage}.onnx"))
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


def keep(found: EngineSet, report: Report) -> Path:
    return write_report(found, report, "golden", plan_digests(found), CPU)
