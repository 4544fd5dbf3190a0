"""Layout of operands for the Hopper kernels: the swizzled image of `layout.cuh`, in PyTorch.

A weight ``[N, K]`` is kept as tiles of 64 rows, each tile as chunks of 64 x 128 bytes (C columns:
128 in e4m3, 64 in bf16), so that what one thread block needs lies together. Rows 2p and 2p + 1 of
a tile (a rotated pair, or gate and up) go to rows of the matrix instruction that a thread holds.
"""

from __future__ import annotations

import torch
from torch import Tensor

TILE = 64  # weight rows of a thread block, and most action rows
CHUNK = 128  # bytes of a row of a chunk
UNIT = 16  # bytes that the swizzle keeps together


def image_rows(rows: int) -> int:
    """Rows that the image of a prefix has, so that every division of `rows` rows finds room."""
    return -(-rows // 8) * 8 + 8 * 16


def _swizzle(chunks: Tensor) -> Tensor:
    """``[..., 64, 128]`` bytes with the units of row r permuted by r mod 8; its own inverse."""
    row = torch.arange(TILE, device=chunks.device)[:, None]
    unit = torch.arange(CHUNK // UNIT, device=chunks.device)[None, :] ^ (row % 8)  # [64, 8]
    units = chunks.unflatten(-1, (CHUNK // UNIT, UNIT))
    index = unit[..., None].expand(*units.shape)
    return units.gather(-2, index).flatten(-2)


def to_image(matrix: Tensor) -> Tensor:
    """``[R, K]``, R <= 64, to ``[K / C, 64, C]``; missing rows are zero."""
    bytes_ = matrix.contiguous().view(torch.uint8)
    rows, K = bytes_.shape
    padded = bytes_.new_zeros(TILE, K)
    padded[:rows] = bytes_
    chunks = padded.reshape(TILE, K // CHUNK, CHUNK).transpose(0, 1).contiguous()
    return _swizzle(chunks).view(matrix.dtype)


def from_image(image: Tensor, rows: int = TILE) -> Tensor:
    """Undo `to_image`: ``[K / C, 64, C]`` to ``[rows, K]``."""
    chunks = _swizzle(image.view(torch.uint8)).transpose(0, 1)
    return chunks.reshape(TILE, -1)[:rows].contiguous().view(image.dtype)


def pack_weight(weight: Tensor) -> Tensor:
    """``[N, K]`` to ``[N / 64, K / C, 64, C]``, rows in the order of the accumulators.

    Row 2 (8 w + g) + i of a tile becomes row 16 w + 8 i + g: thread 4 g + c of warp w holds both.
    """
    bytes_ = weight.contiguous().view(torch.uint8)
    N, K = bytes_.shape
    tiles = bytes_.reshape(N // TILE, 4, 8, 2, K).transpose(2, 3).reshape(-1, TILE, K)
    chunks = tiles.unflatten(-1, (K // CHUNK, CHUNK)).transpose(1, 2).contiguous()
    return _swizzle(chunks).contiguous().view(weight.dtype)


def pack_pairs(weight: Tensor) -> Tensor:
    """`pack_weight` of alternating gate and up rows ``[N, K]`` for prefill.cu; N % 256 = 0.

    Of 128 pairs pair 64 g + 2 p + i becomes pair p of tile 2 g + i: a thread has two neighbors.
    """
    pairs = weight.view(torch.uint8).unflatten(0, (-1, 2, TILE // 2, 2, 2))  # g, p, i, gate or up
    return pack_weight(pairs.transpose(2, 3).reshape(weight.shape).view(weight.dtype))


def unpack_pairs(packed: Tensor) -> Tensor:
    """Undo `pack_pairs`: ``[N / 64, K / 128, 64, 128]`` to ``[N, K]``."""
    rows = unpack_weight(packed).view(torch.uint8)
    pairs = rows.unflatten(0, (-1, 2, 2, TILE // 2, 2))  # g, i, p, gate or up
    return pairs.transpose(2, 3).reshape(rows.shape).view(packed.dtype)


def unpack_weight(packed: Tensor) -> Tensor:
    """Undo `pack_weight`: ``[N / 64, K / C, 64, C]`` to ``[N, K]``."""
    tiles = _swizzle(packed.view(torch.uint8)).transpose(1, 2).flatten(2)  # [tiles, 64, K]
    rows = tiles.unflatten(1, (4, 2, 8)).transpose(2, 3)
    return rows.reshape(-1, tiles.shape[-1]).contiguous().view(packed.dtype)
