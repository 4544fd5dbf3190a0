"""The Hopper products of vision against FP64 with poisoned memory, and the tower on them."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cosine_similarity, gelu

from pi05_ros.backends import Precision
from pi05_ros.backends.cuda.hopper import vision_products as vision

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
    reason="needs a device of compute capability 9.0",
)

# rows, N, K, slices of K, GELU
CASES = [
    (512, 3456, 1152, 1, False),
    (512, 4304, 1152, 1, True),
    (512, 1152, 4304, 4, False),
    (512, 1152, 1152, 4, False),
    (256, 4304, 1152, 1, True),
    (256, 1152, 4304, 8, False),
    (256, 3456, 1152, 1, False),
    (768, 4304, 1152, 1, True),
    (768, 1152, 4304, 3, False),
    (768, 1152, 1152, 6, False),
    (256, 72, 64, 1, True),
    (512, 8, 1000, 2, False),
    (1024, 600, 2056, 1, False),
]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_products_match_fp64(case):
    rows, N, K, splits, with_gelu = CASES[case]
    g = torch.Generator(device="cuda").manual_seed(case)

    def draw(*shape):
        return torch.randn(*shape, generator=g, device="cuda")

    guard = 64
    x = torch.full((rows + guard, K), math.nan, dtype=torch.bfloat16, device="cuda")
    x[:rows] = draw(rows, K)
    weight = torch.full((N + guard, K), math.nan, dtype=torch.bfloat16, device="cuda")
    weight[:N] = draw(N, K) / math.sqrt(K)
    bias = None if splits > 1 else draw(N).bfloat16()
    clusters = vision.resident_clusters(torch.device("cuda", 0))
    results = []
    for dependent in (True, False, True):
        out = torch.full((splits * rows * N + guard,), math.nan, device="cuda").bfloat16()
        vision.product(
            x[:rows], weight[:N], bias, out, splits=splits, clusters=clusters, gelu=with_gelu,
            dependent=dependent,
        )  # fmt: skip
        torch.cuda.synchronize()
        assert out[splits * rows * N :].isnan().all()
        results.append(out[: splits * rows * N].view(splits, rows, N))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    want = x[:rows].double() @ weight[:N].double().t()
    if bias is not None:
        want += bias.double()
    if with_gelu:
        want = gelu(want, approximate="tanh")
    got = results[0].double().sum(0)
    assert float((got - want).norm() / want.norm()) < 4e-3  # BF16 of each slice


def test_what_does_not_fit_is_refused():
    x = torch.zeros(256, 1152, dtype=torch.bfloat16, device="cuda")
    w = torch.zeros(64, 1152, dtype=torch.bfloat16, device="cuda")
    out = torch.zeros(8 * 256 * 64, dtype=torch.bfloat16, device="cuda")
    how = {"clusters": 66, "gelu": False, "dependent": False}
    for rows, bias, splits in ((128, None, 1), (256, None, 8), (256, w[0, :64], 2)):
        with pytest.raises(vision.KernelError):
            vision.product(x[:rows], w, bias, out, splits=splits, **how)


@pytest.mark.parametrize("views", [1, 2, 3])
def test_the_tower_on_them_agrees_with_the_library(model, views):
    from pi05_ros.backends.cuda import create

    g = torch.Generator(device="cuda").manual_seed(views)
    images = torch.randint(0, 256, (views, 224, 224, 3), generator=g, device="cuda").byte()
    tokens = torch.arange(5, 25, device="cuda")
    found = {}
    for kernels in ("library", "hopper"):
        engine = create(
            model, Precision("bf16", "bf16", "bf16"), views=3, tuning={"vision_kernels": kernels}
        )
        assert bool(engine.prefix_stages.clusters) == (kernels == "hopper")
        again = []
        for _ in range(3):
            engine.prefill(images, tokens)
            again.append(engine.buffers.embeds[: views * 256].clone())
        assert torch.equal(again[0], again[1])
        assert torch.equal(again[0], again[2])
        found[kernels] = again[0].float()
        engine.close()
    assert float(cosine_similarity(*(f.flatten() for f in found.values()), dim=0)) > 0.9999
