"""The cuda backend's kernels on the CPU, under Triton's interpreter, with the tiny model."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("triton") is None, reason="Triton is not installed"
    ),
    pytest.mark.skipif(
        tuple(map(int, np.__version__.split(".")[:2])) >= (2, 4),
        reason="Triton's interpreter does not work with NumPy 2.4 and later",
    ),
]

COMMON = """
import torch
from pi05_ros.backends import BackendError
from pi05_ros.backends.cuda.engine import CudaEngine
from fp8_simulation import Simulation
from pi05_ros.backends.eager import EagerEngine
from pi05_ros.backends.engine import Guidance, Precision
from pi05_ros.model import Pi05, Pi05Config

torch.set_num_threads(1)
g = torch.Generator().manual_seed(1)
model = Pi05.random(Pi05Config.preset("tiny"), 0)
images = torch.randint(0, 256, (2, 40, 70, 3), generator=g, dtype=torch.uint8)
tokens = torch.randint(0, 512, (13,), generator=g)
noise = torch.randn(10, 32, generator=g)
plain = EagerEngine(model)
BF16 = Precision("bf16", "bf16", "bf16")


def raises(text, call, *args, **options):
    try:
        call(*args, **options)
    except BackendError as error:
        assert text in str(error), error
    else:
        raise AssertionError(f"no error about {text!r}")
"""

SAMPLE = """
splits = {"denoise": {"bf16": {"out": {"split": 4}, "down": {"split": 2}}}}
engine = CudaEngine(model, BF16, max_prompt_tokens=24, tuning=splits)
out = engine.sample(images, tokens, noise, 2)
torch.testing.assert_close(out, plain.sample(images, tokens, noise, 2), atol=1e-3, rtol=0)
cache = engine.prefill(images, tokens, slot=1)
assert torch.equal(engine.denoise(cache, noise, steps=2), out)
decided = torch.randn(3, 32, generator=g)
assert torch.equal(engine.sample(images, tokens, noise, 2, frozen=decided)[:3], decided)
"""

REFUSED = """
def engine_with(**options):
    return CudaEngine(model, BF16, **{"max_prompt_tokens": 24, **options})

for option, value, accepted in (("horizon", 65, "1 to 64"), ("views", 4, "0 to 3"),
                                ("max_prompt_tokens", 0, "1 or more"), ("slots", 0, "1 or more"),
                                ("monitor_every", -1, "0 or more")):
    raises(f"{option} is {value}; accepted: {accepted}", engine_with, **{option: value})
engine = engine_with()
cache = engine.prefill(images, tokens)
out = engine.denoise(cache, noise, steps=1)
# a call that is refused leaves the KV cache as it was
for text, args, options in (
    ("horizon 65", (images, tokens[:4], torch.zeros(65, 32), 1), {}),
    ("float [H, 32]", (images, tokens[:4], torch.zeros(10, 31), 1), {}),
    ("0 prompt tokens", (images, tokens[:0], noise, 1), {}),
    ("25 prompt tokens", (images, tokens.repeat(2)[:25], noise, 1), {}),
    ("outside 0 to 511", (images, tokens + 512, noise, 1), {}),
    ("int64 [n]", (images, tokens.float(), noise, 1), {}),
    ("4 images", (images.repeat(2, 1, 1, 1), tokens, noise, 1), {}),
    ("image is torch.uint8", (images[0], tokens, noise, 1), {}),
    ("steps is 21", (images, tokens[:4], noise, 21), {}),
    ("give noise or a seed", (images, tokens[:4], None, 1), {}),
    ("need noise given", (images, tokens[:4], None, 1), {"seed": 1, "frozen": noise[:2]}),
):
    raises(text, engine.sample, *args, **options)
    assert torch.equal(engine.denoise(cache, noise, steps=1), out), text
