"""The arithmetic of a compiled engine in torch: what a compiler makes of the exported stages.

ONNX dequantizes both sides and multiplies. A compiled engine multiplies codes, and where it
applies the scales decides what is stored in half precision:

one weight scale    half(acc * float32(s_x * S)), then the gain per channel: as exported
one per channel     half(acc), then a half vector of s_x * s_w: the bare sum of codes overflows

``acc`` is the float32 (or int32) sum of products of codes. Activations are quantized by a
multiplication with the reciprocal of their scale in half precision. All this was read from the
kernels, types and constants of plans that TensorRT for RTX 1.7 compiled.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pi05_ros.backends.engine import Precision
from pi05_ros.backends.quantization.calibration import Calibration
from pi05_ros.backends.quantization.fake_quant import CODE_DTYPE, LARGEST, dequantize_weight
from pi05_ros.backends.quantization.modules import QuantLinear, QuantMatMul, quantized_stage
from pi05_ros.backends.quantization.nvfp4 import Fp4Linear, fake_quantize_blocks
from pi05_ros.backends.staged.engine import StagedEngine
from pi05_ros.backends.staged.layers import MatMul
from pi05_ros.backends.staged.shapes import STAGES, StageShapes
from pi05_ros.model import Pi05


def quantize_in_half(x: Tensor, scale: Tensor, kind: str) -> Tensor:
    """Codes of half-precision values as float32, quantized as an engine does it."""
    ratio = (x * scale.float().reciprocal().to(x.dtype)).float()
    limit = LARGEST[kind]
    if kind == "int8":
        ratio = ratio.round()
    return ratio.clamp(-limit, limit).to(CODE_DTYPE[kind]).float()


class _Compiled(nn.Module):
    """A module computed as an engine does; takes and gives half precision."""

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.source = source


class CompiledLinear(_Compiled):
    """A `QuantLinear`."""

    source: QuantLinear

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` -> ``[..., out]``."""
        layer = self.source
        if "smooth" in layer._buffers:
            x = x * layer.smooth
        if layer.input_kind is None:
            weight = dequantize_weight(layer.codes, layer.weight_scale, layer.weight_kind)
            return (x.float() @ weight.float()).to(x.dtype)
        sums = quantize_in_half(x, layer.input_scale, layer.input_kind) @ layer.codes.float()
        scale = layer.input_scale.float() * layer.weight_scale.float()
        inside = scale.numel() == 1
        y = (sums * scale).to(x.dtype) if inside else sums.to(x.dtype) * scale.to(x.dtype)
        return y * layer.gain if "gain" in layer._buffers else y


class CompiledMatMul(_Compiled):
    """A `QuantMatMul`: both scales inside the product."""

    source: QuantMatMul

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """``a @ b``."""
        layer = self.source
        sums = quantize_in_half(a, layer.a_scale, "fp8") @ quantize_in_half(
            b, layer.b_scale, "fp8"
        )
        return (sums * (layer.a_scale.float() * layer.b_scale.float())).to(a.dtype)


class CompiledFp4Linear(_Compiled):
    """An `Fp4Linear`: block and tensor scales inside the product."""

    source: Fp4Linear

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` -> ``[..., out]``."""
        quantized = fake_quantize_blocks(x.float(), self.source.input_scale)
        return (quantized @ self.source.weight().t()).to(x.dtype)


class HalfLinear(_Compiled):
    """A Linear or a product of activations, accumulated in float32 and stored in half."""

    def forward(self, *inputs: Tensor) -> Tensor:
        """As the source."""
        if isinstance(self.source, MatMul):
            return (inputs[0].float() @ inputs[1].float()).to(inputs[0].dtype)
        assert isinstance(self.source, nn.Linear)
        bias = None if self.source.bias is None else self.source.bias.float()
        y = nn.functional.linear(inputs[0].float(), self.source.weight.float(), bias)
        return y.to(self.source.weight.dtype)


_COMPILED: tuple[tuple[type[nn.Module], type[_Compiled]], ...] = (
    (QuantLinear, CompiledLinear),
    (QuantMatMul, CompiledMatMul),
    (Fp4Linear, CompiledFp4Linear),
    (nn.Linear, HalfLinear),
    (MatMul, HalfLinear),
)


def use_engine_arithmetic(module: nn.Module) -> int:
    """Replace the products below ``module``; returns how many."""
    count = 0
    for name, child in list(module.named_modules()):
        for kind, replacement in _COMPILED:
            if isinstance(child, kind):
                parent, _, last = name.rpartition(".")
                setattr(module.get_submodule(parent), last, replacement(child))
                count += 1
                break
    return count


def compiled_engine(
    model: Pi05,
    shapes: StageShapes,
    calibration: Calibration | None,
    quantized_stages: Sequence[str] = STAGES[1:],
    layout: str = "stages",
    backend: str = "simulated",
) -> StagedEngine:
    """All three stages in half precision, with the arithmetic of compiled engines.

    Args:
        model: weights; its device computes.
        shapes: static shapes.
        calibration: ranges; None quantizes nothing.
        quantized_stages: of prefill and denoise_step, those that take the calibration.
        layout: "mlp_only" quantizes of the prefill its MLPs alone.
        backend: name for the report.

    """
    dtype = torch.float16
    words = {"vision": "fp16"}
    modules: dict[str, nn.Module] = {}
    for stage in STAGES:
        ranges = calibration if stage in quantized_stages else None
        only = "mlp" if stage == "prefill" and layout == "mlp_only" else ""
        modules[stage] = quantized_stage(model, stage, dtype, ranges, only)
        use_engine_arithmetic(modules[stage])
        fp8 = ranges is not None and ranges.choice.weights == "fp8"
        words[stage] = "fp8" if fp8 and stage != "vision" else "fp16"
    precision = Precision(words["vision"], words["prefill"], words["denoise_step"])
    return StagedEngine.on_torch(
        model, shapes, modules, dtype, backend=backend, precision=precision
    )
