"""Attach a calibration to a stage: its Linears become quantized ones with ready weight codes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pi05_ros.backends.quantization.calibration import Calibration, CalibrationError
from pi05_ros.backends.quantization.fake_quant import (
    LARGEST,
    dequantize_weight,
    fake_quantize,
    quantize,
    scale_from_amax,
)
from pi05_ros.backends.quantization.nvfp4 import Fp4Linear
from pi05_ros.backends.quantization.presets import expected_quantizers
from pi05_ros.backends.staged.layers import MatMul
from pi05_ros.backends.staged.stages import make_stage
from pi05_ros.model import Pi05

# Of every weight with quantized inputs. One constant, so that products with a common input, which
# compilers merge, have equal scales; the smallest normal half, so that FP8 gains are at least 1
# and the stored product is never larger than the result.
PRODUCT_SCALE = 2.0**-14


def _largest_amax(kind: str) -> float:
    return LARGEST[kind] * PRODUCT_SCALE * float(torch.finfo(torch.float16).max)


class QuantLinear(nn.Module):
    """A Linear without bias whose weight is held as codes ``[in, out]``, ready for the graph.

    With quantized inputs the scale of an output channel is split in two: one power of two for the
    whole weight, which compilers apply in float32 inside the product, and a gain per channel after
    it. A scale per channel on the weight itself is applied behind the product, whose own result,
    the bare sum of codes, is then stored in half precision and overflows. Weight-only Linears keep
    one scale per channel: their product has half-precision operands.
    """

    def __init__(
        self,
        source: nn.Linear,
        *,
        weight_amax: Tensor,
        weight_kind: str,
        input_amax: Tensor | None,
        input_kind: str | None,
        smooth: Tensor | None,
    ) -> None:
        super().__init__()
        if source.bias is not None:
            raise CalibrationError("a Linear with a bias is never quantized here")
        dtype, device = source.weight.dtype, source.weight.device
        weight = source.weight.detach().float()
        self.in_features: int = source.in_features
        self.out_features: int = source.out_features
        self.weight_kind: str = weight_kind
        self.input_kind: str | None = input_kind
        if smooth is not None:
            weight = weight / smooth.to(device)
            self.register_buffer("smooth", smooth.to(device, dtype))
        scale = scale_from_amax(weight_amax, weight_kind).to(device)
        codes = quantize(weight.t().contiguous(), scale, weight_kind)
        self.register_buffer("codes", codes)
        if input_kind is None:
            self.register_buffer("weight_scale", scale.to(dtype))
        else:
            gain = (scale / PRODUCT_SCALE).to(dtype)
            if not bool(torch.isfinite(gain).all()):
                raise CalibrationError(
                    f"a weight range of {float(weight_amax.max()):.4g} is beyond what a half-"
                    f"precision graph can scale; accepted: up to {_largest_amax(weight_kind):.4g}"
                )
            self.register_buffer("weight_scale", gain.new_tensor(PRODUCT_SCALE))
            self.register_buffer("gain", gain)
        if input_amax is not None and input_kind is not None:
            input_scale = scale_from_amax(input_amax, input_kind).to(device)
            self.register_buffer("input_scale", input_scale.to(dtype))
        self.codes: Tensor
        self.weight_scale: Tensor
        self.input_scale: Tensor
        self.smooth: Tensor
        self.gain: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` -> ``[..., out]``."""
        if "smooth" in self._buffers:
            x = x * self.smooth
        if self.input_kind is not None:
            x = fake_quantize(x, self.input_scale, self.input_kind)
        y = torch.matmul(x, dequantize_weight(self.codes, self.weight_scale, self.weight_kind))
        return y * self.gain if "gain" in self._buffers else y


class QuantMatMul(nn.Module):
    """A product of two activations, both quantized to FP8."""

    def __init__(self, a_amax: Tensor, b_amax: Tensor, like: Tensor) -> None:
        super().__init__()
        self.register_buffer("a_scale", scale_from_amax(a_amax, "fp8").to(like))
        self.register_buffer("b_scale", scale_from_amax(b_amax, "fp8").to(like))
        self.a_scale: Tensor
        self.b_scale: Tensor

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """``a @ b`` of the quantized operands."""
        a = fake_quantize(a, self.a_scale, "fp8")
        return torch.matmul(a, fake_quantize(b, self.b_scale, "fp8"))


