"""Kernels of the denoise loop: at most 64 action rows against the expert's weights.

One layer of one step is six launches, and no launch is spent on a norm:

    qkv_rope      (adaRMS) q, k, v -> rope -> q buffer, tail of the K/V cache
    attend        split over the keys, see attention.py
    combine       joins the splits, writes the (quantized) input of the output projection
    residual_gemm output projection: x += gate * y; leaves the input of the next GEMM behind
    gate_up       (adaRMS) gate and up projection -> GeGLU
    residual_gemm down projection: as above

adaRMS without a kernel of its own: with r = 1/rms(x), ``(x r (1+s) + b) W = r (x (1+s)) W + b W``.
A kernel that writes x also writes the mirror ``x (1+s)`` (FP8 or BF16) and, per tile of columns,
the row sums of x*x; the next GEMM multiplies its result by r and adds ``b W``, which is a table
(modulation.py). Sums of squares are partial sums that the reader adds in a fixed order: no
atomics, so that replays are equal bit for bit.

The modulation is looked up per row (`frozen`): rows below it belong to a clean prefix and use the
table's last entry, time 0 (training-time RTC, arXiv 2512.05964), the others that of the step.

Each kernel asks for its slice of the weights and loads what its epilogue needs (scales, biases,
gates, angles) before it waits for the kernel in front (programmatic dependent launch). Above the
wait only constants and finished prefix keys may be read; below it, everything is issued at once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pi05_ros.backends.cuda.triton.primitives import (
    gelu_tanh,
    pdl_trigger,
    pdl_wait,
    store_quantized,
)


@triton.jit
def _prefetch_rows(
    w_ptr, ROWS: tl.constexpr, K: tl.constexpr, SLICE: tl.constexpr, LINE: tl.constexpr
):
    """Ask L2 for ``[ROWS, SLICE]`` at w_ptr, rows K apart: one request per 128-byte line.

    Widths that are no power of two (small models) ask for the last line several times.
    """
    PER_ROW: tl.constexpr = triton.cdiv(SLICE, LINE)
    COUNT: tl.constexpr = ROWS * PER_ROW
    lines = tl.arange(0, triton.next_power_of_2(COUNT))
    if triton.next_power_of_2(COUNT) != COUNT:
        lines = tl.minimum(lines, COUNT - 1)
    pointers = w_ptr + (lines // PER_ROW) * K + (lines % PER_ROW) * LINE
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [pointers],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def _before_wait(
    w_ptr,
    BN: tl.constexpr,
    K: tl.constexpr,
    SLICE: tl.constexpr,
    EARLY: tl.constexpr,
    PDL: tl.constexpr,
):
    """Ask for this program's weights while the kernel in front still runs."""
    if PDL:
        if EARLY:
            pdl_trigger(PDL)
        ITEM: tl.constexpr = w_ptr.dtype.element_ty.primitive_bitwidth // 8
        _prefetch_rows(w_ptr, BN, K, SLICE, 128 // ITEM)


@triton.jit
def _wait(EARLY: tl.constexpr, PDL: tl.constexpr):
    pdl_wait(PDL)
    if not EARLY:
        pdl_trigger(PDL)


@triton.jit
def _tile_gemm(
    a_ptr,
    w_ptr,
    n0,
    rows,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    K: tl.constexpr,
    SLICE: tl.constexpr,
    STAGES: tl.constexpr,
):
    """``a[:rows] @ w[n0:n0+BN].T`` over SLICE of the K columns, in FP32, ``[BM, BN]``.

    8-bit weights against a 16-bit `a` (W8A16) become 16-bit here, which is exact. int8 against
    int8 is summed in INT32.
    """
    SUM: tl.constexpr = tl.int32 if a_ptr.dtype.element_ty == tl.int8 else tl.float32
    m = tl.arange(0, BM)
    n = n0 + tl.arange(0, BN)
    k = tl.arange(0, BK)
    a_ptrs = a_ptr + m[:, None] * K + k[None, :]
    w_ptrs = w_ptr + n[None, :] * K + k[:, None]
    live = m[:, None] < rows
    acc = tl.zeros((BM, BN), dtype=SUM)
    for i in tl.range(0, SLICE, BK, num_stages=STAGES):
        a = tl.load(a_ptrs + i, mask=live, other=0.0)
        w = tl.load(w_ptrs + i).to(a_ptr.dtype.element_ty)
        acc = tl.dot(a, w, acc, out_dtype=SUM)
    return acc.to(tl.float32)


@triton.jit
def _row_sums(ss_ptr, BM: tl.constexpr, PARTS: tl.constexpr):
    """Partial sums of squares ``[PARTS, BM]``."""
    p = tl.arange(0, triton.next_power_of_2(PARTS))
    m = tl.arange(0, BM)
    return tl.load(ss_ptr + p[:, None] * BM + m[None, :], mask=(p < PARTS)[:, None], other=0.0)


@triton.jit
def _normed(acc, sums, scale, bias, D: tl.constexpr):
    """Norm behind the product: ``acc * r * scale + bias``, r from the sums of squares."""
    r = tl.rsqrt(tl.sum(sums, axis=0) / D + 1e-6)
    return acc * r[:, None] * scale[None, :] + bias


@triton.jit
def _by_row(table, n, stride, step, steps, frozen, BM: tl.constexpr):
    """Table columns `n` for each action row ``[BM, BN]``: of `step`, or time 0 if frozen."""
    now = tl.load(table + step * stride + n)
    clean = tl.load(table + steps * stride + n)
    m = tl.arange(0, BM)
    return tl.where(m[:, None] < frozen, clean[None, :], now[None, :])


@triton.jit(do_not_specialize=["step", "steps", "horizon"])
def qkv_rope(
    a_ptr,
    w_ptr,
    w_scale_ptr,
    a_scale_ptr,
    ss_ptr,
    bias_ptr,
    bias_stride,
    frozen_ptr,
    cos_ptr,
    sin_ptr,
    length_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    step,
    steps,
    horizon,
    q_scale,
    D: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PARTS: tl.constexpr,
    STAGES: tl.constexpr,
    EARLY: tl.constexpr,
    PDL: tl.constexpr,
):
    """q, k, v of the action rows, rotated; k and v go to the rows after the prefix in the cache.

    Weight rows are packed so that the two halves of a rotated pair are neighbors (weights.py).
    Program: BN packed columns = BN/2 pairs of one head (q heads, then k, then v).
    """
    HALF: tl.constexpr = HEAD_DIM // 2
    PAIRS: tl.constexpr = BN // 2
    n0 = tl.program_id(0) * BN
    _before_wait(w_ptr + n0 * D, BN, D, D, EARLY, PDL)
    m = tl.arange(0, BM)
    n = n0 + tl.arange(0, BN)
    head = n0 // HEAD_DIM
    pair = (n0 % HEAD_DIM) // 2 + tl.arange(0, PAIRS)
    scale = tl.load(w_scale_ptr + n) * tl.load(a_scale_ptr)
    bias = _by_row(bias_ptr, n, bias_stride, step, steps, tl.load(frozen_ptr), BM)
    length = tl.load(length_ptr)
    live = m[:, None] < horizon
    turned = live & (head <= HEADS)  # q heads and k are rotated, v is not
    angle = (length + m)[:, None] * HALF + pair[None, :]
    cos = tl.load(cos_ptr + angle, mask=turned, other=1.0)
    sin = tl.load(sin_ptr + angle, mask=turned, other=0.0)
    _wait(EARLY, PDL)

    sums = _row_sums(ss_ptr, BM, PARTS)
    acc = _tile_gemm(a_ptr, w_ptr, n0, horizon, BM, BN, BK, D, D, STAGES)
    acc = _normed(acc, sums, scale, bias, D)
    first, second = tl.split(tl.reshape(acc, (BM, PAIRS, 2)))
    rotated = first * cos - second * sin
    second = second * cos + first * sin
    first = rotated
    if head < HEADS:
        out = q_ptr + (m * HEADS + head)[:, None] * HEAD_DIM + pair[None, :]
        first = first * q_scale
        second = second * q_scale
    elif head == HEADS:
        out = k_ptr + (length + m)[:, None] * HEAD_DIM + pair[None, :]
    else:
        out = v_ptr + (length + m)[:, None] * HEAD_DIM + pair[None, :]
    tl.store(out, first.to(q_ptr.dtype.element_ty), mask=live)
    tl.store(out + HALF, second.to(q_ptr.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=["step", "steps", "horizon"])
def gate_up(
    a_ptr,
    w_ptr,
    w_scale_ptr,
    a_scale_ptr,
    ss_ptr,
    bias_ptr,
    bias_stride,
    frozen_ptr,
    out_ptr,
    out_scale_ptr,
    amax_ptr,
    step,
    steps,
    horizon,
    D: tl.constexpr,
    F: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PARTS: tl.constexpr,
    STAGES: tl.constexpr,
    EARLY: tl.constexpr,
    PDL: tl.constexpr,
    MONITOR: tl.constexpr,
):
    """``gelu(gate) * up`` of the action rows -> ``[BM, F]``; gate and up rows interleaved in w."""
    n0 = tl.program_id(0) * BN
    _before_wait(w_ptr + n0 * D, BN, D, D, EARLY, PDL)
    m = tl.arange(0, BM)
    n = n0 + tl.arange(0, BN)
    scale = tl.load(w_scale_ptr + n) * tl.load(a_scale_ptr)
    bias = _by_row(bias_ptr, n, bias_stride, step, steps, tl.load(frozen_ptr), BM)
    out_scale = tl.load(out_scale_ptr)
    _wait(EARLY, PDL)

    sums = _row_sums(ss_ptr, BM, PARTS)
    acc = _tile_gemm(a_ptr, w_ptr, n0, horizon, BM, BN, BK, D, D, STAGES)
    acc = _normed(acc, sums, scale, bias, D)
    gate, up = tl.split(tl.reshape(acc, (BM, BN // 2, 2)))
    hidden = gelu_tanh(gate) * up
    column = n0 // 2 + tl.arange(0, BN // 2)
    pointers = out_ptr + m[:, None] * F + column[None, :]
    live = m[:, None] < horizon
    store_quantized(pointers, hidden, live, out_scale, amax_ptr, MONITOR)


@triton.jit(do_not_specialize=["step", "steps", "horizon"])
def residual_gemm(
    a_ptr,
    w_ptr,
    w_scale_ptr,
    a_scale_ptr,
    gate_ptr,
    next_scale_ptr,
    mod_stride,
    frozen_ptr,
    x_ptr,
    mirror_ptr,
    mirror_scale_ptr,
    ss_ptr,
    part_ptr,
    arrived_ptr,
    amax_ptr,
    step,
    steps,
    horizon,
    K: tl.constexpr,
    N: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    SPLIT: tl.constexpr,
    STAGES: tl.constexpr,
    EARLY: tl.constexpr,
    PDL: tl.constexpr,
    MONITOR: tl.constexpr,
):
    """``x += gate * (a @ w.T)``; then the mirror ``x (1+s)`` of the next norm, and row sums.

    x float32 ``[BM, N]``; mirror ``[BM, N]``; ss float32 ``[N/BN, BM]``, this program's row.
    SPLIT > 1: K is divided among so many programs; each leaves its part ``[BM, BN]`` in memory and
    the one that arrives last adds them, always in the same order (so replays stay equal), and goes
    on. It also puts its counter back to zero for the next launch.
    """
    SLICE: tl.constexpr = K // SPLIT
    pid = tl.program_id(0)
    split = tl.program_id(1)
    n0 = pid * BN
    _before_wait(w_ptr + n0 * K + split * SLICE, BN, K, SLICE, EARLY, PDL)
    m = tl.arange(0, BM)
    n = n0 + tl.arange(0, BN)
    live = (m < horizon)[:, None]
    frozen = tl.load(frozen_ptr)
    scale = tl.load(w_scale_ptr + n) * tl.load(a_scale_ptr)
    gate = _by_row(gate_ptr, n, mod_stride, step, steps, frozen, BM) * scale[None, :]
    next_scale = _by_row(next_scale_ptr, n, mod_stride, step, steps, frozen, BM)
    offset = m[:, None] * N + n[None, :]
    mirror_scale = tl.load(mirror_scale_ptr)
    _wait(EARLY, PDL)

    x = tl.load(x_ptr + offset, mask=live, other=0.0)
    first = split * SLICE
    acc = _tile_gemm(a_ptr + first, w_ptr + first, n0, horizon, BM, BN, BK, K, SLICE, STAGES)
    last = True
    if SPLIT > 1:
        tile = m[:, None] * BN + tl.arange(0, BN)[None, :]
        tl.store(part_ptr + (pid * SPLIT + split) * BM * BN + tile, acc)
        tl.debug_barrier()
        last = tl.atomic_add(arrived_ptr + pid, 1, sem="acq_rel") == SPLIT - 1
    if last:
        if SPLIT > 1:
            acc = tl.zeros((BM, BN), dtype=tl.float32)
            for part in tl.static_range(SPLIT):
                pointers = part_ptr + (pid * SPLIT + part) * BM * BN + tile
                acc += tl.load(pointers, cache_modifier=".cg")
            tl.store(arrived_ptr + pid, 0)
        x = tl.where(live, x + gate * acc, 0.0)
        mirror = x * next_scale
        store_quantized(mirror_ptr + offset, mirror, live, mirror_scale, amax_ptr, MONITOR)
        tl.store(x_ptr + offset, x, mask=live)
        tl.store(ss_ptr + pid * BM + m, tl.sum(x * x, axis=1))