raises("1 camera keys for 2 images", engine.prefill, images, tokens[:4], camera_keys=["a"])
assert torch.equal(engine.denoise(cache, noise, steps=1), out)
# strided inputs, and inputs with a history
wide = torch.zeros(10, 64)
wide[:, ::2] = noise
pixels = plain._pixels(images).requires_grad_()
assert torch.equal(engine.sample(images.flip(2).flip(2), tokens, wide[:, ::2], 1), out)
got = engine.sample(pixels, tokens, noise.clone().requires_grad_(), 1)
torch.testing.assert_close(got, out, atol=1e-3, rtol=0)
assert not got.requires_grad and not engine.buffers.noise.requires_grad
# prompts longer than the largest bucket share one
engine.call_inputs.buckets = (8,)
for n, bucket in ((8, 8), (9, 24), (13, 24)):
    cache = engine.prefill(images[:0], tokens[:n])
    assert cache.bucket == bucket
# a KV cache of another engine, one of a slot that this one lacks, and a closed engine
other = engine_with(slots=3)
for slot in (0, 2):
    theirs = other.prefill(images[:0], tokens, slot=slot)
    raises("another engine", engine.denoise, theirs, noise)
engine.close()
engine.close()
raises("closed", engine.sample, images, tokens, noise, 1)
raises("closed", engine.prefill, images, tokens)
raises("closed", engine.denoise, cache, noise)
"""

WIDTHS = """
import dataclasses
tiny = model.config
odd = dataclasses.replace(
    tiny,
    vlm=dataclasses.replace(tiny.vlm, mlp_dim=tiny.vlm.mlp_dim + 32),
    expert=dataclasses.replace(tiny.expert, width=96, mlp_dim=160),
)
model = Pi05.random(odd, 2)
for over in ({}, {"fused_gate_up": True, "denoise": {"step": {"CHUNK": 1024, "warps": 4}}}):
    engine = CudaEngine(model, BF16, max_prompt_tokens=24, tuning=over)
    assert not engine.weights.fused_gate_up
    out = engine.sample(images, tokens, noise, 2)
    want = EagerEngine(model).sample(images, tokens, noise, 2)
    torch.testing.assert_close(out, want, atol=1e-3, rtol=0)
for name in ("out", "down"):
    raises("16 slices of K", CudaEngine, model, BF16, max_prompt_tokens=24,
           tuning={"denoise": {"bf16": {name: {"split": 16}}}})
"""

KEPT = """
engine = CudaEngine(model, BF16, max_prompt_tokens=24)
def actions(*args, **options):
    return engine.denoise(engine.prefill(*args, **options), noise, steps=1)
out = actions(images, tokens)
assert torch.equal(actions(images, tokens, camera_keys=["a", "b"]), out)
junk = torch.zeros_like(images)
assert torch.equal(actions(junk, tokens, camera_keys=["a", "b"]), out)
# a call with one camera puts the prompt over the second one's rows
actions(images[:1], tokens, camera_keys=["a"])
assert torch.equal(actions(images, tokens, camera_keys=["a", "b"]), out)
# and so does a call that keeps nothing, with its own prompt
engine.sample(junk, tokens.flip(0), noise, 1)
assert torch.equal(actions(images, tokens, camera_keys=["a", "b"]), out)
assert not torch.equal(actions(junk, tokens, camera_keys=["a", "c"]), out)
raises("1 camera keys for 2 images", engine.prefill, images, tokens, camera_keys=["a"])
"""

GUIDED = """
engine = CudaEngine(model, BF16, max_prompt_tokens=24)
target = torch.randn(10, 32, generator=g)
weights = torch.tensor([1, 1, 0.63, 0.37, 0.19, 0.08, 0.02, 0, 0, 0])
ours, theirs = engine.prefill(images, tokens), plain.prefill(images, tokens)
free = engine.denoise(ours, noise, steps=3)
for most in (10.0, 5.0):
    guidance = Guidance(target, weights, max_gain=most)
    got = engine.denoise(ours, noise, steps=3, guidance=guidance)
    want = plain.denoise(theirs, noise, steps=3, guidance=guidance)
    torch.testing.assert_close(got, want, atol=1e-3, rtol=0)
    assert (got - target)[:2].norm() < 0.3 * (free - target)[:2].norm()
