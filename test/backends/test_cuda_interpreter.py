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

SCRIPT = """
import torch
from pi05_ros.backends.cuda.engine import CudaEngine
from pi05_ros.backends.eager import EagerEngine
from pi05_ros.backends.engine import Precision
from pi05_ros.model import Pi05, Pi05Config

torch.set_num_threads(1)
g = torch.Generator().manual_seed(1)
model = Pi05.random(Pi05Config.preset("tiny"), 0)
images = torch.randint(0, 256, (2, 40, 70, 3), generator=g, dtype=torch.uint8)
tokens = torch.randint(0, 512, (13,), generator=g)
noise = torch.randn(10, 32, generator=g)
splits = {"denoise": {"bf16": {"out": {"split": 4}, "down": {"split": 2}}}}
engine = CudaEngine(model, Precision("bf16", "bf16", "bf16"), max_prompt_tokens=24, tuning=splits)
plain = EagerEngine(model)
out = engine.sample(images, tokens, noise, 2)
torch.testing.assert_close(out, plain.sample(images, tokens, noise, 2), atol=1e-3, rtol=0)
context = engine.context(images, tokens, slot=1)
assert torch.equal(engine.denoise(context, noise, 2), out)
engine.context(images, tokens, camera_keys=["a", "b"])
again = engine.context(torch.zeros_like(images), tokens, camera_keys=["a", "b"])
assert torch.equal(engine.denoise(again, noise, 2), out)
decided = torch.randn(3, 32, generator=g)
assert torch.equal(engine.sample(images, tokens, noise, 2, frozen=decided)[:3], decided)
"""


def test_the_tiny_model_matches_the_plain_one():
    root = Path(__file__).parents[2]
    env = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    env["PYTHONPATH"] = os.pathsep.join([str(root), env.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
