"""What a compiled engine computes: right with one scale inside the product, refused without."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from pi05_ros.backends.quantization.calibration import Calibration
from pi05_ros.backends.quantization.engine_arithmetic import (
    CompiledLinear,
    compiled_engine,
    use_engine_arithmetic,
)
from pi05_ros.backends.quantization.modules import QuantLinear, quantized_stage
from pi05_ros.backends.quantization.samples import Sample
from pi05_ros.backends.staged.engine import StagedEngine, TorchRunner
from pi05_ros.backends.staged.layers import MatMul
from pi05_ros.backends.staged.shapes import StageShapes
from pi05_ros.backends.verification.verify import check_engine
from pi05_ros.model import Pi05


def quantized(inputs: int, outputs: int, kind: str) -> tuple[QuantLinear, Tensor]:
    """A Linear of random weights and unit inputs with a few outliers, calibrated on them."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, inputs, generator=generator)
    x[:, :4] *= 8
    linear = nn.Linear(inputs, outputs, bias=False)
    linear.weight.data = torch.randn(outputs, inputs, generator=generator) * inputs**-0.5
    module = QuantLinear(
        linear.half(),
        weight_amax=linear.weight.detach().float().abs().amax(1),
        weight_kind=kind,
        input_amax=x.abs().max(),
        input_kind=kind,
        smooth=None,
    )
    return module, x.half()


def old_form(module: nn.Module) -> None:
    """Scales per channel on the weights, as graphs had them: the product stores bare sums."""
    for layer in module.modules():
        if isinstance(layer, QuantLinear) and "gain" in layer._buffers:
            layer.weight_scale = (layer.weight_scale.float() * layer.gain.float()).to(layer.gain)
            layer.gain = torch.ones_like(layer.gain)


@pytest.mark.parametrize(
    ("inputs", "outputs"), [(2048, 2048), (2048, 16384), (16384, 2048), (1024, 2048)]
)
def test_products_of_real_width(inputs: int, outputs: int) -> None:
    """q, gate, down and the expert's q: more than half of the old form's results are infinite."""
    layer, x = quantized(inputs, min(outputs, 512), "fp8")
    exact = layer.float()(x.float())
    layer.half()
    found = CompiledLinear(layer)(x)
    assert torch.isfinite(found).all()
    assert float((found.float() - exact).norm() / exact.norm()) < 0.01
    old_form(layer)
    infinite = torch.isinf(CompiledLinear(layer)(x)).float().mean()
    assert float(infinite) > 0.4


def test_int8_sums_fit_too() -> None:
    layer, x = quantized(16384, 64, "int8")
    found = CompiledLinear(layer)(x)
    exact = layer.float()(x.float())
    assert torch.isfinite(found).all()
    assert float((found.float() - exact).norm() / exact.norm()) < 0.01


def quantized_layers(engine: StagedEngine) -> Iterator[nn.Module]:
    for runner in engine.runners.values():
        assert isinstance(runner, TorchRunner)
        yield runner.module


def test_the_engine_passes_and_its_old_form_is_refused(
    model: Pi05,
    shapes: StageShapes,
    calibration: Calibration,
    reference: StagedEngine,
    fake_quant: StagedEngine,
    samples: list[Sample],
) -> None:
    engine = compiled_engine(model, shapes, calibration)
    assert engine.precision.prefill == "fp8"
    report = check_engine(engine, reference, fake_quant, samples[:2], steps=2)
    refused = {f.item for f in report.failures} - {"actions, chained: mean absolute error"}
    assert not refused
    ratios = [row["ratio"] for row in (*report.layers, *report.steps) if row["ratio"]]
    assert sum(ratios) / len(ratios) < 1.05
    for module in quantized_layers(engine):
        old_form(module)
    report = check_engine(engine, reference, fake_quant, samples[:2], steps=2)
    assert not report.ok
    assert any("NaN or infinity" in f.item for f in report.failures)


def test_every_product_is_replaced_once(model: Pi05, calibration: Calibration) -> None:
    stage = quantized_stage(model, "prefill", torch.float16, calibration)
    products = [m for m in stage.modules() if isinstance(m, QuantLinear | MatMul | nn.Linear)]
    assert use_engine_arithmetic(stage) == len(products)
    compiled = [m.source for m in stage.modules() if isinstance(m, CompiledLinear)]
    assert compiled == [m for m in products if isinstance(m, QuantLinear)]
