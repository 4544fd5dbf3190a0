"""The attention of the prefix against FP64 softmax attention, with poisoned memory around it."""

from __future__ import annotations

import math

import pytest
import torch

from pi05_ros.backends.cuda.hopper.prefix import prefix_attention
from pi05_ros.backends.cuda.hopper.prefix.prefix_attention import PrefixAttentionOptions

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
    reason="needs a CUDA device of compute capability 9.0",
)

SCALE = 2.0**-5
ROWS = (32, 40, 288, 300, 384, 544, 712, 800, 968)
GUARD = 64  # rows behind the output that must stay as they are


class Case:
    """Random queries, keys and values; everything that must not be used is NaN."""

    def __init__(self, rows, length, sharpness=2.0, size=1.0):
        g = torch.Generator(device="cuda").manual_seed(rows * 1000 + length)

        def draw(count, scale):
            return (torch.randn(count, 256, generator=g, device="cuda") * scale).bfloat16()

        def poisoned(count):
            return torch.full((count, 256), math.nan, dtype=torch.bfloat16, device="cuda")

        self.rows = rows
        self.q = poisoned(rows * 8 + GUARD)
        self.k, self.v = poisoned(rows + 64), poisoned(rows + 64)
        self.q[: rows * 8] = draw(rows * 8, sharpness * 1.4427 / 16)
        self.k[:length] = draw(length, 1.0)
        self.v[:length] = draw(length, size)
        self.length = torch.tensor([length], dtype=torch.int32, device="cuda")
        self.scale = torch.tensor([SCALE], device="cuda")
        self.amax = torch.zeros(1, device="cuda")
        logits = self.q[: rows * 8].double() @ self.k[:length].double().T
        self.expected = torch.softmax(logits * math.log(2), -1) @ self.v[:length].double()

    def run(self, options=None, monitor=True, dependent=True):
        """Bytes of the output, guard rows included."""
        out = torch.full((self.rows * 8 + GUARD, 256), 0xFF, dtype=torch.uint8, device="cuda")
        prefix_attention.launch(
            self.q, self.k, self.v, self.length, out.view(torch.float8_e4m3fn), self.scale,
            self.amax if monitor else None, rows=self.rows,
            options=options or prefix_attention.options_for(self.rows), dependent=dependent,
        )  # fmt: skip
        torch.cuda.synchronize()
        assert (out[self.rows * 8 :] == 0xFF).all()
        return out

    def values(self, out):
        return out[: self.rows * 8].view(torch.float8_e4m3fn).double() * SCALE

    def quantized(self):
        scaled = (self.expected / SCALE).clamp(-448, 448).float()
        return scaled.to(torch.float8_e4m3fn).double() * SCALE

    def check(self, options=None):
        self.amax.zero_()
        got = self.values(self.run(options))
        assert torch.isfinite(got).all()
        assert error(got, self.expected) <= 1.05 * error(self.quantized(), self.expected)
        largest = float(self.expected.abs().max())
        assert abs(float(self.amax) - largest) <= 0.02 * largest


def error(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("rows", ROWS)
def test_it_matches_fp64_at_every_length(rows):
    lengths = {1, 2, 15, 17, rows // 3, rows // 2 + 1, rows - 9, rows - 1, rows}
    for length in sorted(lengths):
        Case(rows, length).check()


@pytest.mark.parametrize("keys", prefix_attention.KEYS)
@pytest.mark.parametrize("splits", range(1, prefix_attention.MAX_SPLITS + 1))
def test_every_choice_of_sizes(splits, keys):
    options = PrefixAttentionOptions(splits, keys)
    for length in (5, 257, 300):
        Case(300, length).check(options)


def test_large_values_saturate():
    case = Case(544, 532, size=400.0)
    got = case.values(case.run())
    assert float(got.abs().max()) == 448 * SCALE
    assert error(got, case.quantized()) <= 0.01
    largest = float(case.expected.abs().max())
    assert abs(float(case.amax) - largest) <= 0.02 * largest


def test_one_key_takes_all_the_weight():
    Case(544, 532, sharpness=60.0).check()


def test_the_largest_magnitude_is_kept_and_may_be_left_out():
    case = Case(288, 280)
    case.amax.fill_(1000.0)
    case.run()
    assert float(case.amax) == 1000.0
    case.amax.zero_()
    with_amax, without = case.run(), case.run(monitor=False)
    assert torch.equal(with_amax, without)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
def test_queries_behind_the_length_disturb_nobody(value):
    case = Case(300, 257)
    clean = case.run()
    case.q[257 * 8 : 300 * 8] = value
    case.k[257:] = value
    case.v[257:] = value
    assert torch.equal(case.run()[: 257 * 8], clean[: 257 * 8])


@pytest.mark.parametrize("rows", [288, 384, 544, 712, 968])
def test_replays_are_equal_bit_for_bit(rows):
    case = Case(rows, rows - 3)
    first = case.run(monitor=False)
    for _ in range(50):
        assert torch.equal(first, case.run(monitor=False))


def test_a_graph_of_dependent_launches_follows_the_length():
    case = Case(544, 544)
    outs = [torch.zeros(544 * 8, 256, dtype=torch.float8_e4m3fn, device="cuda") for _ in range(8)]

    def enqueue():
        for out in outs:
            prefix_attention.launch(
                case.q, case.k, case.v, case.length, out, case.scale, None, rows=544,
                options=prefix_attention.options_for(544), dependent=True,
            )  # fmt: skip

    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        enqueue()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            enqueue()
    for length in (544, 31, 513):
        case.length.fill_(length)
        for _ in range(20):
            graph.replay()
        torch.cuda.synchronize()
        expected = case.run(monitor=False, dependent=False)[: 544 * 8]
        for out in outs:
            assert torch.equal(out.view(torch.uint8), expected)


def test_it_agrees_with_the_triton_pair():
    import triton

    from pi05_ros.backends.cuda.triton import attention

    case = Case(544, 532)
    rows, splits, keys = 544 * 8, 3, 192
    parts = torch.empty(splits * rows, 256, dtype=torch.bfloat16, device="cuda")
    lse = torch.empty(splits * rows, device="cuda")
    out = torch.zeros(rows, 256, dtype=torch.float8_e4m3fn, device="cuda")
    attention.attend[(rows // 128, splits)](
        case.q, case.k, case.v, case.length, parts, lse, case.scale, case.amax, rows, 0, keys,
        rows, HEAD_DIM=256, BM=128, BN=64, STAGES=2, ONE_BLOCK=False, DIRECT=False, PDL=False,
        MONITOR=False, num_warps=8, num_stages=2,
    )  # fmt: skip
    attention.combine[(triton.cdiv(rows, 4),)](
        parts, lse, out, case.scale, case.amax, rows, splits, rows, HEAD_DIM=256, BM=4, SPLITS=4,
        PDL=False, MONITOR=True, num_warps=4,
    )  # fmt: skip
    torch.cuda.synchronize()
    theirs, amax = case.values(out.view(torch.uint8)), float(case.amax)
    case.amax.zero_()
    ours = case.values(case.run())
    assert error(ours, theirs) <= 1.5 * error(theirs, case.expected)
    assert abs(float(case.amax) - amax) <= 0.02 * amax
