"""The first step of the flow beside prefill: the same bits as behind it, whatever memory held."""

from __future__ import annotations

import gc
import math

import pytest
import torch
from full_size import build, example

from pi05_ros.backends import Precision
from pi05_ros.backends.cuda.stages.beside_prefill import BesidePrefill
from pi05_ros.model import Pi05, Pi05Config

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
    reason="needs a device of compute capability 9.0",
)

WORKLOADS = [
    (2, 20, 50, 10),
    (3, 200, 50, 10),
    (2, 20, 10, 10),
    (2, 20, 50, 1),
    (1, 1, 1, 1),
    (3, 129, 64, 2),
    (2, 32, 37, 3),
]


@pytest.fixture(scope="module", params=["bf16", "fp8"])
def engine(request):
    model = Pi05.random_on_device(Pi05Config.preset("pi05"), 0, torch.bfloat16)
    made = build(model, Precision("bf16", request.param, request.param), monitor_every=0)
    for seed in range(3):  # these set the activation scales
        made.sample(*example(seed=seed))
    yield made
    made.close()
    gc.collect()


def poison(engine) -> None:
    b = engine.buffers
    for slot in b.slots:
        slot.k.fill_(math.nan)
        slot.v.fill_(math.nan)
    for name in ("dx", "mirror", "sum_attn", "sum_mlp", "dq", "dattn", "dact", "x", "embeds", "q"):
        buffer = getattr(b, name)
        if buffer.element_size() == 1:
            buffer.view(torch.uint8).fill_(0x7F)
        else:
            buffer.fill_(math.nan)


@pytest.mark.parametrize("work", WORKLOADS, ids=str)
def test_the_first_step_beside_prefill_gives_the_same_bits(engine, work):
    views, prompt, horizon, steps = work
    cases = [example(views, prompt, horizon, seed) for seed in (1, 2)]
    want = []
    for images, tokens, noise in cases:
        cache = engine.prefill(images, tokens, slot=1)
        want.append(engine.denoise(cache, noise, steps=steps))
    shipped, engine.launches.beside = engine.launches.beside, BesidePrefill(engine.device)
    engine.graphs.clear()
    try:
        for turn in range(8):
            poison(engine)
            got = engine.sample(*cases[turn % 2], steps)
            assert torch.equal(got, want[turn % 2]), turn
    finally:
        engine.launches.beside = shipped
        engine.graphs.clear()


def test_monitored_calls_and_drawn_noise_too():
    model = Pi05.random_on_device(Pi05Config.preset("pi05"), 1, torch.bfloat16)
    engine = build(model, Precision("bf16", "fp8", "fp8"), monitor_every=2)
    for seed in range(3):
        engine.sample(*example(seed=seed))
    images, tokens, _ = example(seed=4)
    want = engine.denoise(engine.prefill(images, tokens, slot=1), seed=5)
    beside = engine.launches.beside
    engine.launches.beside = beside or BesidePrefill(engine.device)
    engine.graphs.clear()
    for _ in range(6):
        poison(engine)
        assert torch.equal(engine.sample(images, tokens, seed=5), want)
    assert engine.saturation() == []
    assert engine.monitor.recorded >= 3
    engine.close()


def test_beside_other_work_on_the_device(engine):
    case = example(seed=6)
    want = engine.sample(*case)
    other = torch.cuda.Stream()
    weights = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    for _ in range(20):
        other.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(other):
            for _ in range(8):  # something else that takes processors
                weights @ weights
        assert torch.equal(engine.sample(*case), want)
    torch.cuda.synchronize()
