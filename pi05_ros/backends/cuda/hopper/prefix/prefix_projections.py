"""Launches of `prefix_projections.cu`: the products around attention of the prefix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pi05_ros.backends.cuda.hopper import launch
from pi05_ros.backends.cuda.hopper.attention import HEAD_DIM, MAX_SHARED
from pi05_ros.backends.cuda.hopper.prefix import prefix_attention
from pi05_ros.backends.cuda.packing import CHUNK
from pi05_ros.model.config import GemmaConfig

THREADS = 384
BLOCK_ROWS = 128  # rows of weights of a block
CLUSTER = 2
QKV_TILES, OUT_TILES = 6, 8  # of rows of the prefix: 120 and 128 blocks for pi0.5
MAX_TILES = 16  # for which images have room
MAX_COLUMNS = 168  # rows of the prefix in a tile, which leave room for five stages
MAX_STAGES = 8


@dataclass(frozen=True)
class ProjectionTiles:
    """`count` tiles (an even number) of `columns` rows of the prefix each, a multiple of 8."""

    columns: int
    count: int

    @classmethod
    def of(cls, rows: int, count: int) -> ProjectionTiles:
        """Cover `rows` with `count` tiles, or as many more as keep them narrow."""
        count = max(count, -(-rows // (CLUSTER * MAX_COLUMNS)) * CLUSTER)
        return cls(-(-rows // count // 8) * 8, count)

    @property
    def groups(self) -> int:
        """Clusters that work on the same weights."""
        return self.count // CLUSTER

    @property
    def _stage_bytes(self) -> int:
        return (BLOCK_ROWS + self.columns) * CHUNK + 16

    def stages(self, chunks: int) -> int:
        """Chunks of 128 columns in shared memory."""
        return min(MAX_STAGES, chunks, MAX_SHARED // self._stage_bytes)

    def shared_bytes(self, chunks: int) -> int:
        """Shared memory of a block, the sum that `Room` in prefix.cuh makes."""
        return self.stages(chunks) * self._stage_bytes


def unsupported(vlm: GemmaConfig, rows: int) -> str | None:
    """Why these kernels cannot take `rows` rows of the prefix; None where they can."""
    reason = prefix_attention.unsupported(vlm.num_heads, vlm.head_dim, rows)
    if reason is not None:
        return reason
    if vlm.width % BLOCK_ROWS:
        return f"prefix width {vlm.width} is no multiple of {BLOCK_ROWS}"
    if rows > MAX_TILES * MAX_COLUMNS:
        return f"{rows} rows; accepted: at most {MAX_TILES * MAX_COLUMNS}"
    return None


class PrefixProjections:
    """Compiled kernels of one model size, made on first use of a tile size."""

    def __init__(self, vlm: GemmaConfig, device: torch.device) -> None:
        self.vlm = vlm
        self.device = device
        self._kernels: dict[tuple[str, ProjectionTiles], launch.Kernel] = {}

    def kernel(self, name: str, tiles: ProjectionTiles) -> launch.Kernel:
        """One of the two kernels.

        Raises:
            KernelError: it cannot be compiled or loaded.

        """
        if (name, tiles) not in self._kernels:
            vlm = self.vlm
            K = vlm.width if name == "prefix_qkv" else vlm.num_heads * vlm.head_dim
            constants = {
                "COLS": tiles.columns,
                "CLUSTER": CLUSTER,
                "STAGES": tiles.stages(K // CHUNK),
                "COLUMNS": K,
            }
            module = launch.load("prefix/prefix_projections.cu", constants, self.device)
            self._kernels[name, tiles] = module.kernel(name, tiles.shared_bytes(K // CHUNK))
        return self._kernels[name, tiles]

    def prepare(self, rows: int) -> None:
        """Compile and load what `rows` rows need; see `kernel` for errors."""
        self.kernel("prefix_qkv", ProjectionTiles.of(rows, QKV_TILES))
        self.kernel("prefix_out", ProjectionTiles.of(rows, OUT_TILES))

    def qkv(
        self,
        image: Tensor,
        weight: Tensor,
        scales: tuple[Tensor, Tensor],
        angles: tuple[Tensor, Tensor],
        out: tuple[Tensor | None, Tensor, Tensor],
        q_scale: float,
        *,
        rows: int,
        dependent: bool,
    ) -> None:
        """Rotated queries and keys, and values.

        Args:
            image: e4m3 ``[D / 128, image_rows, 128]``.
            weight: e4m3, `packing.pack_weight` of `weights.rope_pairs` of q, k and v; of k and v
                alone where no queries are wanted.
            scales: float32 of each weight row, and of the activations ``[1]``.
            angles: cosines and sines, float32 ``[>= rows, 128]``.
            out: q ``[rows, heads, 256]`` times `q_scale` (None where there are none), k and v
                ``[rows, 256]``, bf16.
            q_scale: factor of the logits.
            rows: of the prefix; no row behind them is written.
            dependent: start before the kernel in front has finished.

        """
        tiles = ProjectionTiles.of(rows, QKV_TILES)
        outputs = weight.shape[0] * weight.shape[2]
        items = outputs // BLOCK_ROWS * tiles.groups
        heads = outputs // HEAD_DIM - 2
        args = (
            *(image, image.shape[1], weight, *scales, *angles, *out),
            *(q_scale, rows, items, tiles.groups, heads),
        )
        self.kernel("prefix_qkv", tiles).launch(
            (items * CLUSTER,), THREADS, args, cluster=CLUSTER, dependent=dependent
        )

    def out(
        self, image: Tensor, weight: Tensor, out: Tensor, *, rows: int, dependent: bool
    ) -> None:
        """``image @ weight.T`` without scales.

        Args:
            image: e4m3 ``[heads * 2, image_rows, 128]``.
            weight: e4m3, `packing.pack_weight`.
            out: bf16 ``[rows, D]``.
            rows: of the prefix.
            dependent: start before the kernel in front has finished.

        """
        tiles = ProjectionTiles.of(rows, OUT_TILES)
        width = weight.shape[0] * weight.shape[2]
        items = width // BLOCK_ROWS * tiles.groups
        args = (image, image.shape[1], weight, out, width, rows, items, tiles.groups)
        self.kernel("prefix_out", tiles).launch(
            (items * CLUSTER,), THREADS, args, cluster=CLUSTER, dependent=dependent
        )
