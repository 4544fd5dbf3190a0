"""Attention of the prefix as one launch for a layer (prefix_attention.cu).

It replaces `attend` and `combine` of `kernels/attention.py` in the prefill stage where
`unsupported` allows it and the output is e4m3.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from pi05_ros.backends.cuda.hopper import launch as cuda
from pi05_ros.backends.cuda.hopper.attention import HEAD_DIM, HEADS, MAX_SHARED
from pi05_ros.backends.cuda.hopper.compile import KernelError
from pi05_ros.backends.cuda.hopper.tensor_maps import CHUNK, TensorMap, swizzled_map

TILE = 128  # query rows of a block
THREADS = 384
MAX_SPLITS = 8
KEYS = (64, 80, 96)
MAX_ROWS = 4096
_UNITS = 8  # of 32 columns, which the blocks of a cluster divide among themselves
_CHUNKS = 4  # swizzled lines of a row
_BARRIERS = 8 * (_CHUNKS + 7)  # bytes, besides two for each stage


@dataclass(frozen=True)
class PrefixAttentionOptions:
    """How the work is divided; results differ by rounding only.

    Attributes:
        splits: slices of the keys, one block of a cluster each, 1 to 8.
        keys: keys of a tile: 64, 80 or 96.

    """

    splits: int
    keys: int

    @property
    def exchange_bytes(self) -> int:
        """Shared memory for parts of the result, largest logits and sums."""
        if self.splits == 1:
            return 0
        units = -(-_UNITS // self.splits)
        return (self.splits - 1) * units * 32 * 2 * TILE + self.splits * TILE * 8

    @property
    def ring_offset(self) -> int:
        """Where tiles of keys and values begin: behind the queries, later the parts."""
        return max(TILE * HEAD_DIM * 2, -(-self.exchange_bytes // 1024) * 1024)

    @property
    def stage_bytes(self) -> int:
        """Shared memory of a tile of keys or values."""
        return self.keys * HEAD_DIM * 2

    def stages(self, rows: int) -> int:
        """Tiles of keys or values in shared memory: as many as fit, or as there are."""
        room = (MAX_SHARED - self.ring_offset - _BARRIERS) // (self.stage_bytes + 16)
        slice_keys = -(-rows // self.splits)
        return min(room, 2 * -(-slice_keys // self.keys))

    def shared_bytes(self, rows: int) -> int:
        """Shared memory of a block, in the order in which prefix_attention.cu carves it up."""
        return self.ring_offset + _BARRIERS + self.stages(rows) * (self.stage_bytes + 16)


def options_for(rows: int, processors: int = 132) -> PrefixAttentionOptions:
    """The division that was fastest, or close to it, on an H100.

    One tile of keys per block for few rows, then 3 and 2 slices as long as all clusters run at a
    time. (A cluster's blocks lie close together: of those of 3, 39 find room, not 44.)
    """
    tiles = -(-rows * HEADS // TILE)
    if rows <= 4 * KEYS[-1]:
        splits = -(-rows // KEYS[-1])
    elif 3 * tiles <= processors * 5 // 6:
        splits = 3
    else:
        splits = 2 if 2 * tiles <= processors else 1
    share = -(-rows // splits)
    # 96 keys leave room for 3 stages only, which is enough for 2 tiles
    sizes = KEYS if share <= 2 * KEYS[-1] else KEYS[:-1]
    return PrefixAttentionOptions(
        splits, min(sizes, key=lambda keys: (-(-share // keys) * keys, -keys))
    )


def unsupported(heads: int, head_dim: int, rows: int) -> str | None:
    """Why this kernel cannot take a workload; None where it can.

    Whether the device can run it at all says `attention.unavailable`.
    """
    if (heads, head_dim) != (HEADS, HEAD_DIM):
        return f"{heads} heads of {head_dim}; the kernel has {HEADS} of {HEAD_DIM}"
    if not 1 <= rows <= MAX_ROWS:
        return f"{rows} rows; accepted: 1 to {MAX_ROWS}"
    return None


def _refused(options: PrefixAttentionOptions) -> str | None:
    if options.keys not in KEYS:
        return f"{options.keys} keys in a tile; accepted: {KEYS}"
    if not 1 <= options.splits <= MAX_SPLITS:
        return f"{options.splits} splits; accepted: 1 to {MAX_SPLITS}"
    return None


def launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    length: Tensor,
    out: Tensor,
    scale: Tensor,
    amax: Tensor | None,
    *,
    rows: int,
    options: PrefixAttentionOptions,
    dependent: bool,
) -> None:
    """Enqueue softmax(q k') v on the current stream.

    Args:
        q: bf16 ``[>= rows * 8, 256]``, row = prefix row * 8 + head, carries log2(e) / 16.
        k: bf16 ``[>= rows, 256]``, 16-byte aligned.
        v: as k.
        length: int32 ``[1]``: keys that count, at most `rows`. What lies behind them is not used.
        out: e4m3 ``[>= rows * 8, 256]``, value / scale, saturated. All rows are written; those of
            queries behind the length hold what their q gives. Of three dimensions: an image
            ``[16, image_rows, 128]`` of the rows of the prefix (packing.py).
        scale: float32 ``[1]``, power of two.
        amax: float32 ``[1]`` that keeps the largest magnitude of all rows before the scale, or
            None.
        rows: rows of the prefix, a bucket.
        options: see `options_for`.
        dependent: start before the kernel in front has finished. `length` and `scale` are read
            before it has.

    Raises:
        KernelError: `unsupported`, options that do not exist, or the driver refuses.

    """
    reason = unsupported(HEADS, q.shape[-1], rows) or _refused(options)
    if reason is not None:
        raise KernelError(f"prefix attention: {reason}")
    queries = rows * HEADS
    for name, tensor, least in (("q", q, queries), ("k", k, rows), ("v", v, rows)):
        if tensor.dtype != torch.bfloat16 or tensor.shape[0] < least or not tensor.is_contiguous():
            raise KernelError(
                f"prefix attention: {name} is {tensor.dtype} {tuple(tensor.shape)}; accepted: "
                f"contiguous bf16 [>= {least}, {HEAD_DIM}]"
            )
    tiles = -(-queries // TILE)
    stages, shared = options.stages(rows), options.shared_bytes(rows)
    kernel = _kernel(options, stages, shared, q.device.index or 0)
    kernel.launch(
        (tiles * options.splits,),
        THREADS,
        (
            tensor_map(q, queries, TILE, 1),
            tensor_map(k, rows, options.keys, _CHUNKS // 2),
            tensor_map(v, rows, options.keys, _CHUNKS),
            length,
            out,
            scale,
            amax,
            rows,
            queries,
            out.shape[1] if out.dim() == 3 else 0,
        ),
        cluster=options.splits,
        dependent=dependent,
    )


def tensor_map(matrix: Tensor, rows: int, box_rows: int, box_chunks: int) -> TensorMap:
    """Rows of 256 bf16 as ``[chunk][row][64]``, to be fetched in boxes; rows behind are zeros."""
    sizes, strides = (CHUNK, rows, _CHUNKS), (2 * HEAD_DIM, 2 * CHUNK)
    return swizzled_map(matrix, sizes, strides, (CHUNK, box_rows, box_chunks))


@functools.cache
def _kernel(options: PrefixAttentionOptions, stages: int, shared: int, device: int) -> cuda.Kernel:
    defines = {
        "KEYS": options.keys,
        "STAGES": stages,
        "SPLITS": options.splits,
    }
    module = cuda.load("prefix/prefix_attention.cu", defines, torch.device("cuda", device))
    return module.kernel("attend", shared)
