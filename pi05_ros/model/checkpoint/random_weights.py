"""Seeded random weights: a pure function of seed, tensor name and shape.

Every tensor has its own generator, seeded by the openpi name of the tensor, so the same seed
gives the same model in any order of creation and on any device. The scales keep activations
near one and make norms, gates and biases matter, which openpi's own initial values do not.
"""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor

from pi05_ros.errors import InvalidValueError
from pi05_ros.model.checkpoint.layout import EXPERT_LM_HEAD, VISION, model_name, openpi_layout
from pi05_ros.model.checkpoint.load import set_parameter
from pi05_ros.model.config import Pi05Config
from pi05_ros.model.pi05 import Pi05, parameter_dtype


def random_tensor(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Float32 tensor of the openpi tensor `name`, on the CPU."""
    generator = torch.Generator().manual_seed((seed * 1000003 + zlib.crc32(name.encode())) % 2**63)
    x = torch.randn(shape, generator=generator, dtype=torch.float32)
    weight = name.endswith(".weight")
    if ".dense." in name:
        return x * (0.5 / math.sqrt(shape[-1]) if weight else 0.3)
    if "position_embedding" in name:
        return x * 0.1
    if "embed_tokens" in name or "lm_head" in name:
        return x * (1.0 / math.sqrt(shape[-1]))
    if name.startswith(VISION) and "norm" in name:
        return 1.0 + 0.1 * x if weight else 0.1 * x
    if "norm" in name or not weight:
        return x * 0.1
    return x / math.sqrt(math.prod(shape[1:]))


def random_model(
    config: Pi05Config, seed: int, dtype: torch.dtype, device: torch.device | str
) -> Pi05:
    """Build a `Pi05` whose parameters come from `random_tensor`, one tensor at a time."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InvalidValueError(f"seed is {seed!r}; accepted: an integer >= 0")
    model = Pi05(config, dtype, device="meta")
    for name, spec in openpi_layout(config).items():
        if name == EXPERT_LM_HEAD:
            continue
        ours = model_name(name)
        x = random_tensor(name, spec.shape, seed)
        set_parameter(model, ours, x.to(device=device, dtype=parameter_dtype(ours, dtype)))
    return model
