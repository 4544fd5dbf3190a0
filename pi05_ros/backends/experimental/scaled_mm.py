"""The calibrated stages with their products on the GPU's FP8 units, through torch alone.

The same codes and scales as in the exported graphs, multiplied by `torch._scaled_mm` in the order
that a compiled engine has: float32 accumulation and both scalar scales in the product, its result
stored in the stage's type, then the gain per channel. Real FP8 arithmetic where no TensorRT is
installed. It is there to judge a calibration on a GPU (`pi05 check --backend scaled_mm`), not to
be fast.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pi05_ros.backends.engine import Precision
from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.quantization.calibration import Calibration
from pi05_ros.backends.quantization.fake_quant import quantize
from pi05_ros.backends.quantization.modules import QuantLinear, quantized_stage
from pi05_ros.backends.staged.engine import StagedEngine
from pi05_ros.backends.staged.shapes import STAGES, StageShapes
from pi05_ros.model import Pi05

MULTIPLE = 16  # of both sizes of the weight, a limit of the hardware's FP8 products


class ScaledMmLinear(nn.Module):
    """A `QuantLinear` whose product runs on FP8 operands."""

    def __init__(self, source: QuantLinear) -> None:
        super().__init__()
        if source.weight_kind != "fp8" or source.input_kind != "fp8":
            raise BackendError("only FP8 presets run on FP8 units")
        if source.in_features % MULTIPLE or source.out_features % MULTIPLE:
            raise BackendError(
                f"a {source.in_features}x{source.out_features} weight cannot use FP8 units: sizes "
                f"must be multiples of {MULTIPLE}"
            )
        # The second operand must be column-major: in memory it is [out, in].
        self.register_buffer("rows", source.codes.t().contiguous())
        self.register_buffer("weight_scale", source.weight_scale.float())
        self.register_buffer("input_scale", source.input_scale.float())
        self.register_buffer("gain", source.gain)
        self.rows: Tensor
        self.weight_scale: Tensor
        self.input_scale: Tensor
        self.gain: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` -> ``[..., out]`` in the dtype of ``x``."""
        codes = quantize(x, self.input_scale, "fp8").reshape(-1, x.shape[-1])
        product = torch._scaled_mm(
            codes,
            self.rows.t(),
            scale_a=self.input_scale,
            scale_b=self.weight_scale,
            out_dtype=x.dtype,
            use_fast_accum=False,
        )
        return (product * self.gain).reshape(*x.shape[:-1], -1)


def use_scaled_mm(module: nn.Module) -> int:
    """Replace every `QuantLinear` below ``module``; returns how many."""
    found = [(name, m) for name, m in module.named_modules() if isinstance(m, QuantLinear)]
    for name, linear in found:
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, ScaledMmLinear(linear))
    return len(found)


def scaled_mm_engine(model: Pi05, shapes: StageShapes, calibration: Calibration) -> StagedEngine:
    """All three stages in half precision, FP8 products on the model's device.

    Raises:
        BackendError: a device without FP8 units, or a preset that is not FP8.

    """
    if calibration.choice.fp4_mlp_stages:
        raise BackendError(
            f"preset {calibration.preset} has FP4 products; take --backend simulated"
        )
    device = model.device
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        raise BackendError(f"{torch.cuda.get_device_name(device)} has no FP8 units")
    modules = {s: quantized_stage(model, s, torch.float16, calibration) for s in STAGES}
    use_scaled_mm(modules["prefill"])
    use_scaled_mm(modules["denoise_step"])
    return StagedEngine.on_torch(
        model,
        shapes,
        modules,
        torch.float16,
        backend="scaled_mm",
        precision=Precision("fp16", "fp8", "fp8"),
        reason="FP8 products through torch._scaled_mm",
    )
