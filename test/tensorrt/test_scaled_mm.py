"""FP8 operands through torch's own FP8 product: the same numbers as the simulation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.experimental.scaled_mm import ScaledMmLinear, use_scaled_mm
from pi05_ros.backends.quantization.modules import QuantLinear


def quantized(
    inputs: int, outputs: int, kind: str = "fp8", *, weight_only: bool = False
) -> QuantLinear:
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(inputs, outputs, bias=False)
    linear.weight.data = torch.randn(outputs, inputs, generator=generator) / 8
    return QuantLinear(
        linear,
        weight_amax=linear.weight.detach().abs().amax(1),
        weight_kind=kind,
        input_amax=None if weight_only else torch.tensor(4.0),
        input_kind=None if weight_only else kind,
        smooth=None,
    )


def test_product_equals_the_simulation() -> None:
    module = nn.Sequential(quantized(64, 32))
    x = torch.randn(1, 7, 64, generator=torch.Generator().manual_seed(1))
    expected = module(x)
    assert use_scaled_mm(module) == 1
    assert isinstance(module[0], ScaledMmLinear)
    torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-5)


def test_what_fp8_units_cannot_do_is_refused() -> None:
    with pytest.raises(BackendError, match="multiples of 16"):
        ScaledMmLinear(quantized(24, 32))
    with pytest.raises(BackendError, match="only FP8"):
        ScaledMmLinear(quantized(64, 32, "int8"))
    with pytest.raises(BackendError, match="only FP8"):
        ScaledMmLinear(quantized(64, 32, weight_only=True))
