"""Camera frame -> patches: the antialiased resize of Pillow, normalization, im2col.

Pillow resizes 8-bit images in fixed point: horizontal pass, rounding to 8 bits, vertical pass,
rounding to 8 bits, with filter weights of 22 fractional bits. Doing the same integer arithmetic
here makes the result equal to the host's, pixel for pixel. The tables come from resize.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

PRECISION = tl.constexpr(22)  # fractional bits of the filter weights


@triton.jit
def _round_to_byte(total):
    half: tl.constexpr = 1 << (22 - 1)
    value = (total + half) >> PRECISION
    return tl.minimum(tl.maximum(value, 0), 255)


@triton.jit
def _clear_padding(
    out_ptr, y, PATCH: tl.constexpr, GRID: tl.constexpr, ROW: tl.constexpr, BLOCK: tl.constexpr
):
    """Zero the columns behind 3 * PATCH^2 of one row of patches (the GEMM wants ROW columns)."""
    USED: tl.constexpr = 3 * PATCH * PATCH
    if (ROW > USED) and (y % PATCH == 0):
        i = tl.arange(0, BLOCK)
        token = (y // PATCH) * GRID + i // (ROW - USED)
        zero = tl.zeros((BLOCK,), dtype=out_ptr.dtype.element_ty)
        tl.store(out_ptr + token * ROW + USED + i % (ROW - USED), zero, i < GRID * (ROW - USED))


@triton.jit
def resize_rows(
    frame_ptr,
    first_ptr,
    weight_ptr,
    out_ptr,
    width,
    new_width,
    TAPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Horizontal pass: uint8 ``[Hc, width, 3]`` -> uint8 ``[Hc, new_width, 3]``."""
    y = tl.program_id(0)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = i < new_width * 3
    x = i // 3
    channel = i % 3
    first = tl.load(first_ptr + x, mask=live, other=0)
    total = tl.zeros((BLOCK,), dtype=tl.int32)
    for tap in range(TAPS):
        weight = tl.load(weight_ptr + x * TAPS + tap, mask=live, other=0)
        source = tl.minimum(first + tap, width - 1)
        pixel = tl.load(frame_ptr + (y * width + source) * 3 + channel, mask=live, other=0)
        total += pixel.to(tl.int32) * weight
    tl.store(out_ptr + y * new_width * 3 + i, _round_to_byte(total).to(tl.uint8), mask=live)


@triton.jit
def resize_columns_to_patches(
    rows_ptr,
    first_ptr,
    weight_ptr,
    patches_ptr,
    height,
    new_width,
    new_height,
    top,
    left,
    SIZE: tl.constexpr,
    PATCH: tl.constexpr,
    GRID: tl.constexpr,
    ROW: tl.constexpr,
    TAPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Vertical pass, black border, to [-1, 1], im2col: one line of the SIZE x SIZE image.

    patches ``[GRID * GRID, ROW]``, columns ordered (channel, y, x) as the convolution's weight.
    """
    y = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    live = i < SIZE * 3
    x = i // 3
    channel = i % 3
    inside = live & (x >= left) & (x < left + new_width) & (y >= top) & (y < top + new_height)
    line = tl.minimum(tl.maximum(y - top, 0), new_height - 1)
    first = tl.load(first_ptr + line)
    total = tl.zeros((BLOCK,), dtype=tl.int32)
    for tap in range(TAPS):
        weight = tl.load(weight_ptr + line * TAPS + tap)
        source = tl.minimum(first + tap, height - 1)
        offset = (source * new_width + x - left) * 3 + channel
        total += tl.load(rows_ptr + offset, mask=inside, other=0).to(tl.int32) * weight
    value = tl.where(inside, _round_to_byte(total), 0).to(tl.float32) / 127.5 - 1.0
    column = channel * PATCH * PATCH + (y % PATCH) * PATCH + x % PATCH
    out = patches_ptr + ((y // PATCH) * GRID + x // PATCH) * ROW + column
    tl.store(out, value.to(patches_ptr.dtype.element_ty), mask=live)
    _clear_padding(patches_ptr, y, PATCH, GRID, ROW, 256)


@triton.jit
def pixels_to_patches(
    image_ptr,
    patches_ptr,
    SIZE: tl.constexpr,
    PATCH: tl.constexpr,
    GRID: tl.constexpr,
    ROW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """im2col of prepared images: float32 ``[V, 3, SIZE, SIZE]`` -> ``[V * GRID * GRID, ROW]``."""
    y = tl.program_id(0)
    plane = tl.program_id(1)
    view = plane // 3
    channel = plane % 3
    x = tl.arange(0, BLOCK)
    live = x < SIZE
    value = tl.load(image_ptr + (plane * SIZE + y) * SIZE + x, mask=live, other=0.0)
    column = channel * PATCH * PATCH + (y % PATCH) * PATCH + x % PATCH
    token = view * GRID * GRID + (y // PATCH) * GRID + x // PATCH
    out = patches_ptr + token * ROW + column
    tl.store(out, value.to(patches_ptr.dtype.element_ty), mask=live)
    if channel == 0:
        _clear_padding(patches_ptr + view * GRID * GRID * ROW, y, PATCH, GRID, ROW, 256)


@triton.jit
def normal_noise(seed_ptr, out_ptr, count, BLOCK: tl.constexpr):
    """Standard normal noise from a device-side seed (Philox), float32 ``[count]``."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + i, tl.randn(tl.load(seed_ptr), i), mask=i < count)
