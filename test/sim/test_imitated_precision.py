"""Imitated 8-bit arithmetic: rounding errors of the right size, in the right layers."""

from __future__ import annotations

import pytest
import torch

from pi05_ros.model import Pi05, Pi05Config
from pi05_ros.sim.evaluation.imitated_precision import FakeQuantLinear, fake_quantize, rounded


@pytest.mark.parametrize(("kind", "bound"), [("fp8", 2**-4), ("int8", 1 / 127)])
def test_rounding_error_is_that_of_the_format(kind, bound):
    x = torch.linspace(-3, 3, 1001)
    y = rounded(x, x.abs().max(), kind)
    scale = x.abs() if kind == "fp8" else torch.full_like(x, 3.0)
    far = x.abs() > 0.05
    assert ((y - x).abs()[far] <= bound * scale[far] + 1e-6).all()
    assert (y != x).any()
    assert rounded(torch.zeros(3), torch.tensor(0.0), kind).abs().max() == 0


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_all_linear_layers_but_norms_and_heads_are_replaced(kind):
    config = Pi05Config.preset("tiny")
    model, plain = Pi05.random(config), Pi05.random(config)
    count = fake_quantize(model, kind)
    assert count == 2 * 6 + 3 * 7 + 3 * 7
    assert not isinstance(model.action_out_proj, FakeQuantLinear)
    torch.manual_seed(0)
    images = torch.rand(1, 2, 3, 56, 56) * 2 - 1
    masks = torch.ones(1, 2, dtype=torch.bool)
    tokens = torch.randint(1, 500, (1, 8))
    noise = torch.randn(1, 10, 32)
    arguments = (images, masks, tokens, torch.ones(1, 8, dtype=torch.bool), noise, 2)
    difference = (model.sample(*arguments) - plain.sample(*arguments)).abs().max()
    assert 1e-5 < difference < 1.0


def test_kinds_are_checked():
    with pytest.raises(ValueError, match="fp8, int8"):
        fake_quantize(Pi05.random(Pi05Config.preset("tiny")), "int4")
