"""GEMMs with hundreds of rows whose epilogue saves a pass over memory.

cuBLASLt is hard to beat on the product itself; these kernels win where what follows is large: the
gate-up product of the prefix is ``[T, 32768]``, twice the L2 cache at three views, and only
``gelu(gate) * up`` of it, in FP8, is ever needed. Operands come through the bulk copy engine
(tensor descriptors), which also cuts off rows behind the end.
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


@triton.jit(do_not_specialize=["rows"])
def geglu_gemm(
    a_desc,
    w_desc,
    w_scale_ptr,
    a_scale_ptr,
    out_ptr,
    out_scale_ptr,
    amax_ptr,
    rows,
    K: tl.constexpr,
    F: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
    STAGES: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    PERSISTENT: tl.constexpr,
    PROGRAMS: tl.constexpr,
    WS: tl.constexpr,
    PDL: tl.constexpr,
    MONITOR: tl.constexpr,
):
    """``gelu(gate) * up`` -> out ``[rows, F]``; w ``[2 F, K]`` has gate and up rows alternating.

    Tiles are ordered so that all row tiles of GROUP column tiles run together: their weights are
    then read from memory once. PERSISTENT: PROGRAMS programs walk over all tiles.
    """
    out_scale = tl.load(out_scale_ptr)
    a_scale = tl.load(a_scale_ptr)
    pdl_wait(PDL)
    pdl_trigger(PDL)
    tiles_m = tl.cdiv(rows, BM)
    TILES_N: tl.constexpr = 2 * F // BN
    total = tiles_m * TILES_N
    if PERSISTENT:
        step = PROGRAMS
    else:
        step = total
    for tile in tl.range(tl.program_id(0), total, step, flatten=PERSISTENT, warp_specialize=WS):
        group = tile // (GROUP * tiles_m)
        inside = tile % (GROUP * tiles_m)
        m0 = (inside // GROUP) * BM
        n0 = (group * GROUP + inside % GROUP) * BN
        acc = tl.zeros((BM, BN), dtype=tl.float32)
        for k in tl.range(0, K, BK, num_stages=STAGES):
            a = a_desc.load([m0, k])
            w = w_desc.load([n0, k])
            acc = tl.dot(a, w.T, acc)
        if HAS_SCALE:
            n = n0 + tl.arange(0, BN)
            acc *= (a_scale * tl.load(w_scale_ptr + n))[None, :]
        gate, up = tl.split(tl.reshape(acc, (BM, BN // 2, 2)))
        hidden = gelu_tanh(gate) * up
        m = m0 + tl.arange(0, BM)
        f = n0 // 2 + tl.arange(0, BN // 2)
        pointers = out_ptr + m[:, None] * F + f[None, :]
        store_quantized(pointers, hidden, m[:, None] < rows, out_scale, amax_ptr, MONITOR)


@triton.jit(do_not_specialize=["rows"])
def split_gemm(
    a_desc,
    w_desc,
    part_ptr,
    rows,
    keys_per_split,
    N: tl.constexpr,
    K: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One slice of K of ``a @ w.T`` -> parts ``[splits, rows, N]``; the reader adds the parts.

    For tall K and few tiles (SigLIP's fc2 at two views has 36 tiles for 132 multiprocessors).
    """
    m0 = tl.program_id(0) * BM
    n0 = tl.program_id(1) * BN
    split = tl.program_id(2)
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    start = split * keys_per_split
    for k in tl.range(start, tl.minimum(start + keys_per_split, K), BK, num_stages=STAGES):
        acc = tl.dot(a_desc.load([m0, k]), w_desc.load([n0, k]).T, acc)
    m = m0 + tl.arange(0, BM)
    n = n0 + tl.arange(0, BN)
    pointers = part_ptr + (split * rows + m)[:, None] * N + n[None, :]
    live = (m < rows)[:, None] & (n < N)[None, :]
    tl.store(pointers, acc.to(part_ptr.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=["rows"])
def int8_product(
    a_ptr,
    w_ptr,
    a_scale_ptr,
    out_ptr,
    rows,
    N: tl.constexpr,
    K: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """``a_scale * (a @ w.T)`` -> out ``[rows, N]``; a ``[rows, K]`` and w ``[N, K]`` int8.

    The sum is exact: 127 * 127 * K stays below 2^31 up to K = 133,000.
    """
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    a_ptrs = a_ptr + m[:, None] * K + k[None, :]
    w_ptrs = w_ptr + n[None, :] * K + k[:, None]
    a_scale = tl.load(a_scale_ptr)
    pdl_wait(PDL)
    pdl_trigger(PDL)
    acc = tl.zeros((BM, BN), dtype=tl.int32)
    for i in tl.range(0, K, BK, num_stages=STAGES):
        inside = i + k < K
        a = tl.load(a_ptrs + i, mask=(m < rows)[:, None] & inside[None, :], other=0)
        w = tl.load(w_ptrs + i, mask=(n < N)[None, :] & inside[:, None], other=0)
        acc = tl.dot(a, w, acc, out_dtype=tl.int32)
    pointers = out_ptr + m[:, None] * N + n[None, :]
    live = (m < rows)[:, None] & (n < N)[None, :]
    tl.store(pointers, (acc.to(tl.float32) * a_scale).to(out_ptr.dtype.element_ty), mask=live)
