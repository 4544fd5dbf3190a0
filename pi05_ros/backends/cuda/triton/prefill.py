"""Kernels between the GEMMs of vision and prefill: norms, RoPE, GeGLU, embedding gather.

The GEMMs of these stages have hundreds of rows and run at full rate in cuBLASLt; what is left
between them is memory traffic, so each kernel here does everything that can be done in one pass.
An FP8 GEMM is called with a per-tensor scale only (the fast path of cuBLASLt): the scale per
output channel is applied by the kernel that reads its result, which touches every element anyway.
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
def residual_rms(
    x_ptr,
    y_ptr,
    y_scale_ptr,
    y_factor_ptr,
    sum_ptr,
    out_ptr,
    scale_ptr,
    amax_ptr,
    part_stride,
    image_rows,
    D: tl.constexpr,
    DP: tl.constexpr,
    HAS_Y: tl.constexpr,
    HAS_Y_SCALE: tl.constexpr,
    PARTS: tl.constexpr,
    IMAGE: tl.constexpr,
    PDL: tl.constexpr,
    MONITOR: tl.constexpr,
):
    """``sum = x + y * y_scale`` (BF16; may be x itself), out = sum / rms(sum); a row per program.

    Without HAS_Y nothing is added or stored: layer 0 reads the embeddings, which stay intact so
    that they can be reused (vision and prompt cache). The norm's weight (1 + w) lives in the GEMM
    that follows (weights.py). DP: D rounded up to a power of two. PARTS > 0: y is the sum of that
    many slices, part_stride apart, times the scale in y_factor too (products of hopper/prefill.cu
    carry none). IMAGE: out has the layout of headers/layout.cuh in chunks of image_rows rows.
    """
    row = tl.program_id(0)
    d = tl.arange(0, DP)
    live = d < D
    offset = row * D + d
    out_scale = tl.load(scale_ptr)
    if IMAGE:
        to = (d // 128 * image_rows + row) * 128 + ((d % 128) ^ (row % 8 * 16))
    else:
        to = offset
    # Constants above the wait: they come from memory, what is behind it mostly from L2.
    factor = 1.0
    if HAS_Y:
        if PARTS:
            factor = tl.load(y_factor_ptr)
        if HAS_Y_SCALE:
            factor *= tl.load(y_scale_ptr + d, mask=live, other=0.0)
    pdl_wait(PDL)
    pdl_trigger(PDL)
    x = tl.load(x_ptr + offset, mask=live, other=0.0).to(tl.float32)
    if HAS_Y:
        y = tl.load(y_ptr + offset, mask=live, other=0.0).to(tl.float32)
        for part in tl.static_range(1, PARTS):
            y += tl.load(y_ptr + part * part_stride + offset, mask=live, other=0.0).to(tl.float32)
        if PARTS > 0 or HAS_Y_SCALE:
            y *= factor
        stored = (x + y).to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + offset, stored, mask=live)
        x = stored.to(tl.float32)
    r = tl.rsqrt(tl.sum(x * x, axis=0) / D + 1e-6)
    store_quantized(out_ptr + to, x * r, live, out_scale, amax_ptr, MONITOR)


@triton.jit
def residual_layernorm(
    x_ptr,
    y_ptr,
    y_scale_ptr,
    y_bias_ptr,
    pos_ptr,
    w_ptr,
    b_ptr,
    out_ptr,
    scale_ptr,
    amax_ptr,
    tokens,
    part_stride,
    D: tl.constexpr,
    DP: tl.constexpr,
    INPUT: tl.constexpr,
    PARTS: tl.constexpr,
    HAS_Y_SCALE: tl.constexpr,
    HAS_Y_BIAS: tl.constexpr,
    PDL: tl.constexpr,
    MONITOR: tl.constexpr,
):
    """SigLIP: ``x += y`` and LayerNorm (eps 1e-6), one row per program.

    INPUT: x = y + pos[row % tokens] (the patch embedding) instead. PARTS: y is the sum of that
    many slices, part_stride apart. HAS_Y_SCALE: y comes from an FP8 GEMM, so its channel scale is
    still missing; HAS_Y_BIAS: so is the bias.
    """
    row = tl.program_id(0)
    d = tl.arange(0, DP)
    live = d < D
    offset = row * D + d
    out_scale = tl.load(scale_ptr)
    # Constants above the wait: they come from memory, what is behind it mostly from L2.
    weight = tl.load(w_ptr + d, mask=live, other=0.0)
    shift = tl.load(b_ptr + d, mask=live, other=0.0)
    if HAS_Y_SCALE:
        y_scale = tl.load(y_scale_ptr + d, mask=live, other=0.0)
    if HAS_Y_BIAS:
        y_bias = tl.load(y_bias_ptr + d, mask=live, other=0.0).to(tl.float32)
    pdl_wait(PDL)
    pdl_trigger(PDL)
    y = tl.load(y_ptr + offset, mask=live, other=0.0).to(tl.float32)
    for part in tl.static_range(1, PARTS):
        y += tl.load(y_ptr + part * part_stride + offset, mask=live, other=0.0).to(tl.float32)
    if HAS_Y_SCALE:
        y = y * y_scale
    if HAS_Y_BIAS:
        y += y_bias
    if INPUT:
        x = y + tl.load(pos_ptr + (row % tokens) * D + d, mask=live, other=0.0)
    else:
        x = y + tl.load(x_ptr + offset, mask=live, other=0.0).to(tl.float32)
    stored = x.to(x_ptr.dtype.element_ty)
    tl.store(x_ptr + offset, stored, mask=live)
    x = stored.to(tl.float32)
    mean = tl.sum(x, axis=0) / D
    centered = tl.where(live, x - mean, 0.0)
    r = tl.rsqrt(tl.sum(centered * centered, axis=0) / D + 1e-6)
    out = centered * r * weight + shift
    store_quantized(out_ptr + offset, out, live, out_scale, amax_ptr, MONITOR)


@triton.jit
def rope_to_cache(
    qkv_ptr,
    w_scale_ptr,
    cos_ptr,
    sin_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    q_scale,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    ONLY_KV: tl.constexpr,
    PDL: tl.constexpr,
):
    """Split a row of the QKV GEMM: rotate q (times q_scale) and k, write k and v to the cache.

    qkv ``[T, (heads + 2) * head_dim]`` (ONLY_KV: ``[T, 2 * head_dim]``); position = row, because
    images come first, all of them valid, and the prompt follows without gaps.
    """
    HALF: tl.constexpr = HEAD_DIM // 2
    FIRST_KV: tl.constexpr = 0 if ONLY_KV else HEADS
    row = tl.program_id(0)
    d = tl.arange(0, HALF)
    cos = tl.load(cos_ptr + row * HALF + d)[None, :]
    sin = tl.load(sin_ptr + row * HALF + d)[None, :]
    kv = tl.arange(0, 2)[:, None]  # k, v
    kv_columns = (FIRST_KV + kv) * HEAD_DIM + d[None, :]
    heads = tl.arange(0, HEADS)[:, None]
    q_columns = heads * HEAD_DIM + d[None, :]
    kv1, kv2, q1, q2 = 1.0, 1.0, 1.0, 1.0
    if HAS_SCALE:
        kv1 = tl.load(w_scale_ptr + kv_columns)
        kv2 = tl.load(w_scale_ptr + kv_columns + HALF)
        if not ONLY_KV:
            q1 = tl.load(w_scale_ptr + q_columns) * q_scale
            q2 = tl.load(w_scale_ptr + q_columns + HALF) * q_scale
    else:
        q1 = q_scale
        q2 = q_scale
    pdl_wait(PDL)
    pdl_trigger(PDL)
    base = qkv_ptr + row * (FIRST_KV + 2) * HEAD_DIM
    x1 = tl.load(base + kv_columns).to(tl.float32) * kv1
    x2 = tl.load(base + kv_columns + HALF).to(tl.float32) * kv2
    is_k = kv == 0
    y1 = tl.where(is_k, x1 * cos - x2 * sin, x1)
    y2 = tl.where(is_k, x2 * cos + x1 * sin, x2)
    target = row * HEAD_DIM + d[None, :]
    out = tl.where(is_k, k_ptr + target, v_ptr + target)
    tl.store(out, y1.to(k_ptr.dtype.element_ty))
    tl.store(out + HALF, y2.to(k_ptr.dtype.element_ty))
    if not ONLY_KV:
        x1 = tl.load(base + q_columns).to(tl.float32) * q1
        x2 = tl.load(base + q_columns + HALF).to(tl.float32) * q2
        out = q_ptr + (row * HEADS + heads) * HEAD_DIM + d[None, :]
        tl.store(out, (x1 * cos - x2 * sin).to(q_ptr.dtype.element_ty))
        tl.store(out + HALF, (x2 * cos + x1 * sin).to(q_ptr.dtype.element_ty))


@triton.jit
def geglu(
    both_ptr,
    gate_scale_ptr,
    up_scale_ptr,
    out_ptr,
    scale_ptr,
    amax_ptr,
    F: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    PDL: tl.constexpr,
    MONITOR: tl.constexpr,
):
    """``gelu(gate) * up`` of ``[T, 2 F]`` (gate columns first) -> ``[T, F]``."""
    row = tl.program_id(0)
    f = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = f < F
    out_scale = tl.load(scale_ptr)
    pdl_wait(PDL)
    pdl_trigger(PDL)
    base = both_ptr + row.to(tl.int64) * 2 * F
    gate = tl.load(base + f, mask=live, other=0.0).to(tl.float32)
    up = tl.load(base + F + f, mask=live, other=0.0).to(tl.float32)
    if HAS_SCALE:
        gate *= tl.load(gate_scale_ptr + f, mask=live, other=0.0)
        up *= tl.load(up_scale_ptr + f, mask=live, other=0.0)
    hidden = gelu_tanh(gate) * up
    store_quantized(out_ptr + row * F + f, hidden, live, out_scale, amax_ptr, MONITOR)


@triton.jit
def _scaled_product(y_ptr, scale_ptr, bias_ptr, n, live):
    """Columns n of a row of an FP8 product, with its channel scale and bias: FP32."""
    y = tl.load(y_ptr + n, mask=live, other=0.0).to(tl.float32)
    y = y * tl.load(scale_ptr + n, mask=live, other=0.0)
    return y + tl.load(bias_ptr + n, mask=live, other=0.0)


@triton.jit
def gelu_quantize(
    y_ptr,
    y_scale_ptr,
    y_bias_ptr,
    out_ptr,
    scale_ptr,
    amax_ptr,
    F: tl.constexpr,
    BLOCK: tl.constexpr,
    MONITOR: tl.constexpr,
):
    """SigLIP fc1 in FP8: ``gelu(y * y_scale + bias)`` -> ``[rows, F]`` quantized for fc2."""
    row = tl.program_id(0)
    f = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = f < F
    out_scale = tl.load(scale_ptr)
    y = _scaled_product(y_ptr + row * F, y_scale_ptr, y_bias_ptr, f, live)
    store_quantized(out_ptr + row * F + f, gelu_tanh(y), live, out_scale, amax_ptr, MONITOR)


@triton.jit
def channel_scale_bias(y_ptr, y_scale_ptr, y_bias_ptr, N: tl.constexpr, BLOCK: tl.constexpr):
    """In place ``y = y * y_scale + bias`` of ``[rows, N]``: SigLIP q, k, v after an FP8 GEMM."""
    row = tl.program_id(0)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = n < N
    y = _scaled_product(y_ptr + row * N, y_scale_ptr, y_bias_ptr, n, live)
    tl.store(y_ptr + row * N + n, y.to(y_ptr.dtype.element_ty), mask=live)


@triton.jit
def embed_tokens(
    table_ptr,
    token_ptr,
    length_ptr,
    x_ptr,
    image_rows,
    scale,
    VOCAB: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
):
    """Prompt rows of the prefix: ``x[image_rows + i] = E[token_i] * sqrt(D)``.

    Rows at or behind the real length (padding of the bucket) become zero: nothing ever reads their
    keys, but they must stay finite.
    """
    i = tl.program_id(0)
    d = tl.arange(0, DP)
    live = image_rows + i < tl.load(length_ptr)
    token = tl.load(token_ptr + i).to(tl.int64)
    token = tl.minimum(tl.maximum(token, 0), VOCAB - 1)  # never read outside the table
    e = tl.load(table_ptr + token * D + d, mask=live & (d < D), other=0.0).to(tl.float32)
    out = x_ptr + (image_rows + i) * D + d
    tl.store(out, (e * scale).to(x_ptr.dtype.element_ty), mask=d < D)
