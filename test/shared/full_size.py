"""Workloads and inputs of the full-size model on a GPU, and how its results are compared."""

from __future__ import annotations

import torch
from torch.nn.functional import cosine_similarity

WORKLOADS = [
    (2, 20, 50, 10),
    (3, 200, 50, 10),
    (2, 20, 10, 10),
    (1, 1, 1, 1),
    (2, 33, 64, 3),
    (3, 129, 37, 20),
]


def cos(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0))


def example(views=2, prompt=20, horizon=50, seed=0, size=(224, 224)):
    g = torch.Generator(device="cuda").manual_seed(seed)
    images = torch.randint(
        0, 256, (views, *size, 3), generator=g, dtype=torch.uint8, device="cuda"
    )
    tokens = torch.randint(0, 257152, (prompt,), generator=g, device="cuda")
    return images, tokens, torch.randn(horizon, 32, generator=g, device="cuda")


def build(model, precision, **options):
    from pi05_ros.backends.cuda import create

    return create(model, precision, **options)
