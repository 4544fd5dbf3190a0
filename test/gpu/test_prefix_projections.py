"""The products around attention of the prefix on Hopper against FP64, with poisoned memory."""

from __future__ import annotations

import math

import pytest
import torch

from pi05_ros.backends.cuda import packing
from pi05_ros.backends.cuda.hopper.prefix import prefix_attention
from pi05_ros.backends.cuda.hopper.prefix.prefix_projections import PrefixProjections
from pi05_ros.backends.cuda.weights import rope_pairs
from pi05_ros.model import Pi05Config

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
    reason="needs a device of compute capability 9.0",
)

E4M3 = torch.float8_e4m3fn
VLM = Pi05Config.preset("pi05").vlm
HEADS, HEAD = VLM.num_heads, VLM.head_dim
ROWS = (3, 32, 41, 288, 544, 712, 968, 1064)


def quantized(x):
    return x.clamp(-448, 448).to(E4M3)


def to_image(matrix, cap):
    """``[R, K]`` into ``[K / 128, cap, 128]``; rows behind R are NaN."""
    rows, K = matrix.shape
    row = torch.arange(rows, device="cuda")[None, :, None] % 8
    order = (torch.arange(8, device="cuda")[None, None] ^ row)[..., None]
    chunks = matrix.view(torch.uint8).view(rows, K // 128, 8, 16).transpose(0, 1)
    image = torch.full((K // 128, cap, 128), 0x7F, dtype=torch.uint8, device="cuda")
    image[:, :rows] = chunks.gather(2, order.expand(K // 128, rows, 8, 16)).flatten(2)
    return image.view(E4M3)


def draw(seed):
    g = torch.Generator(device="cuda").manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=g, device="cuda")


def error(got, want):
    return float((got.double() - want.double()).norm() / want.double().norm())


@pytest.mark.parametrize("heads", [HEADS, 0])
@pytest.mark.parametrize("rows", ROWS)
def test_queries_keys_and_values_are_rotated_products(rows, heads):
    normal = draw(rows)
    x = quantized(normal(rows, VLM.width) * 20)
    weight = quantized(normal((heads + 2) * HEAD, VLM.width) * 100)
    scale = torch.rand(len(weight), device="cuda") * 1e-4 + 1e-5
    x_scale = torch.tensor([0.125], device="cuda")
    angle = torch.rand(rows + 8, HEAD // 2, device="cuda") * 6
    bits, pairs = weight.view(torch.uint8), scale[:, None]
    packed = packing.pack_weight(rope_pairs(bits, HEAD).view(E4M3))
    image = to_image(x, packing.image_rows(rows))
    kernels = PrefixProjections(VLM, torch.device("cuda", 0))
    turned = rope_pairs(pairs, HEAD).flatten()
    cosines, sines = angle.cos(), angle.sin()
    found = []
    for dependent in (True, False):
        out = [
            torch.full((rows + 64, n * HEAD), math.nan, device="cuda").bfloat16()
            for n in (heads or 1, 1, 1)
        ]
        torch.cuda.synchronize()  # weights and angles are read before the kernel in front is done
        kernels.qkv(
            image, packed, (turned, x_scale), (cosines, sines),
            (out[0] if heads else None, out[1], out[2]), 0.09, rows=rows, dependent=dependent,
        )  # fmt: skip
        torch.cuda.synchronize()
        assert all(part[rows:].isnan().all() for part in out)
        found.append([part[:rows] for part in out])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True) if not a.isnan().any())
    y = (x.double() @ weight.double().t() * scale.double() * 0.125).view(rows, heads + 2, HEAD)
    c, s = (f(angle[:rows].double())[:, None] for f in (torch.cos, torch.sin))
    a, b = y[:, : heads + 1].chunk(2, dim=-1)
    want = torch.cat((a * c - b * s, b * c + a * s), dim=-1)
    q, k, v = found[0]
    if heads:
        assert error(q.view(rows, heads, HEAD), want[:, :heads] * 0.09) < 3e-3
    else:
        assert q.isnan().all()
    assert error(k, want[:, heads]) < 3e-3
    assert error(v, y[:, heads + 1]) < 3e-3


@pytest.mark.parametrize("rows", ROWS)
def test_the_projection_of_what_attention_left(rows):
    """Through the image that attention writes, which holds what it writes as plain rows."""
    normal = draw(rows)
    q, k, v = (normal(n * rows, HEAD).bfloat16() for n in (HEADS, 1, 1))
    weight = quantized(normal(VLM.width, HEADS * HEAD) * 100)
    length = torch.tensor([rows], dtype=torch.int32, device="cuda")
    scale, amax = torch.tensor([2.0**-6], device="cuda"), torch.zeros(1, device="cuda")
    plain = torch.full((rows * HEADS, HEAD), 0x7F, dtype=torch.uint8, device="cuda").view(E4M3)
    cap = packing.image_rows(rows)
    image = torch.full((2 * HEADS, cap, 128), 0x7F, dtype=torch.uint8, device="cuda").view(E4M3)
    for out in (plain, image):
        prefix_attention.launch(
            q, k, v, length, out, scale, amax, rows=rows,
            options=prefix_attention.options_for(rows), dependent=True,
        )  # fmt: skip
    wanted = to_image(plain.view(rows, -1), cap)
    assert torch.equal(image.view(torch.uint8), wanted.view(torch.uint8))
    kernels = PrefixProjections(VLM, torch.device("cuda", 0))
    out = torch.full((rows + 64, VLM.width), math.nan, device="cuda").bfloat16()
    again = out.clone()
    packed = packing.pack_weight(weight)
    torch.cuda.synchronize()
    kernels.out(image, packed, out, rows=rows, dependent=True)
    kernels.out(image, packed, again, rows=rows, dependent=False)
    torch.cuda.synchronize()
    assert out[rows:].isnan().all()
    assert torch.equal(out[:rows], again[:rows])
    assert error(out[:rows], plain.view(rows, -1).double() @ weight.double().t()) < 3e-3
