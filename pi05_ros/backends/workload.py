"""One inference to time: its sizes, random inputs, and the precisions that are compared."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pi05_ros.model import Pi05Config

STAGES = ("vision", "prefill", "denoise")
MIXES = {
    "bf16": ("bf16", "bf16", "bf16"),
    "fp8": ("bf16", "fp8", "fp8"),
    "fp8-w8a16": ("bf16", "fp8", "fp8-w8a16"),
    "int8": ("bf16", "int8", "int8"),
    "int8-w8a16": ("bf16", "int8", "int8-w8a16"),
}
"""Name -> precision of each stage."""


@dataclass(frozen=True)
class Workload:
    """What one inference has to do."""

    views: int = 2
    tokens: int = 20
    horizon: int = 50
    steps: int = 10

    def __str__(self) -> str:
        return f"{self.views} views, {self.tokens} tokens, H {self.horizon}, {self.steps} steps"


def random_inputs(
    config: Pi05Config, work: Workload, size: tuple[int, int], seed: int, device: str = "cuda"
) -> tuple[Tensor, Tensor, Tensor]:
    """uint8 frames ``[V, h, w, 3]``, prompt ids ``[T]``, noise ``[H, A]``, all on the device."""
    g = torch.Generator(device=device).manual_seed(seed)
    shape = (work.views, *size, 3)
    images = torch.randint(0, 256, shape, generator=g, dtype=torch.uint8, device=device)
    tokens = torch.randint(0, config.vocab, (work.tokens,), generator=g, device=device)
    noise = torch.randn(work.horizon, config.action_dim, generator=g, device=device)
    return images, tokens, noise
