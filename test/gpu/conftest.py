"""The full-size model with random weights in FP32, and the plain engine over it."""

from __future__ import annotations

import gc

import pytest
import torch

from pi05_ros.model import Pi05, Pi05Config


@pytest.fixture(scope="module")
def model():
    torch.backends.cuda.matmul.allow_tf32 = False
    yield Pi05.random_on_device(Pi05Config.preset("pi05"), 0, torch.float32)
    gc.collect()
    torch.cuda.empty_cache()


@pytest.fixture(scope="module")
def plain(model):
    from pi05_ros.backends.eager import EagerEngine

    return EagerEngine(model)
