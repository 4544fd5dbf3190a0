"""The attention of SigLIP on Hopper against FP64, with poisoned memory around it."""

from __future__ import annotations

import math

import pytest
import torch

from pi05_ros.backends.cuda.hopper.vision import vision_attention

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
    reason="needs a device of compute capability 9.0",
)


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 6.0, 60.0])
@pytest.mark.parametrize(("images", "heads"), [(1, 16), (2, 16), (3, 16), (1, 1), (5, 3)])
def test_it_matches_fp64(images, heads, sharpness):
    g = torch.Generator(device="cuda").manual_seed(images * heads)
    rows, width, guard = images * 256, heads * 72, 64
    qkv = torch.full((rows + guard, 3 * width), math.nan, device="cuda").bfloat16()
    qkv[:rows] = torch.randn(rows, 3 * width, generator=g, device="cuda")
    qkv[:rows, :width] *= sharpness
    scale = math.log2(math.e) / math.sqrt(72)
    found = []
    for dependent in (True, False, True):
        out = torch.full((rows + guard, width), math.nan, device="cuda").bfloat16()
        vision_attention.attend(qkv[:rows], out, scale, dependent=dependent)
        torch.cuda.synchronize()
        assert out[rows:].isnan().all()
        found.append(out[:rows])
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    q, k, v = qkv[:rows].double().view(images, 256, 3, heads, 72).permute(2, 0, 3, 1, 4)
    want = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(72), dim=-1) @ v
    want = want.transpose(1, 2).reshape(rows, width)
    assert float((found[0].double() - want).norm() / want.norm()) < 5e-3
    worst = (found[0].double() - want).abs().amax() / want.abs().amax()
    assert float(worst) < 2e-2


@pytest.mark.parametrize(("images", "heads"), [(1, 16), (2, 16), (3, 16), (1, 1), (5, 3)])
def test_it_quantizes_as_exact_rounding_does(images, heads):
    g = torch.Generator(device="cuda").manual_seed(images * heads)
    rows, width, guard = images * 256, heads * 72, 64
    qkv = torch.randn(rows, 3 * width, generator=g, device="cuda").bfloat16()
    scale = math.log2(math.e) / math.sqrt(72)
    step, found = torch.tensor([2.0**-7], device="cuda"), []
    for dependent in (True, False, True):
        amax = torch.zeros(1, device="cuda") if dependent else None
        codes = torch.full((rows + guard, width), math.nan, device="cuda").to(torch.float8_e4m3fn)
        vision_attention.attend(qkv, codes, scale, dependent=dependent, out_scale=step, amax=amax)
        torch.cuda.synchronize()
        assert codes[rows:].float().isnan().all()
        found.append(codes[:rows].view(torch.uint8))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    q, k, v = qkv.double().view(images, 256, 3, heads, 72).permute(2, 0, 3, 1, 4)
    want = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(72), dim=-1) @ v
    want = want.transpose(1, 2).reshape(rows, width)
    nearest = (want / step.double()).float().to(torch.float8_e4m3fn).double() * step.double()
    got = found[0].view(torch.float8_e4m3fn).double() * step.double()
    assert float((got - want).norm() / (nearest - want).norm()) < 1.05
    assert float(amax) == pytest.approx(float(want.abs().max()), rel=2e-2)


def test_what_does_not_fit_is_refused():
    out = torch.zeros(256, 72, device="cuda").bfloat16()
    for rows, columns in ((255, 216), (256, 144), (256, 217)):
        qkv = torch.zeros(rows, columns, device="cuda").bfloat16()
        with pytest.raises(vision_attention.KernelError):
            vision_attention.attend(qkv, out, 1.0, dependent=False)
    qkv = torch.zeros(256, 216, device="cuda").bfloat16()
    with pytest.raises(vision_attention.KernelError, match="scale"):
        vision_attention.attend(qkv, out.to(torch.float8_e4m3fn), 1.0, dependent=False)
