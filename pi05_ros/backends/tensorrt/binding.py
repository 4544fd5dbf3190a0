"""The GPU that engines run on, and whether any TensorRT can be used here."""

from __future__ import annotations

import contextlib

import torch

from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.tensorrt.flavor import (
    FP8_SINCE,
    Capability,
    require_any,
    usable_flavor,
)


class EngineFailedError(BackendError):
    """An engine that does not load or run, on the machine that built it."""


def require_gpu(*, fp8: bool, near: torch.device | None = None) -> torch.device:
    """The CUDA device to use.

    Args:
        fp8: the engine holds FP8 products, which need compute capability 8.9.
        near: where the model is; if that is a CUDA device it is taken, else the current one.

    Raises:
        BackendError: no device, or one without FP8.

    """
    if not torch.cuda.is_available():
        raise BackendError(
            "no CUDA device; engines are built and run on the GPU they are for "
            "(`pi05 build --flavor rtx --target sm89` compiles without one)"
        )
    index = near.index if near is not None and near.type == "cuda" else None
    device = torch.device("cuda", torch.cuda.current_device() if index is None else index)
    capability = torch.cuda.get_device_capability(device)
    if fp8 and capability < FP8_SINCE:
        name = torch.cuda.get_device_name(device)
        raise BackendError(
            f"{name} (compute capability {capability[0]}.{capability[1]}) has no FP8; it needs "
            "8.9 or newer (RTX 40, H100, Thor). Take --precision fp16, or INT8: "
            "pi05 calibrate --for tensorrt --preset int8_smoothquant, and "
            "give its folder with --calibration"
        )
    return device


def on_device(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """TensorRT and CUDA graphs work on the current CUDA device: make it this one for a block."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def capability_of(device: torch.device) -> Capability:
    """Compute capability of the GPU, major and minor; (0, 0) without one."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


def usable() -> tuple[bool, str]:
    """Whether engines of any flavor can run here, and why not."""
    try:
        require_any()
        device = require_gpu(fp8=False)
        flavor = usable_flavor(capability_of(device))
        version = flavor.require()
    except BackendError as error:
        return False, str(error)
    return True, f"{flavor.title} {version} on {torch.cuda.get_device_name(device)}"
