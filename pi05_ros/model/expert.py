"""The action expert: noisy actions and a flow time to a velocity, looking at the KV cache."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pi05_ros.model.config import Pi05Config
from pi05_ros.model.gemma import AdaRMSNorm, GemmaLayer, additive_mask, rope
from pi05_ros.model.prefix import KVCache

MIN_PERIOD = 4e-3
MAX_PERIOD = 4.0


def time_embedding(t: Tensor, width: int) -> Tensor:
    """Sines then cosines of t at `width / 2` periods from 0.004 to 4, geometric.

    Args:
        t: flow time in [0, 1], any shape ``[...]``, float32.
        width: even number of features.

    Returns:
        ``[..., width]`` float32; the phases are float64 because the fastest turns 250 times.

    """
    fraction = torch.linspace(0.0, 1.0, width // 2, dtype=torch.float64, device=t.device)
    period = MIN_PERIOD * (MAX_PERIOD / MIN_PERIOD) ** fraction
    phase = (1.0 / period * 2.0 * math.pi) * t[..., None].double()
    return torch.cat((phase.sin(), phase.cos()), dim=-1).to(t.dtype)


class ActionExpert(nn.Module):
    """Gemma stack whose norms are conditioned on the flow time. It has no token embedding."""

    def __init__(self, config: Pi05Config) -> None:
        super().__init__()
        self.config = config
        gemma = config.expert
        self.layers = nn.ModuleList(GemmaLayer(gemma, AdaRMSNorm) for _ in range(gemma.depth))
        self.norm = AdaRMSNorm(gemma.width)

    def forward(self, x: Tensor, cond: Tensor, cache: KVCache) -> Tensor:
        """Action tokens x ``[B, H, D]`` -> ``[B, H, D]``.

        Every action sees all valid prefix tokens and all actions. `cond` is ``[B, D]`` or
        ``[B, H, D]``.
        """
        H = x.shape[1]
        x = x.to(cast(GemmaLayer, self.layers[0]).self_attn.q_proj.weight.dtype)
        positions = cache.length[:, None] + torch.arange(H, device=x.device)
        angles = rope(positions, self.config.expert.head_dim, x.dtype, self.config.rope)
        mask = additive_mask(F.pad(cache.mask, (0, H), value=True))
        for index, layer in enumerate(self.layers):
            x, _ = layer(x, angles, mask, cond, past=(cache.k[index], cache.v[index]))
        found: Tensor = self.norm(x, cond)[0]
        return found
