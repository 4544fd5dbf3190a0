"""Images of an observation: checks, layout, and the CPU resize of both checkpoint families."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from pi05_ros.backends.resize import fitted_size
from pi05_ros.policy.errors import PolicyError

_ACCEPTED = "accepted: uint8 [H, W, 3] or [3, H, W] RGB, or float of that shape in [0, 1]"


def to_hwc(image: np.ndarray, role: str = "image") -> np.ndarray:
    """Image as contiguous ``[H, W, 3]`` of its own type; a leading three means channels first.

    Raises:
        PolicyError: other shapes or types, an empty image, floats outside [0, 1] or NaN.

    """
    if not isinstance(image, np.ndarray):
        raise PolicyError(f"camera {role!r} is {type(image).__name__}; {_ACCEPTED}")
    if image.ndim != 3 or 0 in image.shape or (image.shape[0] != 3 and image.shape[2] != 3):
        raise PolicyError(f"camera {role!r} has shape {list(image.shape)}; {_ACCEPTED}")
    if np.issubdtype(image.dtype, np.floating):
        low, high = float(image.min()), float(image.max())
        if not (low >= 0.0 and high <= 1.0):  # also catches NaN
            raise PolicyError(f"camera {role!r} has values from {low:g} to {high:g}; {_ACCEPTED}")
    elif image.dtype != np.uint8:
        raise PolicyError(f"camera {role!r} has type {image.dtype}; {_ACCEPTED}")
    if image.shape[0] == 3:
        image = image.transpose(1, 2, 0)
    return np.ascontiguousarray(image)


def to_uint8_hwc(image: np.ndarray, role: str = "image") -> np.ndarray:
    """Image as contiguous uint8 ``[H, W, 3]``; see `to_hwc`.

    As in openpi's robot inputs, floats are scaled by 255 and truncated.
    """
    image = to_hwc(image, role)
    return image if image.dtype == np.uint8 else (255 * image).astype(np.uint8)


def lerobot_image(image: np.ndarray, size: int, pad_value: float) -> torch.Tensor:
    """Image as LeRobot feeds it: float32 ``[3, size, size]``.

    LeRobot resizes inside its model with plain bilinear interpolation (no antialiasing).

    Args:
        image: uint8 ``[H, W, 3]``, or float in [0, 1], which is not rounded to 8 bits.
        size: side of the model's image.
        pad_value: model-range value of the border: -1.0 (black) since LeRobot 0.5.0, -3.0
            before, where the border was set to -1 and then scaled once more.

    """
    pixels = torch.from_numpy(image).permute(2, 0, 1).to(torch.float32)[None]
    if image.dtype == np.uint8:
        pixels = pixels / 255.0
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return pixels[0] * 2.0 - 1.0
    new = fitted_size(height, width, size)
    pixels = F.interpolate(pixels, size=new, mode="bilinear", align_corners=False).clamp(0.0, 1.0)
    out = torch.full((3, size, size), pad_value, dtype=torch.float32)
    top, left = (size - new[0]) // 2, (size - new[1]) // 2
    out[:, top : top + new[0], left : left + new[1]] = pixels[0] * 2.0 - 1.0
    return out