nothing = Guidance(target, torch.zeros(10))
assert torch.equal(engine.denoise(ours, noise, steps=3, guidance=nothing), free)
assert torch.equal(engine.denoise(ours, noise, steps=3), free)
raises("'identity' or 'trained', or backend 'eager'", engine.denoise, ours, noise,
       guidance=Guidance(target, weights, "vjp"))
raises("accepted: [10, 32] and [10]", engine.denoise, ours, noise,
       guidance=Guidance(target[:4], weights))
raises("not both", engine.denoise, ours, noise, guidance=guidance, frozen=target[:2])
"""

QUANTIZED = """
small = noise[:4]

def ratio(engine):
    exact = plain.sample(images, tokens, small, 2)
    sim = Simulation(engine.weights, engine.buffers.scales)
    sim = sim.sample(plain._pixels(images), tokens, small, engine.modulation_tables(2))
    got = engine.sample(images, tokens, small, 2)
    return float((got - exact).norm() / (sim - exact).norm())

engine = CudaEngine(model, Precision("fp8", "fp8", "fp8"), max_prompt_tokens=24, monitor_every=1)
engine.sample(images, tokens, small, 2)
assert ratio(engine) < 3, ratio(engine)  # 1.0 on a GPU: the interpreter rounds to e4m3 badly
engine.start_calibration()
engine.observe(images, tokens, small, 2)
made = engine.calibration(1)
engine.use_calibration(made)
assert engine.saturation() == []
assert engine.health().warning == ""
assert int(engine.health().values["fp8_monitored_calls"]) > 1
engine.buffers.scales.mul_(2.0**-8)
engine.sample(images, tokens, small, 1)
assert len(engine.saturation()) > 10
assert engine.saturation() == []
assert "renew the scales" in engine.health().warning

# the same scales serve where fewer inputs are e4m3, and only their sites are scaled
mixed = Precision("bf16", "fp8", "fp8-w8a16")
engine = CudaEngine(model, mixed, max_prompt_tokens=24, calibration=made, monitor_every=0)
scale = dict(zip(engine.weights.sites, engine.buffers.scales.tolist(), strict=True))
assert all(v == 1 for k, v in scale.items() if not k.startswith("prefill"))
assert any(v != 1 for v in scale.values())
assert engine.weights.expert[0].down.weight.dtype == torch.float8_e4m3fn
assert engine.buffers.dact.dtype == torch.float32
assert ratio(engine) < 2, ratio(engine)
engine.start_calibration()
engine.observe(images, tokens, small, 1)
raises("no magnitudes for 12 sites", CudaEngine, model, Precision("bf16", "fp8", "fp8"),
       max_prompt_tokens=24, calibration=engine.calibration(1))
"""

INT8 = """
small = noise[:4]
for words in (("int8", "int8", "int8"), ("bf16", "int8", "int8-w8a16")):
    engine = CudaEngine(model, Precision(*words), max_prompt_tokens=24, monitor_every=1)
    got = engine.sample(images, tokens, small, 2)
    exact = plain.sample(images, tokens, small, 2)
    sim = Simulation(engine.weights, engine.buffers.scales)
    sim = sim.sample(plain._pixels(images), tokens, small, engine.modulation_tables(2))
    assert float((got - sim).norm() / (sim - exact).norm()) < 0.5
    assert engine.weights.prefix[0].down.weight.dtype == torch.int8
    assert engine.saturation() == []
    assert int(engine.health().values["int8_monitored_calls"]) >= 1
    engine.buffers.scales.mul_(2.0**-8)
    engine.sample(images, tokens, small, 1)
    assert len(engine.saturation()) > 10
    assert "INT8 saturation" in engine.health().warning
"""


@pytest.mark.parametrize(
    "script",
    [SAMPLE, REFUSED, WIDTHS, KEPT, GUIDED, QUANTIZED, INT8],
    ids=["sample", "refused", "widths", "kept", "guided", "quantized", "int8"],
)
def test_the_tiny_model_matches_the_plain_one(script):
    root = Path(__file__).parents[2]
    env = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    folders = [str(root), str(root / "test" / "shared"), env.get("PYTHONPATH", "")]
    env["PYTHONPATH"] = os.pathsep.join(folders)
    done = subprocess.run(
        [sys.executable, "-c", COMMON + script],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
