"""Is there a TensorRT we can use? Everything that imports `tensorrt` asks here first."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util

import torch

from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.identity import parse_version

OLDEST = (10, 13)
BEFORE = (12, 0)
INSTALL = (
    "pip install tensorrt-cu13 (JetPack: the python3-libnvinfer package of the image; "
    "make it visible in a virtual environment with --system-site-packages)"
)


class EngineFailedError(BackendError):
    """An engine that does not load or run, on the machine that built it."""


def require_tensorrt() -> str:
    """Version of the installed TensorRT.

    Raises:
        BackendError: not installed, its libraries do not load, too old or too new.

    """
    if importlib.util.find_spec("tensorrt") is None:
        raise BackendError(f"the Python package tensorrt is not installed: {INSTALL}")
    try:
        version = str(importlib.import_module("tensorrt").__version__)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        # AttributeError: no __version__, the package is some folder of that name.
        raise BackendError(
            f"the Python package tensorrt is there but does not load: {error}. Its libraries "
            "(libnvinfer, libnvonnxparser) must be of the same version and on the library path"
        ) from None
    found = parse_version(version)
    if not OLDEST <= found < BEFORE:
        raise BackendError(
            f"TensorRT {version} is not supported: needed are 10.13 up to 11.x. "
            "Weakly typed networks of older releases gave wrong actions for this model"
        )
    return version


def require_gpu(*, fp8: bool, near: torch.device | None = None) -> torch.device:
    """The CUDA device to use.

    Args:
        fp8: the engine holds FP8 products, which need compute capability 8.9.
        near: where the model is; if that is a CUDA device it is taken, else the current one.

    Raises:
        BackendError: no device, or one without FP8.

    """
    if not torch.cuda.is_available():
        raise BackendError("no CUDA device; engines are built and run on the GPU they are for")
    index = near.index if near is not None and near.type == "cuda" else None
    device = torch.device("cuda", torch.cuda.current_device() if index is None else index)
    capability = torch.cuda.get_device_capability(device)
    if fp8 and capability < (8, 9):
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


def usable() -> tuple[bool, str]:
    """Whether engines can run here, and why not."""
    try:
        version = require_tensorrt()
        device = require_gpu(fp8=False)
    except BackendError as error:
        return False, str(error)
    return True, f"TensorRT {version} on {torch.cuda.get_device_name(device)}"
