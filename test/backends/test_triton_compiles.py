"""The Triton kernels compile for the devices that they claim to run on: no GPU, only a compiler.

Launches of one engine are recorded, not run, with the widths of pi0.5 at one layer; then each
kernel is compiled for compute capability 8.0 (A100), 8.6 (RTX 30), 8.7 (Orin) and 9.0, and its
shared memory is held against what the device has.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

SHARED_BYTES = {80: 163 * 1024, 86: 99 * 1024, 87: 163 * 1024, 90: 227 * 1024}
"""Most shared memory of a thread block (CUDA C++ programming guide, compute capabilities)."""

SCRIPT = """
import dataclasses, sys
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

bf16 = lambda device: torch.bfloat16
from pi05_ros.backends.cuda import buffers, pack_model, weights
for module in (buffers, pack_model, weights):
    module.half = bf16
from pi05_ros.backends.cuda.engine import CudaEngine
from pi05_ros.backends.engine import Precision
from pi05_ros.model import Pi05, Pi05Config

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int8: "i8",
         torch.int32: "i32", torch.int64: "i64", torch.uint8: "u8", torch.float8_e4m3fn: "fp8e4nv"}
recorded = {}


def kind(value):
    if isinstance(value, torch.Tensor):
        return "*" + NAMES[value.dtype]
    if isinstance(value, TensorDescriptor):
        shape = ", ".join(map(str, value.block_shape))
        return f"tensordesc<{NAMES[value.base.dtype]}[{shape}]>"
    if isinstance(value, float):
        return "fp32"
    return "i32"


def record(self, *args, grid, warmup, **options):
    given = dict(zip(self.arg_names, args)) | {k: v for k, v in options.items()
                                               if k in self.arg_names}
    signature, constants, attributes = {}, {}, {}
    for index, p in enumerate(self.params):
        value = given[p.name]
        if p.is_constexpr:
            signature[p.name], constants[(index,)] = "constexpr", value
        else:
            signature[p.name] = kind(value)
            if isinstance(value, torch.Tensor):
                attributes[(index,)] = [["tt.divisibility", 16]]
    known = {k: options[k] for k in ("num_warps", "num_stages") if k in options}
    key = (self.__name__, str(signature), str(constants), str(known))
    recorded[key] = (self, signature, constants, attributes, known)


JITFunction.run = record
full, tiny = Pi05Config.preset("pi05"), Pi05Config.preset("tiny")
config = dataclasses.replace(
    full, vocab=512, vlm=dataclasses.replace(full.vlm, depth=2),
    expert=dataclasses.replace(full.expert, depth=2),
    vision=dataclasses.replace(full.vision, num_hidden_layers=1),
)
model = Pi05(config, torch.bfloat16, device="meta").to_empty(device="cpu")
for parameter in model.parameters():
    parameter.data.zero_()
engine = CudaEngine(model, Precision(*sys.argv[1].split(",")), max_prompt_tokens=8, views=1,
                    monitor_every=0)
engine.scales.first_runs = 0
images = torch.zeros(1, 224, 224, 3, dtype=torch.uint8)
engine.sample(images, torch.zeros(4, dtype=torch.int64), torch.zeros(10, 32), 1)
for arch in map(int, sys.argv[2].split(",")):
    for self, signature, constants, attributes, known in recorded.values():
        source = ASTSource(self, signature, constants, attributes)
        made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=known)
        print(arch, self.__name__, made.metadata.shared, flush=True)
"""


def compile_for(words: str, archs: tuple[int, ...]) -> list[tuple[int, str, int]]:
    """(arch, kernel, bytes of shared memory) of every kernel of an engine with this precision."""
    root = Path(__file__).parents[2]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "0"}
    env["PYTHONPATH"] = os.pathsep.join([str(root), env.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, words, ",".join(map(str, archs))],
        env=env,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line.split() for line in done.stdout.splitlines()]
    return [(int(arch), name, int(shared)) for arch, name, shared in rows]


@pytest.mark.parametrize("words", ["bf16,int8,int8", "int8,int8,int8-w8a16", "bf16,bf16,bf16"])
def test_kernels_compile_and_fit_into_shared_memory(words):
    rows = compile_for(words, (80, 86, 87))
    names = {name for _, name, _ in rows}
    assert {"qkv_rope", "gate_up", "residual_gemm", "residual_rms", "attend"} <= names
    assert ("int8_product" in names) == ("int8" in words)
    for arch, name, shared in rows:
        assert shared <= SHARED_BYTES[arch], (arch, name, shared)
