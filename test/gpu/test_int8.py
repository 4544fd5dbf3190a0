"""The INT8 path of the cuda backend at full size against the plain model in FP32.

The judge is what the format and the engine's 16-bit arithmetic cost together: errors of simulated
quantization and of the BF16 engine, added as independent ones are.
"""

from __future__ import annotations

import math

import pytest
import torch
from fp8_simulation import Simulation
from full_size import WORKLOADS, build, cos, example

from pi05_ros.backends import Precision

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available()
    or torch.cuda.get_device_properties(0).total_memory < 40e9
    or torch.cuda.get_device_capability() < (8, 0),
    reason="needs a CUDA device with 40 GB for the FP32 reference",
)


@pytest.fixture(scope="module")
def bf16(model):
    return build(model, Precision("bf16", "bf16", "bf16"))


@pytest.fixture(scope="module", params=["int8", "int8-w8a16"])
def int8(model, request):
    engine = build(model, Precision("bf16", "int8", request.param))
    for seed in range(3):  # these set the activation scales
        engine.sample(*example(seed=seed))
    return engine


@pytest.mark.parametrize("work", WORKLOADS, ids=str)
def test_int8_is_as_good_as_its_format(int8, bf16, plain, work):
    views, prompt, horizon, steps = work
    images, tokens, noise = example(views, prompt, horizon, seed=5)
    actions = int8.sample(images, tokens, noise, steps)
    assert torch.equal(actions, int8.sample(images, tokens, noise, steps))
    expected = plain.sample(images, tokens, noise, steps)
    simulation = Simulation(int8.weights, int8.buffers.scales)
    pixels = plain._pixels(images)
    simulated = simulation.sample(pixels, tokens, noise, int8.modulation_tables(steps))
    rounding = bf16.sample(images, tokens, noise, steps)
    floor = math.hypot((simulated - expected).norm(), (rounding - expected).norm())
    ratio = float((actions - expected).norm()) / floor
    print(f"{work}: cosine {cos(actions, expected):.6f}, error ratio {ratio:.3f}")
    assert ratio <= 1.15


def test_int8_worst_of_64_samples(int8, plain):
    scores = []
    for seed in range(64):
        images, tokens, noise = example(prompt=10 + seed % 40, seed=100 + seed)
        actions = int8.sample(images, tokens, noise)
        assert torch.isfinite(actions).all()
        scores.append(cos(actions, plain.sample(images, tokens, noise)))
    print(f"worst {min(scores):.5f}, mean {sum(scores) / 64:.5f}")
    assert min(scores) >= 0.998


def test_a_calibration_of_the_fp8_engine_serves_int8(model, int8, plain):
    """Magnitudes are stored, not scales: those of the FP8 engine suit INT8."""
    fp8 = build(model, Precision("bf16", "fp8", "fp8"))
    for seed in range(3):
        fp8.sample(*example(seed=seed))
    fp8.start_calibration()
    for seed in range(4):
        fp8.observe(*example(seed=seed))
    made = fp8.calibration(4)
    fp8.close()
    images, tokens, noise = example(seed=9)
    before = int8.buffers.scales.clone()
    int8.use_calibration(made)
    got = int8.sample(images, tokens, noise)
    assert cos(got, plain.sample(images, tokens, noise)) >= 0.998
    int8.buffers.scales.copy_(before)
