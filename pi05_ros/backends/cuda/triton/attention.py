"""Fused attention without masks: queries of all heads against one shared K/V head.

With one K/V head (multi-query attention) the heads are just more query rows: q
``[M * heads, 256]``. The number of valid keys is a device integer, so one graph serves every
prompt length of a bucket:
keys behind it are never loaded and get no weight. `attend` may split the keys over programs;
`combine` joins the parts and writes the input of the output projection in its own type.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pi05_ros.backends.cuda.triton.primitives import pdl_trigger, pdl_wait, store_quantized


@triton.jit(do_not_specialize=["rows", "extra", "keys_per_split"])
def attend(
    q_ptr,
    k_ptr,
    v_ptr,
    length_ptr,
    out_ptr,
    lse_ptr,
    scale_ptr,
    amax_ptr,
    rows,
    extra,
    keys_per_split,
    split_stride,
    HEAD_DIM: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    STAGES: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    DIRECT: tl.constexpr,
    PDL: tl.constexpr,
    MONITOR: tl.constexpr,
):
    """Softmax(q k') v over one split of the keys; q carries 1/sqrt(d) * log2(e).

    q ``[rows, HEAD_DIM]``; k, v ``[>= length + extra, HEAD_DIM]``; out
    ``[splits, rows, HEAD_DIM]`` normalized within the split, lse (base 2) ``[splits, rows]``.
    Keys [0, length) are the prefix, final before this kernel was launched; [length, length +
    extra) come from the kernel in front. ONE_BLOCK: a split is one block of BN keys and the
    prefix part loads above the wait.
    DIRECT: there is one split and out is the (quantized) input of the output projection.
    """
    tile = tl.program_id(0)
    split = tl.program_id(1)
    r = tile * BM + tl.arange(0, BM)
    d = tl.arange(0, HEAD_DIM)
    length = tl.load(length_ptr)
    scale = tl.load(scale_ptr)
    total = length + extra
    start = split * keys_per_split
    q_ptrs = q_ptr + r[:, None] * HEAD_DIM + d[None, :]
    out_offset = split * split_stride + r
    if ONE_BLOCK:
        n = start + tl.arange(0, BN)
        offset = n[:, None] * HEAD_DIM + d[None, :]
        prefix = (n < length)[:, None]
        k = tl.load(k_ptr + offset, mask=prefix, other=0.0)
        v = tl.load(v_ptr + offset, mask=prefix, other=0.0)
        pdl_wait(PDL)
        pdl_trigger(PDL)
        q = tl.load(q_ptrs, mask=r[:, None] < rows, other=0.0)
        if start + BN > length:
            tail = ((n >= length) & (n < total))[:, None]
            k += tl.load(k_ptr + offset, mask=tail, other=0.0)
            v += tl.load(v_ptr + offset, mask=tail, other=0.0)
        s = tl.dot(q, k.T)
        s = tl.where((n < total)[None, :], s, -float("inf"))
        top = tl.maximum(tl.max(s, axis=1), -1e30)
        p = tl.exp2(s - top[:, None])
        norm = tl.sum(p, axis=1)
        acc = tl.dot(p.to(v.dtype), v)
    else:
        pdl_wait(PDL)
        pdl_trigger(PDL)
        q = tl.load(q_ptrs, mask=r[:, None] < rows, other=0.0)
        top = tl.full((BM,), -1e30, dtype=tl.float32)
        norm = tl.zeros((BM,), dtype=tl.float32)
        acc = tl.zeros((BM, HEAD_DIM), dtype=tl.float32)
        end = tl.minimum(start + keys_per_split, total)
        for n0 in tl.range(start, end, BN, num_stages=STAGES):
            n = n0 + tl.arange(0, BN)
            offset = n[:, None] * HEAD_DIM + d[None, :]
            live = (n < end)[:, None]
            k = tl.load(k_ptr + offset, mask=live, other=0.0)
            s = tl.dot(q, k.T)
            s = tl.where((n < end)[None, :], s, -float("inf"))
            higher = tl.maximum(top, tl.max(s, axis=1))
            p = tl.exp2(s - higher[:, None])
            fade = tl.exp2(top - higher)
            norm = norm * fade + tl.sum(p, axis=1)
            v = tl.load(v_ptr + offset, mask=live, other=0.0)
            acc = tl.dot(p.to(v.dtype), v, acc * fade[:, None])
            top = higher
    live_rows = r < rows
    empty = norm == 0.0
    acc = acc / tl.where(empty, 1.0, norm)[:, None]
    lse = tl.where(empty, -1e30, top + tl.log2(tl.where(empty, 1.0, norm)))
    out = out_ptr + out_offset[:, None] * HEAD_DIM + d[None, :]
    if DIRECT:
        store_quantized(out, acc, live_rows[:, None], scale, amax_ptr, MONITOR)
    else:
        tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=live_rows[:, None])
        tl.store(lse_ptr + out_offset, lse, mask=live_rows)


@triton.jit(do_not_specialize=["rows", "splits"])
def combine(
    part_ptr,
    lse_ptr,
    out_ptr,
    scale_ptr,
    amax_ptr,
    rows,
    splits,
    split_stride,
    HEAD_DIM: tl.constexpr,
    BM: tl.constexpr,
    SPLITS: tl.constexpr,
    PDL: tl.constexpr,
    MONITOR: tl.constexpr,
):
    """Join the splits of `attend`: out ``[rows, HEAD_DIM]`` in its own type (e4m3 or BF16)."""
    r = tl.program_id(0) * BM + tl.arange(0, BM)
    d = tl.arange(0, HEAD_DIM)
    s = tl.arange(0, SPLITS)
    live = r < rows
    scale = tl.load(scale_ptr)
    pdl_wait(PDL)
    pdl_trigger(PDL)
    lse = tl.load(
        lse_ptr + s[:, None] * split_stride + r[None, :],
        mask=(s < splits)[:, None] & live[None, :],
        other=-1e30,
    )
    top = tl.max(lse, axis=0)
    total = tl.sum(tl.exp2(lse - top[None, :]), axis=0)
    acc = tl.zeros((BM, HEAD_DIM), dtype=tl.float32)
    for i in tl.static_range(SPLITS):
        mask = live & (i < splits)
        weight = tl.load(lse_ptr + i * split_stride + r, mask=mask, other=-1e30)
        part = tl.load(
            part_ptr + (i * split_stride + r)[:, None] * HEAD_DIM + d[None, :],
            mask=mask[:, None],
            other=0.0,
        )
        acc += (tl.exp2(weight - top) / total)[:, None] * part.to(tl.float32)
    pointers = out_ptr + r[:, None] * HEAD_DIM + d[None, :]
    store_quantized(pointers, acc, live[:, None], scale, amax_ptr, MONITOR)


@triton.jit(do_not_specialize=["tokens"])
def attend_image(
    qkv_ptr,
    out_ptr,
    scale_ptr,
    amax_ptr,
    tokens,
    logit_scale,
    WIDTH: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    PDL: tl.constexpr,
    MONITOR: tl.constexpr,
):
    """SigLIP attention of one head within one image: qkv ``[images * tokens, 3 * WIDTH]``.

    The head dimension (72) is no power of two: it is handled as D0 + D1 columns (64 + 16, the last
    8 masked), which wastes 10 % instead of 44 % of the matrix work.
    """
    tile = tl.program_id(0)
    head = tl.program_id(1)
    image = tl.program_id(2)
    m = tile * BM + tl.arange(0, BM)
    d0 = tl.arange(0, D0)
    d1 = D0 + tl.arange(0, D1)
    base = qkv_ptr + image * tokens * 3 * WIDTH + head * HEAD_DIM
    live = m[:, None] < tokens
    scale = tl.load(scale_ptr)
    in_head = (d1 < HEAD_DIM)[None, :]
    in_head0 = (d0 < HEAD_DIM)[None, :]
    pdl_wait(PDL)
    pdl_trigger(PDL)
    q_ptrs = base + m[:, None] * 3 * WIDTH
    q0 = tl.load(q_ptrs + d0[None, :], mask=live & in_head0, other=0.0)
    q1 = tl.load(q_ptrs + d1[None, :], mask=live & in_head, other=0.0)
    top = tl.full((BM,), -1e30, dtype=tl.float32)
    norm = tl.zeros((BM,), dtype=tl.float32)
    acc0 = tl.zeros((BM, D0), dtype=tl.float32)
    acc1 = tl.zeros((BM, D1), dtype=tl.float32)
    for n0 in tl.range(0, tokens, BN, num_stages=2):
        n = n0 + tl.arange(0, BN)
        valid = n[:, None] < tokens
        k_ptrs = base + WIDTH + n[:, None] * 3 * WIDTH
        k0 = tl.load(k_ptrs + d0[None, :], mask=valid & in_head0, other=0.0)
        k1 = tl.load(k_ptrs + d1[None, :], mask=valid & in_head, other=0.0)
        s = tl.dot(q0, k0.T)
        s = tl.dot(q1, k1.T, s) * logit_scale
        s = tl.where((n < tokens)[None, :], s, -float("inf"))
        higher = tl.maximum(top, tl.max(s, axis=1))
        p = tl.exp2(s - higher[:, None])
        fade = tl.exp2(top - higher)
        norm = norm * fade + tl.sum(p, axis=1)
        v0 = tl.load(k_ptrs + WIDTH + d0[None, :], mask=valid & in_head0, other=0.0)
        v1 = tl.load(k_ptrs + WIDTH + d1[None, :], mask=valid & in_head, other=0.0)
        p16 = p.to(v0.dtype)
        acc0 = tl.dot(p16, v0, acc0 * fade[:, None])
        acc1 = tl.dot(p16, v1, acc1 * fade[:, None])
        top = higher
    out = out_ptr + (image * tokens + m)[:, None] * WIDTH + head * HEAD_DIM
    store_quantized(
        out + d0[None, :], acc0 / norm[:, None], live & in_head0, scale, amax_ptr, MONITOR
    )
    store_quantized(
        out + d1[None, :], acc1 / norm[:, None], live & in_head, scale, amax_ptr, MONITOR
    )
