"""The cluster attention against FP64 softmax attention, with poisoned memory around everything."""

from __future__ import annotations

import math

import pytest
import torch

from pi05_ros.backends.cuda.hopper import attention

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
    reason="needs a CUDA device of compute capability 9.0",
)

OPTIONS = {"rows": 32, "cluster": 8, "groups": 2, "trigger": 1}
SCALE = 2.0**-5


def rows_of_image(image: torch.Tensor, horizon: int, dtype: torch.dtype) -> torch.Tensor:
    """Undo layout.cuh: chunks of 64 rows x 128 bytes, 16-byte units permuted by the row."""
    units = image.view(torch.uint8).view(-1, 64, 8, 16)
    row = torch.arange(64, device=image.device)[:, None]
    unit = torch.arange(8, device=image.device)[None, :]
    plain = units[:, row, unit ^ (row & 7)]
    plain = plain.permute(1, 0, 2, 3).reshape(64, -1)
    return plain[:horizon].contiguous().view(dtype).reshape(horizon * 8, 256)


class Case:
    """Random queries, keys and values; everything that must not be read or used is NaN."""

    def __init__(self, horizon, length, room, sharpness=1.0, size=1.0):
        g = torch.Generator(device="cuda").manual_seed(horizon * 1000 + length)

        def draw(rows, scale):
            return (torch.randn(rows, 256, generator=g, device="cuda") * scale).bfloat16()

        def poisoned(rows):
            return torch.full((rows, 256), math.nan, dtype=torch.bfloat16, device="cuda")

        self.horizon, self.room = horizon, room
        self.q, self.k, self.v = poisoned(512), poisoned(room + 64), poisoned(room + 64)
        self.q[: horizon * 8] = draw(horizon * 8, sharpness * 1.4427 / 16)
        self.k[: length + horizon] = draw(length + horizon, 1.0)
        self.v[: length + horizon] = draw(length + horizon, size)
        self.length = torch.tensor([length], dtype=torch.int32, device="cuda")
        self.scale = torch.tensor([SCALE], device="cuda")
        self.amax = torch.zeros(1, device="cuda")
        used = slice(0, length + horizon)
        logits = self.q[: horizon * 8].double() @ self.k[used].double().T
        self.expected = torch.softmax(logits * math.log(2), -1) @ self.v[used].double()

    def run(self, output="image", options=OPTIONS, monitor=True):
        poison = torch.full((64 * 2048 * 2,), 0xFF, dtype=torch.uint8, device="cuda")
        attention.launch(
            self.q, self.k, self.v, self.length, poison, self.scale,
            self.amax if monitor else None, horizon=self.horizon, prefix_rows=self.room,
            output=output, options=options, dependent=True,
        )  # fmt: skip
        torch.cuda.synchronize()
        return poison

    def values(self, out, output="image"):
        rows = self.horizon * 8
        if output == "bf16":
            return out.view(torch.bfloat16).view(512, 256)[:rows].double()
        if output == "bf16-image":
            return rows_of_image(out, self.horizon, torch.bfloat16).double()
        fp8 = out[: 64 * 2048]
        if output == "e4m3":
            return fp8.view(torch.float8_e4m3fn).view(512, 256)[:rows].double() * SCALE
        return rows_of_image(fp8, self.horizon, torch.float8_e4m3fn).double() * SCALE

    def quantized(self):
        scaled = (self.expected / SCALE).clamp(-448, 448).float()
        return scaled.to(torch.float8_e4m3fn).double() * SCALE


def error(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("horizon", [1, 7, 10, 33, 50, 64])
@pytest.mark.parametrize(
    ("length", "room"), [(1, 288), (257, 288), (532, 544), (801, 896), (968, 968)]
)
def test_it_matches_fp64(horizon, length, room):
    case = Case(horizon, length, room)
    got = case.values(case.run())
    assert torch.isfinite(got).all()
    assert error(got, case.expected) <= 1.05 * error(case.quantized(), case.expected)
    largest = float(case.expected.abs().max())
    assert abs(float(case.amax) - largest) <= 0.02 * largest


@pytest.mark.parametrize("output", ["bf16", "e4m3", "bf16-image"])
@pytest.mark.parametrize("horizon", [1, 10, 50, 64])
def test_other_layouts(output, horizon):
    case = Case(horizon, 532, 544)
    got = case.values(case.run(output), output)
    limit = 0.004 if output != "e4m3" else 1.05 * error(case.quantized(), case.expected)
    assert error(got, case.expected) <= limit


@pytest.mark.parametrize("rows", attention.ROWS)
@pytest.mark.parametrize("cluster", attention.CLUSTERS)
@pytest.mark.parametrize("groups", attention.GROUPS)
def test_every_choice_of_sizes(rows, cluster, groups):
    options = {"rows": rows, "cluster": cluster, "groups": groups, "trigger": 0}
    for horizon, length, room in ((10, 300, 300), (50, 301, 320)):
        assert attention.unsupported(8, 256, room, horizon, options) is None
        case = Case(horizon, length, room)
        got = case.values(case.run("bf16", options), "bf16")
        assert error(got, case.expected) <= 0.004


def test_only_the_rows_of_the_horizon_are_written():
    case = Case(7, 257, 288)
    image = case.run()[: 64 * 2048].view(16, 64, 128)
    assert (image[:, 7:] == 0xFF).all()


def test_large_values_saturate():
    case = Case(50, 532, 544, size=200.0)
    got = case.values(case.run())
    assert float(got.abs().max()) == 448 * SCALE
    assert error(got, case.quantized()) <= 0.01


def test_one_key_takes_all_the_weight():
    case = Case(50, 532, 544, sharpness=60.0)
    got = case.values(case.run("bf16"), "bf16")
    assert error(got, case.expected) <= 0.004


def test_replays_are_equal_bit_for_bit():
    case = Case(50, 968, 968)
    first = case.run("bf16", monitor=False)
    for _ in range(50):
        assert torch.equal(first, case.run("bf16", monitor=False))


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
@pytest.mark.parametrize("horizon", [10, 50])
def test_denoising_agrees_with_the_triton_pair(precision, horizon):
    from pi05_ros.backends import Precision
    from pi05_ros.backends.cuda import create
    from pi05_ros.bench.model import student
    from pi05_ros.model import Pi05, Pi05Config

    model = Pi05.random_on_device(student(Pi05Config.preset("pi05"), 2, 1.0), 0, torch.bfloat16)
    g = torch.Generator(device="cuda").manual_seed(0)
    images = torch.randint(0, 256, (2, 224, 224, 3), generator=g, dtype=torch.uint8, device="cuda")
    tokens = torch.randint(0, 257152, (20,), generator=g, device="cuda")
    noise = torch.randn(horizon, 32, generator=g, device="cuda")
    results = []
    for kind in ("triton", "cluster"):
        tuning = {"denoise_kernels": "triton", "denoise_attention": kind}
        engine = create(
            model, Precision("bf16", "bf16", precision), horizon=horizon, tuning=tuning
        )
        assert engine.denoise_stage.attention.clusters == (kind == "cluster")
        for _ in range(3):  # these set the activation scales
            engine.sample(images, tokens, noise)
        results.append(engine.sample(images, tokens, noise))
        engine.close()
    assert torch.isfinite(results[1]).all()
    cosine = torch.nn.functional.cosine_similarity(*(r.double().flatten() for r in results), dim=0)
    assert cosine >= (0.99999 if precision == "bf16" else 0.9999)
