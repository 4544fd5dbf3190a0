"""Seeded random weights: a pure function of seed, tensor name and shape.

Every tensor has its own generator, seeded by the openpi name of the tensor, so the same seed
gives the same model in any order of creation and on any device. The scales keep activations
near one and make norms, gates and biases matter, which openpi's own initial values do not.
"""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor, nn

from pi05_ros.errors import InvalidValueError
from pi05_ros.model.config import Pi05Config
from pi05_ros.model.dtypes import parameter_dtype
from pi05_ros.model.layout import EXPERT_LM_HEAD, VISION, model_name, openpi_layout


def random_tensor(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Float32 tensor of the openpi tensor `name`, on the CPU."""
    generator = torch.Generator().manual_seed((seed * 1000003 + zlib.crc32(name.encode())) % 2**63)
    x = torch.randn(shape, generator=generator, dtype=torch.float32)
    deviation = _deviation(name, shape)
    if deviation is None:
        return x / math.sqrt(math.prod(shape[1:]))  # its bits differ from those of a product
    return _mean(name) + deviation * x if _mean(name) else deviation * x


def fill(
    model: nn.Module,
    config: Pi05Config,
    seed: int,
    dtype: torch.dtype,
    device: torch.device | str,
) -> None:
    """Give a `Pi05` parameters from `random_tensor`, one tensor at a time.

    Raises:
        InvalidValueError: a negative seed.

    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InvalidValueError(f"seed is {seed!r}; accepted: an integer >= 0")
    for name, spec in openpi_layout(config).items():
        if name != EXPERT_LM_HEAD:
            ours = model_name(name)
            x = random_tensor(name, spec.shape, seed)
            set_parameter(model, ours, x.to(device=device, dtype=parameter_dtype(ours, dtype)))


def fill_on_device(
    model: nn.Module,
    config: Pi05Config,
    seed: int,
    dtype: torch.dtype,
    device: torch.device | str,
) -> None:
    """Give a `Pi05` parameters of the same scales, drawn on `device`: seconds, not a minute.

    The numbers differ from those of `fill` (another generator). Timing needs only that they are
    random and not zero, because a power-limited card runs zeros faster.
    """
    generator = torch.Generator(device=device).manual_seed(seed)
    for name, spec in openpi_layout(config).items():
        if name == EXPERT_LM_HEAD:
            continue
        ours = model_name(name)
        target = parameter_dtype(ours, dtype)
        x = torch.randn(spec.shape, generator=generator, dtype=target, device=device)
        x *= _deviation(name, spec.shape) or 1.0 / math.sqrt(math.prod(spec.shape[1:]))
        if _mean(name):
            x += _mean(name)
        set_parameter(model, ours, x)


def set_parameter(model: nn.Module, name: str, value: Tensor) -> None:
    """Put `value` in the place of the parameter `name`, without gradient."""
    path, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(path), leaf, nn.Parameter(value, requires_grad=False))


def _mean(name: str) -> float:
    return 1.0 if name.startswith(VISION) and "norm" in name and name.endswith(".weight") else 0.0


def _deviation(name: str, shape: tuple[int, ...]) -> float | None:
    """Standard deviation of a tensor; None for ``1 / sqrt(inputs)``."""
    weight = name.endswith(".weight")
    if ".dense." in name:
        return 0.5 / math.sqrt(shape[-1]) if weight else 0.3
    if "position_embedding" in name:
        return 0.1
    if "embed_tokens" in name or "lm_head" in name:
        return 1.0 / math.sqrt(shape[-1])
    return 0.1 if "norm" in name or not weight else None
