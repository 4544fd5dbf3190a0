#!/usr/bin/env python3
"""Compile the cuda backend's kernels for devices that are not there.

    python scripts/compile_kernels.py [--capability 80 89 90 100 120] [--precision bf16 fp8 ...]

Runs the launch sequences of all stages at full width (few layers) with a driver that only
compiles, and checks the shared memory of each kernel against the device's. Tile sizes are those
of tuning/default.json, or of the file given. Needs Triton 3.6 and torch, no GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pi05_ros.backends.cuda import buffers, pack_model, tuning, weights
from pi05_ros.backends.cuda.inputs import FrameInputs
from pi05_ros.backends.cuda.stages import modulation, stage
from pi05_ros.backends.cuda.stages.denoise import DenoiseKernels
from pi05_ros.backends.cuda.stages.launches import Launches
from pi05_ros.backends.cuda.stages.prefill import PrefixKernels
from pi05_ros.backends.engine import Precision
from pi05_ros.model import Pi05, Pi05Config

# Largest shared memory of one program, KiB (CUDA C++ programming guide, compute capabilities).
SHARED_KIB = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227, 110: 227, 120: 99}
PRECISIONS = {
    "bf16": Precision("bf16", "bf16", "bf16"),
    "fp8": Precision("bf16", "fp8", "fp8"),
    "fp8-vision": Precision("fp8", "fp8", "fp8"),
    "fp8-w8a16": Precision("bf16", "fp8", "fp8-w8a16"),
    "int8": Precision("bf16", "int8", "int8"),
    "int8-vision": Precision("int8", "int8", "int8-w8a16"),
}


class CompileOnly:
    """What Triton asks of a driver before it compiles."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        """The device that is not there."""
        return self.target

    def get_current_device(self) -> int:
        """Key of Triton's cache of kernels in this process."""
        return self.target.arch

    def get_current_stream(self, device: int) -> int:
        """Never used."""
        return 0


def own_products_only(
    self: stage.Stage,
    x: torch.Tensor,
    linear: weights.Linear,
    out: torch.Tensor,
    gelu: bool = False,
) -> None:
    """Products in INT8 are ours; the others are cuBLASLt's, which needs its device."""
    if x.dtype == torch.int8:
        self.int8_product(x, linear, out)


@contextmanager
def compiling(capability: int) -> Iterator[dict[str, int]]:
    """Launches only compile; yields kernel name -> most shared memory in bytes."""
    shared: dict[str, int] = {}
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        used = kernel.metadata.shared
        shared[self.__name__] = max(used, shared.get(self.__name__, 0))
        if used > 1024 * SHARED_KIB[capability]:
            raise RuntimeError(
                f"{self.__name__}: {used / 1024:.0f} KiB of shared memory, "
                f"capability {capability} has {SHARED_KIB[capability]}"
            )
        return kernel

    matmul = stage.Stage.matmul
    driver.set_active(CompileOnly(capability))
    JITFunction.run = compile_only
    stage.Stage.matmul = own_products_only
    try:
        yield shared
    finally:
        JITFunction.run, stage.Stage.matmul = run, matmul


def small(config: Pi05Config) -> Pi05Config:
    """Full widths, two layers, a short vocabulary."""
    return dataclasses.replace(
        config,
        vision=dataclasses.replace(config.vision, num_hidden_layers=2),
        vlm=dataclasses.replace(config.vlm, depth=2),
        expert=dataclasses.replace(config.expert, depth=2),
        vocab=512,
    )


def run_stages(model: Pi05, precision: Precision, values: tuning.Tuning, monitor: bool) -> None:
    """Every launch of one inference, twice: plain and guided."""
    packed = pack_model.pack(model, precision, fused_gate_up=values.flag("fused_gate_up"))
    memory = buffers.Buffers(packed, 3, 200, 1, torch.device("cpu"))
    prefix = PrefixKernels(packed, memory, values, values.flag("dependent_launch"))
    prefix.processors = 128
    flow = DenoiseKernels(packed, memory, values, prefix)
    frames = FrameInputs(torch.device("cpu"), model.config.vision.image_size)
    launches = Launches(prefix, flow, frames)
    table = modulation.build(packed, 2)
    with prefix.recording() if monitor else nullcontext():
        for views, bucket in ((2, 32), (3, 200)):
            launches.prefix((("frame", 480, 640),) * views, bucket, 0)
            for horizon in (10, 50):
                rows = views * memory.tokens + bucket
                launches.denoise(horizon, table, 0, rows)
                launches.denoise(horizon, table, 0, rows, guided=True)
        launches.prefix((("pixels", 224, 224),), 32, 0)
        launches.noise(50)


def main() -> int:
    """Exit 1 if a kernel does not compile or does not fit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--capability", type=int, nargs="+", default=[80, 89, 90, 100, 120])
    parser.add_argument("--precision", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--tuning", type=Path, help="tuning file merged over default.json")
    parser.add_argument("--monitor", action="store_true", help="with recording of magnitudes")
    args = parser.parse_args()
    bf16 = lambda device: torch.bfloat16  # noqa: E731 - the type a GPU would get
    weights.half = buffers.half = pack_model.half = bf16
    model = Pi05(small(Pi05Config.preset("pi05")), torch.bfloat16, device="meta")
    model = model.to_empty(device="cpu").requires_grad_(False)
    for parameter in model.parameters():
        parameter.data.fill_(0.01)
    default = json.loads((tuning.FOLDER / "default.json").read_text())
    over = tuning.read(args.tuning) if args.tuning else {}
    if over is None:
        parser.error(f"{args.tuning} cannot be read")
    values = tuning.Tuning(tuning.merge(default, over), "compile_kernels")
    failed = False
    for capability in args.capability:
        for name in args.precision:
            if capability < 89 and name.startswith("fp8"):
                continue
            begin = time.perf_counter()
            try:
                with compiling(capability) as shared:
                    run_stages(model, PRECISIONS[name], values, args.monitor)
            except Exception as error:
                failed = True
                print(f"capability {capability}, {name}: {str(error).strip().splitlines()[-1]}")
                continue
            largest = max(shared, key=lambda kernel: shared[kernel])
            print(
                f"capability {capability}, {name}: {len(shared)} kernels, at most "
                f"{shared[largest] / 1024:.0f} KiB of shared memory ({largest}), "
                f"{time.perf_counter() - begin:.0f} s"
            )
    print(f"Triton {triton.__version__}: {'FAILED' if failed else 'all compile'}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
