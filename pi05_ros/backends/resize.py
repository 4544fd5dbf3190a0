"""Fit images into the model's square: by Pillow on the CPU, by the same arithmetic elsewhere.

Pillow (Resample.c) filters 8-bit images in fixed point: weights rounded to 22 bits, along one
axis, rounded to 8 bits, then along the other. The same integers give the same image. Which axis
comes first depends on Pillow's version and the image's shape; we take the rows first as Pillow
before 13 does, so very tall images may differ by one level from Pillow 13.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from PIL import Image

PRECISION_BITS = 32 - 8 - 2


def fitted_size(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width of a image fitted into a square, truncated as openpi does, at least 1."""
    ratio = max(width / size, height / size)
    return max(1, int(height / ratio)), max(1, int(width / ratio))


@lru_cache(maxsize=64)
def filter_weights(source: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices and fixed-point weights ``[target, k]`` of the triangle filter along one axis."""
    scale = source / target
    support = max(scale, 1.0)
    count = math.ceil(support) * 2 + 1
    indices = np.zeros((target, count), dtype=np.int64)
    weights = np.zeros((target, count), dtype=np.int32)
    for i in range(target):
        center = (i + 0.5) * scale
        first = max(0, int(center - support + 0.5))
        last = min(source, int(center + support + 0.5))
        taps = [
            max(0.0, 1.0 - abs((j - center + 0.5) * (1.0 / support))) for j in range(first, last)
        ]
        total = sum(taps)
        for k, tap in enumerate(taps):
            indices[i, k] = first + k
            weights[i, k] = int(0.5 + tap * (1.0 / total) * (1 << PRECISION_BITS))
    return indices, weights


@lru_cache(maxsize=64)
def _device_weights(
    source: int, target: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    indices, weights = filter_weights(source, target)
    return torch.from_numpy(indices).to(device), torch.from_numpy(weights).to(device)


def _filter_last(pixels: torch.Tensor, target: int) -> torch.Tensor:
    """Resize the last axis of uint8 ``[..., n]`` to ``[..., target]``."""
    source = pixels.shape[-1]
    if source == target:
        return pixels
    indices, weights = _device_weights(source, target, pixels.device)
    total = torch.full(
        (*pixels.shape[:-1], target),
        1 << (PRECISION_BITS - 1),
        dtype=torch.int32,
        device=pixels.device,
    )
    wide = pixels.to(torch.int32)
    for k in range(indices.shape[1]):
        total += wide[..., indices[:, k]] * weights[:, k]
    return (total >> PRECISION_BITS).clamp_(0, 255).to(torch.uint8)


def resize_pillow(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize uint8 ``[..., H, W, C]`` to ``[..., height, width, C]`` as Pillow's BILINEAR does."""
    rows = _filter_last(images.movedim(-1, -3), width)
    columns = _filter_last(rows.transpose(-1, -2), height)
    return columns.transpose(-1, -2).movedim(-3, -1).contiguous()


def resize_with_pad_torch(images: torch.Tensor, size: int) -> torch.Tensor:
    """Fit uint8 ``[..., H, W, 3]`` into ``[..., size, size, 3]`` on black, keeping the aspect."""
    height, width = images.shape[-3], images.shape[-2]
    if (height, width) == (size, size):
        return images
    new_height, new_width = fitted_size(height, width, size)
    canvas = images.new_zeros((*images.shape[:-3], size, size, images.shape[-1]))
    top, left = (size - new_height) // 2, (size - new_width) // 2
    canvas[..., top : top + new_height, left : left + new_width, :] = resize_pillow(
        images, new_height, new_width
    )
    return canvas


def resize_with_pad_pillow(image: np.ndarray, size: int) -> np.ndarray:
    """Fit uint8 ``[H, W, 3]`` into ``[size, size, 3]`` on black, with Pillow's own filter.

    What openpi's client and server do before the model (image_tools.resize_with_pad): bilinear,
    antialiased when shrinking, aspect kept, new sides truncated, centered.
    """
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    new_height, new_width = fitted_size(height, width, size)
    resized = Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BILINEAR)
    canvas = np.zeros((size, size, 3), dtype=np.uint8)
    top, left = (size - new_height) // 2, (size - new_width) // 2
    canvas[top : top + new_height, left : left + new_width] = np.asarray(resized)
    return canvas


def resize_with_pad(image: torch.Tensor, size: int) -> torch.Tensor:
    """Fit uint8 ``[H, W, 3]`` into ``[size, size, 3]`` on black, the fastest way on its device."""
    if image.device.type != "cpu":
        return resize_with_pad_torch(image, size)
    return torch.from_numpy(resize_with_pad_pillow(image.contiguous().numpy(), size))


def to_model_range(images: torch.Tensor) -> torch.Tensor:
    """Turn uint8 ``[..., S, S, 3]`` into float32 ``[..., 3, S, S]`` in [-1, 1]."""
    return (images.to(torch.float32) / 255.0 * 2.0 - 1.0).movedim(-1, -3)
