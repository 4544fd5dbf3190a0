"""`pi05 bench roofline`: this machine's own ceilings.

Copy bandwidth by size, and the rate of matrix products in BF16 and FP8 at the shapes of pi0.5.
"""

from __future__ import annotations

from typing import Any

import torch

from pi05_ros.backends import BackendError
from pi05_ros.bench.ceilings import measure_copy, measure_gemm

SHAPES = (
    ("square", 8192, 8192, 8192),
    ("prefix gate-up", 560, 32768, 2048),
    ("prefix down", 560, 2048, 16384),
    ("prefix qkv", 560, 2560, 2048),
    ("vision fc1", 512, 4304, 1152),
    ("vision qkv", 512, 3456, 1152),
    ("expert gate-up", 64, 8192, 1024),
    ("expert down", 64, 1024, 4096),
)


def measure_ceilings() -> dict[str, Any]:
    """All ceilings of the current CUDA device.

    Raises:
        BackendError: there is none.

    """
    if not torch.cuda.is_available():
        raise BackendError("there is no CUDA device")
    fp8 = torch.cuda.get_device_capability() >= (8, 9)
    copies = {f"{mib} MiB": measure_copy(mib / 1024) for mib in (8, 64, 512, 2048)}
    gemms = {}
    for name, M, N, K in SHAPES:
        gemms[name] = {
            "shape": [M, N, K],
            "bf16": measure_gemm(M, N, K, False),
            "fp8": measure_gemm(M, N, K, True) if fp8 else None,
        }
    return {"device": torch.cuda.get_device_name(), "copy_tb_s": copies, "gemm_tflop_s": gemms}


def console(report: dict[str, Any]) -> None:
    """Print both tables with rich."""
    from rich.console import Console
    from rich.table import Table

    screen = Console()
    table = Table("size", "TB/s (read + write)", title=f"copy, {report['device']}")
    for size, rate in report["copy_tb_s"].items():
        table.add_row(size, f"{rate:.2f}")
    screen.print(table)
    table = Table("product", "M x N x K", "BF16 TFLOP/s", "FP8 TFLOP/s", title="warm, one stream")
    for name, row in report["gemm_tflop_s"].items():
        fp8 = "-" if row["fp8"] is None else f"{row['fp8']:.0f}"
        table.add_row(name, " x ".join(map(str, row["shape"])), f"{row['bf16']:.0f}", fp8)
    screen.print(table)
