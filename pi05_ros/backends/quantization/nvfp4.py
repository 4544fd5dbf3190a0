"""NVFP4: its arithmetic in torch, and how the exporter finds it in a graph.

A value is ``code * block scale * tensor scale``: codes are E2M1 (0, 0.5, 1, 1.5, 2, 3, 4, 6 with a
sign), 16 neighbors along the summed axis share a block scale in E4M3, and one float32 scale per
tensor brings the block scales into the range of E4M3. Only the tensor scale is calibrated; block
scales follow from the data, those of activations anew in every run.

ModelOpt's own kernels for it need CUDA. In ONNX it needs FP4 tensors (opset 23) and TensorRT's
dynamic quantizer operator (`export.fp4_graph`), which ONNX Runtime lacks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pi05_ros.backends.quantization.calibration import CalibrationError
from pi05_ros.backends.quantization.fake_quant import LARGEST
from pi05_ros.backends.quantization.presets import FP4_BLOCK

LARGEST_CODE = 6.0
LARGEST_BLOCK_SCALE = LARGEST["fp8"]


def tensor_scale(amax: Tensor) -> Tensor:
    """Scale (float32, 0-d) at which the block of the largest value has the largest block scale."""
    scale = amax.float().reshape(()) / (LARGEST_CODE * LARGEST_BLOCK_SCALE)
    return scale.clamp(min=torch.finfo(torch.float32).tiny)


def round_e2m1(x: Tensor) -> Tensor:
    """Nearest E2M1 value, ties to the even mantissa, saturating at 6; float32.

    Steps are 0.5 below 2, 1 below 4 and 2 above.
    """
    size = x.float().abs()
    step = torch.where(size < 2.0, 0.5, torch.where(size < 4.0, 1.0, 2.0))
    return torch.copysign((size / step).round().mul(step).clamp(max=LARGEST_CODE), x.float())


def quantize_blocks(x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and block scales.

    Args:
        x: ``[..., N]`` with N a multiple of 16.
        scale: float32 0-d, from `tensor_scale`.

    Returns:
        Codes as E2M1 values ``[..., N]`` float32 and block scales ``[..., N / 16]``
        float8_e4m3fn. A block whose scale rounds to zero has zero codes.

    """
    blocks = x.float().unflatten(-1, (-1, FP4_BLOCK))
    wanted = blocks.abs().amax(-1) / (LARGEST_CODE * scale)
    scales = wanted.clamp(max=LARGEST_BLOCK_SCALE).to(torch.float8_e4m3fn)
    step = (scales.float() * scale)[..., None]
    ratio = torch.where(step > 0, blocks / torch.where(step > 0, step, 1.0), 0.0)
    return round_e2m1(ratio).flatten(-2), scales


def dequantize_blocks(codes: Tensor, scales: Tensor, scale: Tensor) -> Tensor:
    """``code * block scale * tensor scale``, float32."""
    step = scales.float() * scale
    return (codes.unflatten(-1, (-1, FP4_BLOCK)) * step[..., None]).flatten(-2)


def fake_quantize_blocks(x: Tensor, scale: Tensor) -> Tensor:
    """Quantize and dequantize; result in the dtype of ``x``."""
    return dequantize_blocks(*quantize_blocks(x, scale), scale).to(x.dtype)


@torch.library.custom_op("pi05_ros::fake_quantize_fp4", mutates_args=())
def fake_quantize_fp4(x: Tensor, scale: Tensor) -> Tensor:
    """`fake_quantize_blocks` as an operator that can be exported."""
    return fake_quantize_blocks(x, scale)


@fake_quantize_fp4.register_fake
def _(x: Tensor, scale: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("pi05_ros::dequantize_fp4", mutates_args=())
def dequantize_fp4(codes: Tensor, scales: Tensor, scale: Tensor, half: bool) -> Tensor:
    """Weights ``[in, out]`` of codes ``[out, in]``, in float16 or float32."""
    weight = dequantize_blocks(codes.float(), scales, scale)
    return weight.to(torch.float16 if half else torch.float32).t().contiguous()


@dequantize_fp4.register_fake
def _(codes: Tensor, scales: Tensor, scale: Tensor, half: bool) -> Tensor:
    dtype = torch.float16 if half else torch.float32
    return torch.empty(codes.shape[1], codes.shape[0], dtype=dtype, device=codes.device)


class Fp4Linear(nn.Module):
    """A Linear without bias, weights and inputs in NVFP4.

    Args:
        source: weights ``[out, in]`` with ``in`` a multiple of 16.
        weight_amax: largest magnitude of the weights, 0-d.
        input_amax: of the inputs, 0-d.

    Raises:
        CalibrationError: a bias, or sizes that blocks do not divide.

    """

    def __init__(self, source: nn.Linear, *, weight_amax: Tensor, input_amax: Tensor) -> None:
        super().__init__()
        if source.bias is not None:
            raise CalibrationError("a Linear with a bias is never quantized here")
        if source.in_features % FP4_BLOCK:
            raise CalibrationError(
                f"a weight with {source.in_features} inputs has no whole blocks of {FP4_BLOCK}"
            )
        self.in_features: int = source.in_features
        self.out_features: int = source.out_features
        weight = source.weight.detach()
        scale = tensor_scale(weight_amax).to(weight.device)
        codes, scales = quantize_blocks(weight, scale)
        self.register_buffer("codes", codes.to(torch.float8_e4m3fn))  # holds E2M1 exactly
        self.register_buffer("block_scales", scales)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("input_scale", tensor_scale(input_amax).to(weight.device))
        self.codes: Tensor
        self.block_scales: Tensor
        self.weight_scale: Tensor
        self.input_scale: Tensor

    def weight(self) -> Tensor:
        """Dequantized weights ``[out, in]``, float32."""
        return dequantize_blocks(self.codes.float(), self.block_scales, self.weight_scale)

    def range_use(self, x: Tensor) -> tuple[float, float]:
        """How many values of an input lie beyond the calibrated range, and how many become 0."""
        largest = self.input_scale * LARGEST_CODE * LARGEST_BLOCK_SCALE
        clipped = (x.float().abs() > largest * (1 + 1e-3)).sum()
        flushed = ((x != 0) & (fake_quantize_blocks(x, self.input_scale) == 0)).sum()
        return float(clipped), float(flushed)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` -> ``[..., out]``."""
        half = x.dtype == torch.float16
        weight = dequantize_fp4(self.codes, self.block_scales, self.weight_scale, half)
        return torch.matmul(fake_quantize_fp4(x, self.input_scale), weight.to(x.dtype))
