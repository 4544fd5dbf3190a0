"""Device functions that the kernels share: GELU, quantized stores, dependent launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

FP8_MAX = tl.constexpr(torch.finfo(torch.float8_e4m3fn).max)
INT8_MAX = tl.constexpr(127.0)


@triton.jit
def pdl_wait(PDL: tl.constexpr):
    """Wait until the kernel in front has finished and its writes are visible."""
    if PDL:
        tl.extra.cuda.gdc_wait()


@triton.jit
def pdl_trigger(PDL: tl.constexpr):
    """Let the kernel behind start its prologue once all our programs got here."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def gelu_tanh(x):
    """GELU, tanh approximation: x * sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3))."""
    inner = 1.5957691216057308 * (x + 0.044715 * x * x * x)
    return x / (1.0 + tl.exp(-inner))


@triton.jit
def store_quantized(pointers, value, mask, scale, amax_ptr, MONITOR: tl.constexpr):
    """Store value in the buffer's type: BF16 as is, e4m3 and int8 as value / scale, saturated.

    `scale` is a value: load it early, a memory latency at the end of a kernel is never hidden.

    MONITOR keeps the largest magnitude seen at this site in `amax_ptr` (FP32, non-negative, so
    that its bits order like integers): calibration and the saturation monitor read it.
    """
    if MONITOR:
        largest = tl.max(tl.where(mask, tl.abs(value), 0.0))
        tl.atomic_max(amax_ptr, largest)
    if pointers.dtype.element_ty == tl.float8e4nv:
        value = value * (1.0 / scale)  # scales are powers of two: exact
        value = tl.clamp(value, -FP8_MAX, FP8_MAX, propagate_nan=tl.PropagateNan.ALL)
    elif pointers.dtype.element_ty == tl.int8:
        value = tl.floor(value * (1.0 / scale) + 0.5)
        value = tl.clamp(value, -INT8_MAX, INT8_MAX)
    tl.store(pointers, value.to(pointers.dtype.element_ty), mask=mask)
