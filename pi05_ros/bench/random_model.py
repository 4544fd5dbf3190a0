"""Random weights made on the device: the scales of `Pi05.random`, seconds instead of a minute.

The numbers differ from `Pi05.random` (another generator); timing needs only that they are random,
never zero, because a power-limited card runs zeros faster.
"""

from __future__ import annotations

import math

import torch

from pi05_ros.model import Pi05, Pi05Config
from pi05_ros.model.checkpoint.layout import EXPERT_LM_HEAD, VISION, model_name, openpi_layout
from pi05_ros.model.checkpoint.load import set_parameter
from pi05_ros.model.pi05 import parameter_dtype


def random_model(
    config: Pi05Config,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cuda",
) -> Pi05:
    """Build a `Pi05` with random weights drawn on `device`."""
    generator = torch.Generator(device=device).manual_seed(seed)
    model = Pi05(config, dtype, device="meta")
    for name, spec in openpi_layout(config).items():
        if name == EXPERT_LM_HEAD:
            continue
        ours = model_name(name)
        target = parameter_dtype(ours, dtype)
        x = torch.randn(spec.shape, generator=generator, dtype=target, device=device)
        x *= scale(name, spec.shape)
        if name.startswith(VISION) and "norm" in name and name.endswith(".weight"):
            x += 1.0
        set_parameter(model, ours, x)
    return model


def scale(name: str, shape: tuple[int, ...]) -> float:
    """Standard deviation of a tensor, as in `pi05_ros.model.checkpoint.random_weights`."""
    weight = name.endswith(".weight")
    if ".dense." in name:
        return 0.5 / math.sqrt(shape[-1]) if weight else 0.3
    if "position_embedding" in name:
        return 0.1
    if "embed_tokens" in name or "lm_head" in name:
        return 1.0 / math.sqrt(shape[-1])
    if "norm" in name or not weight:
        return 0.1
    return 1.0 / math.sqrt(math.prod(shape[1:]))
