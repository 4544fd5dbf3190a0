"""Error of FP8 products on the GPU's FP8 units, in the order of operations of compiled engines.

Both scalar scales inside the product, its result in half precision, then the gain per channel. The
error against float32 is compared with that of simulated quantization, at the full size of pi0.5.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pi05_ros.backends.experimental.scaled_mm import scaled_mm_engine
from pi05_ros.backends.quantization.calibrate import reference_engine
from pi05_ros.backends.quantization.calibration import Calibration
from pi05_ros.backends.quantization.engine_arithmetic import compiled_engine
from pi05_ros.backends.quantization.presets import expected_quantizers, preset
from pi05_ros.backends.quantization.samples import Sample, synthetic_samples
from pi05_ros.backends.staged.engine import StagedEngine, TorchRunner
from pi05_ros.backends.staged.layers import MatMul
from pi05_ros.backends.staged.shapes import STAGES, StageShapes
from pi05_ros.backends.verification.verify import Report, check_engine
from pi05_ros.model import Pi05, Pi05Config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9),
        reason="needs a CUDA device with FP8",
    ),
]
STEPS = 10
DEVICE = "cuda"
WORST_RATIO = 1.02


@torch.no_grad()
def measured(engine: StagedEngine, depth: int, samples: list[Sample], name: str) -> Calibration:
    """Largest magnitudes of weights and inputs, taken by hooks: no ModelOpt is needed."""
    amax: dict[str, Tensor] = {}

    def watch(key: str, sides: tuple[str, ...]) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            for side, value in zip(sides, inputs, strict=True):
                largest = value.detach().float().abs().max().cpu()
                quantizer = f"{key}.{side}"
                amax[quantizer] = torch.maximum(amax.get(quantizer, largest), largest)

        return hook

    handles = []
    for stage in STAGES[1:]:
        runner = engine.runners[stage]
        assert isinstance(runner, TorchRunner)
        for path, module in runner.module.named_modules():
            key = f"{stage}.{path}"
            if isinstance(module, nn.Linear):
                amax[f"{key}.weight_quantizer"] = module.weight.float().abs().amax(1).cpu()
                handles.append(module.register_forward_hook(watch(key, ("input_quantizer",))))
            elif isinstance(module, MatMul):
                sides = ("a_bmm_quantizer", "b_bmm_quantizer")
                handles.append(module.register_forward_hook(watch(key, sides)))
    for sample in samples:
        engine.sample(sample.images, sample.tokens, sample.noise, STEPS)
    for handle in handles:
        handle.remove()
    wanted = expected_quantizers(preset(name), depth, stages=("prefill", "denoise_step"))
    return Calibration(name, {quantizer: amax[quantizer] for quantizer in wanted})


def ratios(report: Report) -> dict[str, float]:
    """Error over that of the simulation: of layers and steps, worst and mean, and of actions."""
    rows = [row["ratio"] for row in (*report.layers, *report.steps) if row["ratio"] is not None]
    chained = [row["relative"] / row["fake_relative"] for row in report.actions]
    return {
        "worst": max(rows),
        "mean": sum(rows) / len(rows),
        "actions": sum(chained) / len(chained),
        "worst cosine of actions": min(row["cosine"] for row in report.actions),
    }


@pytest.mark.slow
def test_fp8_units_err_as_the_simulation(record_property: Callable[[str, Any], None]) -> None:
    """Run with -s to see the figures."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    device = torch.device(DEVICE)
    config = Pi05Config.preset("pi05")
    model = Pi05.random_on_device(config, 0, torch.float32, device)
    shapes = StageShapes.of(config, 2, 200, 50)
    samples = synthetic_samples(config, 4, views=2, prompt_tokens=200, horizon=50, seed=1)
    reference = reference_engine(model, shapes)
    ranges = measured(reference, config.vlm.depth, samples, "fp8")
    fake = reference_engine(model, shapes, calibration=ranges)
    found = {}
    for name, engine in (
        ("torch._scaled_mm", scaled_mm_engine(model, shapes, ranges)),
        ("simulated engine", compiled_engine(model, shapes, ranges)),
    ):
        report = check_engine(engine, reference, fake, samples, steps=STEPS)
        found[name] = ratios(report)
        assert not any("NaN" in f.item for f in report.failures), name
        engine.close()
    print(json.dumps({"gpu": torch.cuda.get_device_name(), **found}, indent=1))
    for name, row in found.items():
        record_property(name, row)
        assert row["mean"] <= WORST_RATIO, (name, row)
        assert row["actions"] <= WORST_RATIO, (name, row)
