"""Refuse a build early that would fail late: disk, GPU memory, host memory.

The factors are rules of thumb. A builder holds the weights of a graph as parsed, its own copy, and
the serialized plan before that is written; on the GPU the weights twice and what tactics try.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from pi05_ros.backends.errors import BackendError

DISK_FACTOR = 1.5
GPU_FACTOR = 2.5
HOST_FACTOR = 3.0
HOST_BASE = 512 << 20  # TensorRT's libraries and CUDA's context
MEMORY_INFO = Path("/proc/meminfo")


def available_memory() -> int | None:
    """Bytes of host memory that programs can have without swapping; None if unknown.

    That is MemAvailable of Linux: free memory and what caches give back.
    """
    try:
        lines = MEMORY_INFO.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, rest = line.partition(":")
        words = rest.split()
        if name == "MemAvailable" and words and words[0].isdigit():
            return int(words[0]) << 10
    return None


def require_room(
    export: Path,
    document: dict[str, Any],
    target: Path,
    device: torch.device,
    *,
    on_gpu: bool = True,
) -> None:
    """Look whether the engines of an export can be built here.

    Args:
        export: folder of the graphs.
        document: its ``export.json``.
        target: folder of the plans.
        device: the GPU.
        on_gpu: the builder holds weights on the GPU too; TensorRT for RTX does not.

    Raises:
        BackendError: too little disk, GPU memory or host memory, with what is there and needed.

    """
    sizes = {stage: (export / f"{stage}.onnx.data").stat().st_size for stage in document["stages"]}
    largest = max(sizes, key=lambda stage: sizes[stage])
    need = int(DISK_FACTOR * sum(sizes.values()))
    free = shutil.disk_usage(target).free
    if free < need:
        raise BackendError(
            f"{target} has {free >> 20} MiB free, the plans need about {need >> 20} MiB"
        )
    need = int(HOST_FACTOR * sizes[largest]) + HOST_BASE
    available = available_memory()
    if available is not None and available < need:
        raise BackendError(
            f"{available >> 20} MiB of host memory are available, building {largest} needs about "
            f"{need >> 20} MiB; stop other programs, or build the prefill in parts with "
            "--layout mlp_only"
        )
    if on_gpu and device.type == "cuda":
        need = int(GPU_FACTOR * sizes[largest])
        memory = torch.cuda.mem_get_info(device)[0]
        if memory < need:
            raise BackendError(
                f"{memory >> 20} MiB of GPU memory are free, building {largest} needs about "
                f"{need >> 20} MiB; stop other programs"
            )
