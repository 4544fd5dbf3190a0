"""Launches of `vision_attention.cu`: attention within one image of SigLIP So400m."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from pi05_ros.backends.cuda.hopper import launch
from pi05_ros.backends.cuda.hopper.compile import KernelError
from pi05_ros.backends.cuda.hopper.tensor_maps import CHUNK, swizzled_map
from pi05_ros.model.config import VisionConfig

TOKENS, HEAD_DIM = 256, 72
THREADS = 128
TILE = 64  # query rows of a block
_TAIL_BYTES = 2 * (HEAD_DIM - CHUNK)
SHARED_BYTES = (TILE + 2 * TOKENS) * 2 * CHUNK + (2 * TILE + 2 * TOKENS) * _TAIL_BYTES + 24


def unsupported(vision: VisionConfig) -> str | None:
    """Why this kernel cannot take a vision tower; None where it can."""
    head_dim = vision.hidden_size // vision.num_attention_heads
    if (vision.tokens, head_dim) != (TOKENS, HEAD_DIM):
        found = f"{vision.tokens} tokens and heads of {head_dim}"
        return f"{found}; the kernel has {TOKENS} and {HEAD_DIM}"
    return None


@functools.cache
def kernel(device: int, coded: bool) -> launch.Kernel:
    """The compiled kernel; `coded`: its result is e4m3.

    Raises:
        KernelError: it cannot be compiled or loaded.

    """
    defines = {"CODED": int(coded)}
    module = launch.load("vision/vision_attention.cu", defines, torch.device("cuda", device))
    return module.kernel("attend_vision", SHARED_BYTES)


def attend(
    qkv: Tensor,
    out: Tensor,
    scale: float,
    *,
    dependent: bool,
    out_scale: Tensor | None = None,
    amax: Tensor | None = None,
) -> None:
    """Softmax(q k') v of every head within every image.

    Args:
        qkv: bf16 ``[images * 256, 3 * heads * 72]``.
        out: bf16 or e4m3 ``[images * 256, heads * 72]``.
        scale: of the logits, times log2(e).
        dependent: start before the kernel in front has finished.
        out_scale: float32 ``[1]``, a power of two: an e4m3 `out` is divided by it.
        amax: float32 ``[1]`` for the largest magnitude of an e4m3 `out`, where it is wanted.

    Raises:
        KernelError: sizes that the kernel does not take, or what the driver reports.

    """
    rows, columns = qkv.shape
    slots = columns // HEAD_DIM
    if rows % TOKENS or columns != slots * HEAD_DIM or slots % 3:
        raise KernelError(f"vision attention of {rows} rows and {columns} columns")
    coded = out.element_size() == 1
    if coded and out_scale is None:
        raise KernelError("vision attention in e4m3 without a scale")
    box = (CHUNK, 1, TILE)
    image = swizzled_map(qkv, (HEAD_DIM, slots, rows), (2 * HEAD_DIM, 2 * columns), box)
    grid = (TOKENS // TILE, slots // 3, rows // TOKENS)
    args = (image, qkv, out, out_scale, amax, slots // 3, scale)
    made = kernel(qkv.device.index or 0, coded)
    made.launch(grid, THREADS, args, cluster=TOKENS // TILE, dependent=dependent)
