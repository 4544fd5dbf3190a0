"""Quantize-dequantize arithmetic exactly as ONNX defines it, as torch operators we can export.

ModelOpt finds the ranges; these operators apply them. So a calibrated stage needs no ModelOpt
to run, export or be checked, and ONNX Runtime, TensorRT and torch see the same formula:

    q = saturate(round_half_even(x / scale)),  x' = q * scale

with the division in float32. FP8 is E4M3FN (largest value 448), INT8 is symmetric (+-127).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pi05_ros.errors import InvalidValueError

CODE_DTYPE = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}
LARGEST = {"fp8": torch.finfo(torch.float8_e4m3fn).max, "int8": 127.0}
# Below these a float16 scale would be subnormal or zero. FP8 codes are themselves floating
# point, so a scale held at the smallest normal half costs no accuracy; INT8 gets the finest
# scale that still has four significant bits.
SMALLEST_SCALE = {"fp8": 2.0**-14, "int8": 2.0**-20}


def scale_from_amax(amax: Tensor, kind: str) -> Tensor:
    """Scales that a float16 graph can hold: ``amax / largest`` rounded up to a half.

    Rounding up keeps the calibrated maximum unclipped. Every user of a calibration (FP32 twin,
    FP16 artifact, kernels on the GPU) takes these same values.

    Args:
        amax: finite, >= 0, any shape.
        kind: "fp8" or "int8".

    Returns:
        float32 of the same shape, each element exactly representable in float16.

    """
    exact = (amax.double() / LARGEST[kind]).clamp(min=SMALLEST_SCALE[kind])
    half = exact.to(torch.float16)
    # The bits of positive halves, read as integers, are in the order of their values.
    above = (half.view(torch.int16) + 1).view(torch.float16)
    scale = torch.where(half.double() < exact, above, half)
    if not bool(torch.isfinite(scale).all()):
        raise InvalidValueError(
            f"amax {float(amax.max()):.4g} gives a {kind} scale beyond float16"
        )
    return scale.float()


def quantize(x: Tensor, scale: Tensor, kind: str) -> Tensor:
    """Codes of ``x``: float8_e4m3fn or int8 of the same shape; ``scale`` broadcasts."""
    ratio = x.float() / scale.float()
    limit = LARGEST[kind]
    if kind == "int8":
        ratio = ratio.round()
    return ratio.clamp(-limit, limit).to(CODE_DTYPE[kind])


@torch.library.custom_op("pi05_ros::fake_quantize", mutates_args=())
def fake_quantize(x: Tensor, scale: Tensor, kind: str) -> Tensor:
    """Quantize and dequantize an activation with one scale (0-d); result in ``x``'s dtype."""
    return (quantize(x, scale, kind).float() * scale.float()).to(x.dtype)


@fake_quantize.register_fake
def _(x: Tensor, scale: Tensor, kind: str) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("pi05_ros::dequantize_weight", mutates_args=())
def dequantize_weight(codes: Tensor, scale: Tensor, kind: str) -> Tensor:
    """Weight codes ``[in, out]`` times a scale per column ``[out]`` (or 0-d), in its dtype."""
    return (codes.float() * scale.float()).to(scale.dtype)


@dequantize_weight.register_fake
def _(codes: Tensor, scale: Tensor, kind: str) -> Tensor:
    return torch.empty(codes.shape, dtype=scale.dtype, device=codes.device)
