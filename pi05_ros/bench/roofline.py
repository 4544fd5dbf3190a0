"""`pi05 bench roofline`: this machine's own ceilings.

Copy bandwidth by size, and the rate of matrix products in BF16 and FP8 at the shapes of pi0.5.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

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


def measure() -> dict[str, object]:
    """All ceilings of the current CUDA device."""
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


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write `--json` if asked."""
    p = argparse.ArgumentParser(prog="pi05 bench roofline", description=__doc__)
    p.add_argument("--json", type=Path)
    args = p.parse_args(argv)
    if not torch.cuda.is_available():
        print("pi05 bench roofline: there is no CUDA device", file=sys.stderr)
        return 2
    from rich.console import Console
    from rich.table import Table

    report = measure()
    screen = Console()
    table = Table("size", "TB/s (read + write)", title=f"copy, {report['device']}")
    for size, rate in report["copy_tb_s"].items():  # type: ignore[attr-defined]
        table.add_row(size, f"{rate:.2f}")
    screen.print(table)
    table = Table("product", "M x N x K", "BF16 TFLOP/s", "FP8 TFLOP/s", title="warm, one stream")
    for name, row in report["gemm_tflop_s"].items():  # type: ignore[attr-defined]
        fp8 = "-" if row["fp8"] is None else f"{row['fp8']:.0f}"
        table.add_row(name, " x ".join(map(str, row["shape"])), f"{row['bf16']:.0f}", fp8)
    screen.print(table)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
