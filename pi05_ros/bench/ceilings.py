"""Least time a device needs for a workload: per stage, the larger of arithmetic and bytes.

Activations are taken as free (they stay in cache), attention runs at the BF16 rate, every weight
is read once per use. The rates are measured on the spot: a large copy, and a large product in each
precision.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from pi05_ros.backends.engine import Precision
from pi05_ros.model import Pi05Config


def measure_copy(gigabytes: float = 1.0) -> float:
    """Device memory bandwidth in TB/s: read plus written bytes of a large copy."""
    source = torch.empty(int(gigabytes * 2**30), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / _median_s(lambda: target.copy_(source), 10) / 1e12


def measure_gemm(M: int, N: int, K: int, fp8: bool) -> float:
    """Dense product rate in TFLOP/s on random data."""
    a = torch.randn(M, K, device="cuda", dtype=torch.bfloat16)
    b = torch.randn(N, K, device="cuda", dtype=torch.bfloat16)
    one = torch.ones((), device="cuda")
    out = torch.empty(M, N, device="cuda", dtype=torch.bfloat16)
    if fp8:
        a8, b8 = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn)

        def call() -> None:
            torch._scaled_mm(
                a8, b8.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, out=out,
                use_fast_accum=True,
            )  # fmt: skip
    else:

        def call() -> None:
            torch.mm(a, b.t(), out=out)

    return 2.0 * M * N * K / _median_s(call, 20) / 1e12


def device_times(call: Callable[[], Any], runs: int, warmup: int = 5) -> list[float]:
    """Milliseconds of each of `runs` calls on the device."""
    for _ in range(warmup):
        call()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(runs)]
    for start, end in events:
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in events]


def _median_s(call: Callable[[], Any], runs: int) -> float:
    return 1e-3 * sorted(device_times(call, runs, warmup=3))[runs // 2]


@lru_cache(maxsize=1)
def rates() -> dict[str, float]:
    """This device's ceilings: TB/s, and TFLOP/s in BF16 and FP8 (0 where it has none)."""
    fp8 = torch.cuda.get_device_capability() >= (8, 9)
    return {
        "copy": measure_copy(),
        "bf16": measure_gemm(8192, 8192, 8192, False),
        "fp8": measure_gemm(8192, 8192, 8192, True) if fp8 else 0.0,
    }


def work_of(config: Pi05Config, work: Any) -> dict[str, tuple[float, float, float]]:
    """Per stage: FLOPs of matrices, FLOPs of attention, parameters read (all steps together)."""
    v, g, x = config.vision, config.vlm, config.expert
    P = v.tokens
    n = work.views * P
    D, F = v.hidden_size, v.intermediate_size
    layer = 4 * D * D + 2 * D * F
    patch = 3 * v.patch_size**2 * D
    vision_params = v.num_hidden_layers * layer + patch + D * g.width
    vision_attention = 4.0 * v.num_hidden_layers * work.views * P * P * D
    T = n + work.tokens
    q = g.num_heads * g.head_dim
    kv = 2 * g.num_kv_heads * g.head_dim
    full = g.width * (2 * q + kv) + 3 * g.width * g.mlp_dim
    prefix_params = (g.depth - 1) * full + g.width * kv
    prefix_attention = 4.0 * (g.depth - 1) * T * T * q
    H = work.horizon
    expert = x.depth * (x.width * (2 * q + kv) + 3 * x.width * x.mlp_dim)
    expert_attention = 4.0 * x.depth * H * (T + H) * q
    steps = work.steps
    return {
        "vision": (2.0 * n * vision_params, vision_attention, float(vision_params)),
        "prefill": (2.0 * T * prefix_params, prefix_attention, float(prefix_params)),
        "denoise": (2.0 * H * expert * steps, expert_attention * steps, float(expert * steps)),
    }


def floor_ms(config: Pi05Config, work: Any, precision: Precision) -> dict[str, float]:
    """Milliseconds per stage and in total that no implementation can beat on this device."""
    ceiling = rates()
    floors = {}
    for stage, (flops, attention, params) in work_of(config, work).items():
        word = getattr(precision, stage)
        rate = ceiling["fp8"] if word == "fp8" else ceiling["bf16"]
        compute = flops / rate / 1e9 + attention / ceiling["bf16"] / 1e9
        memory = params * (1 if word.startswith("fp8") else 2) / ceiling["copy"] / 1e9
        floors[stage] = max(compute, memory)
    floors["graph"] = sum(floors.values())
    return floors
