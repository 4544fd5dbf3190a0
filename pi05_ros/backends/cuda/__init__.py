"""pi0.5 on one NVIDIA GPU: fused Triton kernels around cuBLASLt GEMMs, replayed as CUDA graphs."""

from __future__ import annotations

import importlib.util
import logging
from typing import TYPE_CHECKING, Any

import torch

from pi05_ros.backends.cache import private_triton_cache
from pi05_ros.backends.engine import ASKED_FOR, Precision
from pi05_ros.backends.errors import BackendError

if TYPE_CHECKING:
    from pi05_ros.backends.cuda.engine import CudaEngine
    from pi05_ros.model import Pi05

log = logging.getLogger("pi05_ros.cuda")

FP8_CAPABILITY = (8, 9)
WITHOUT_FP8 = {
    "vision": {"fp8": "bf16"},
    "prefill": {"fp8": "int8"},
    "denoise": {"fp8": "int8", "fp8-w8a16": "int8-w8a16"},
}
"""What stands for FP8 on devices without FP8 units."""
OPTIONS = (
    "calibration",  # path of activation scales
    "release_model",  # empty the model's parameters while packing
    "monitor_every",  # calls between two that look for saturation, 0: never
    "slots",  # KV caches
    "dependent_launch",  # override of the tuning data
    "tuning",  # overrides of the tuning data
)


def usable(device: torch.device | None = None) -> tuple[bool, str]:
    """Whether the backend can run on a device (the current one), and why (not)."""
    if not torch.cuda.is_available():
        return False, "there is no CUDA device; backend 'eager' runs on the CPU"
    if importlib.util.find_spec("triton") is None:
        return False, "Triton is not installed (pip install triton); backend 'eager' always runs"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return (
            False,
            f"compute capability {major}.{minor} is below 8.0; backend 'eager' runs there",
        )
    return True, f"CUDA device {torch.cuda.get_device_name(device)}"


def resolve(precision: Precision, capability: tuple[int, int]) -> Precision:
    """Replace "auto": vision BF16, prefill and denoise FP8, INT8 where the device has no FP8.

    Raises:
        BackendError: a precision that this backend does not have.

    """
    chosen = {}
    for stage in ("vision", "prefill", "denoise"):
        value = getattr(precision, stage)
        accepted = ["auto", "bf16", "fp8", "int8"]
        accepted += ["fp8-w8a16", "int8-w8a16"] if stage == "denoise" else []
        if value not in accepted:
            raise BackendError(
                f"precision.{stage} is {value!r}; the cuda backend accepts "
                f"{', '.join(accepted[:-1])} and {accepted[-1]}"
            )
        default = "bf16" if stage == "vision" else "fp8"
        chosen[stage] = default if value == "auto" else value
    if capability < FP8_CAPABILITY and any("fp8" in word for word in chosen.values()):
        asked = dict(chosen)
        chosen = {stage: WITHOUT_FP8[stage].get(word, word) for stage, word in asked.items()}
        words = ", ".join(f"{stage} {word}" for stage, word in chosen.items())
        log.warning("compute capability %d.%d has no FP8 units: %s", *capability, words)
    return Precision(**chosen)


def create(
    model: Pi05,
    precision: Precision | None = None,
    views: int = 2,
    horizon: int = 50,
    max_prompt_tokens: int = 200,
    reason: str = ASKED_FOR,
    **options: Any,
) -> CudaEngine:
    """Build the engine for a model whose weights are on a CUDA device.

    Args:
        model: weights; copied in packed form, so the model may be freed afterwards.
        precision: "bf16", "fp8" or "int8" per stage; "auto" is vision BF16, prefill and denoise
            FP8 (INT8 below compute capability 8.9). "fp8-w8a16" and "int8-w8a16" (denoise
            alone): 8-bit weights, BF16 activations.
        views: cameras to expect, up to 3.
        horizon: chunk length where noise is drawn by the engine, up to 64.
        max_prompt_tokens: longest prompt.
        reason: why this backend was chosen.
        options: see OPTIONS and `CudaEngine`.

    Raises:
        BackendError: no usable device, the model is elsewhere, or an option is out of range.

    """
    on_cuda = model.device.type == "cuda"
    ok, why = usable(model.device if on_cuda else None)
    if not ok:
        raise BackendError(f"the cuda backend cannot run here: {why}")
    if not on_cuda:
        raise BackendError(
            f"the model is on {model.device}; load it with device='cuda' or use backend 'eager'"
        )
    unknown = [name for name in options if name not in OPTIONS]
    if unknown:
        raise BackendError(
            f"the cuda backend has no option {unknown[0]!r}; it has {', '.join(OPTIONS)}"
        )
    private_triton_cache()
    try:
        from pi05_ros.backends.cuda.engine import CudaEngine
    except ImportError as error:
        raise BackendError(
            f"the cuda backend needs another Triton, 3.6 is tested ({error}); "
            "backend 'eager' always runs"
        ) from error

    capability = torch.cuda.get_device_capability(model.device)
    resolved = resolve(precision or Precision(), capability)
    return CudaEngine(
        model,
        resolved,
        views=views,
        horizon=horizon,
        max_prompt_tokens=max_prompt_tokens,
        reason=reason,
        **options,
    )