def apply_calibration(
    stage_module: nn.Module, stage: str, calibration: Calibration, only: str = ""
) -> None:
    """Quantize a stage in place.

    Args:
        stage_module: a `PrefillStage` or `DenoiseStage` without quantizers.
        stage: its name, "prefill" or "denoise_step".
        calibration: must name exactly the quantizers of the preset for this stage.
        only: quantize the modules below this name alone ("mlp" for the MLPs of all layers).

    Raises:
        CalibrationError: quantizers missing, unknown, or of the wrong size.

    """
    choice = calibration.choice
    depth = len(stage_module.get_submodule("layers"))  # type: ignore[arg-type]
    expected = expected_quantizers(choice, depth, stages=(stage,))
    present = {name for name in calibration.amax if name.startswith(f"{stage}.")}
    if present != expected:
        missing, extra = sorted(expected - present), sorted(present - expected)
        raise CalibrationError(
            f"the calibration does not fit the {stage} stage: {len(missing)} quantizers are "
            f"missing and {len(extra)} are unknown (for example {(missing or extra)[0]})"
        )
    attach_quantizers(stage_module, stage, calibration, expected, only)


def attach_quantizers(
    root: nn.Module, stage: str, calibration: Calibration, expected: set[str], only: str = ""
) -> None:
    """Replace the modules below ``root`` that ``expected`` names by quantized ones."""
    choice = calibration.choice
    for name, module in list(root.named_modules()):
        if only and f".{only}." not in name:
            continue
        key = f"{stage}.{name}"
        replacement: nn.Module | None = None
        if f"{key}.weight_quantizer" in expected and isinstance(module, nn.Linear):
            fp4 = choice.is_fp4(stage, name.rpartition(".")[2])
            per_channel = choice.per_channel and not fp4
            amax = calibration.amax[f"{key}.weight_quantizer"].reshape(-1)
            size = module.out_features if per_channel else 1
            if amax.numel() != size:
                raise CalibrationError(
                    f"{key}.weight_quantizer has {amax.numel()} ranges, the weight needs {size}; "
                    "the calibration was made for a model of another size"
                )
            if fp4:
                inputs = calibration.amax[f"{key}.input_quantizer"]
                replacement = Fp4Linear(module, weight_amax=amax, input_amax=inputs)
            else:
                replacement = QuantLinear(
                    module,
                    weight_amax=amax if per_channel else amax.reshape(()),
                    weight_kind=choice.weights,
                    input_amax=_scalar(calibration.amax.get(f"{key}.input_quantizer")),
                    input_kind=choice.activations,
                    smooth=calibration.smooth.get(key),
                )
        elif f"{key}.a_bmm_quantizer" in expected and isinstance(module, MatMul):
            a, b = (calibration.amax[f"{key}.{side}_bmm_quantizer"] for side in ("a", "b"))
            like = next(b for b in root.buffers() if b.is_floating_point())
            dtype = getattr(root, "dtype", like.dtype)
            replacement = QuantMatMul(
                a.reshape(()), b.reshape(()), torch.empty((), dtype=dtype, device=like.device)
            )
        if replacement is not None:
            parent, _, child = name.rpartition(".")
            setattr(root.get_submodule(parent), child, replacement)


def _scalar(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.reshape(())


def quantized_stage(
    model: Pi05,
    stage: str,
    dtype: torch.dtype,
    calibration: Calibration | None,
    only: str = "",
) -> nn.Module:
    """A stage with the calibration attached; the vision stage never has quantizers.

    ``only`` restricts it to a part of each layer, see `apply_calibration`.
    """
    module = make_stage(model, stage, dtype)
    if calibration is not None and stage != "vision":
        apply_calibration(module, stage, calibration, only)
    return module
