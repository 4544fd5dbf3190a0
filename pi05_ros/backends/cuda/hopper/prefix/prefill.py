"""Launches of `prefill.cu`: the gate-up and down products of the prefix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pi05_ros.backends.cuda.hopper import launch
from pi05_ros.backends.cuda.packing import CHUNK
from pi05_ros.model.config import GemmaConfig

THREADS = 384
BLOCK_ROWS = 256  # rows of weights of a block
MAX_COLUMNS = (
    152  # rows of the prefix in a tile: four stages of operands are then in shared memory
)
STAGES = 4


@dataclass(frozen=True)
class PrefixProductOptions:
    """How the products are divided.

    Attributes:
        gate_up: tiles of rows of the prefix.
        down: same, for the down projection.
        splits: blocks that divide K of the down projection.

    """

    gate_up: int
    down: int
    splits: int


@dataclass(frozen=True)
class Tiles:
    """`count` tiles of `columns` rows of the prefix each, a multiple of 8."""

    columns: int
    count: int

    @classmethod
    def of(cls, rows: int, count: int) -> Tiles:
        """Cover `rows` with `count` tiles."""
        return cls(-(-rows // count // 8) * 8, count)

    @property
    def cluster(self) -> int:
        """Blocks that fetch weights together."""
        return 2 if self.count % 2 == 0 else 1

    @property
    def groups(self) -> int:
        """Clusters that work on the same weights."""
        return self.count // self.cluster

    def shared_bytes(self) -> dict[str, int]:
        """Shared memory of a block of each kernel, the sum that `Room` in prefill.cu makes."""
        stages = STAGES * (BLOCK_ROWS + self.columns) * CHUNK
        return {
            "prefix_gate_up": stages + self.columns * CHUNK + 16 * STAGES + 16,
            "prefix_down": stages + 16 * STAGES,
        }


def unsupported(vlm: GemmaConfig, options: PrefixProductOptions, rows: int) -> str | None:
    """Why these kernels cannot take `rows` rows of the prefix; None where they can."""
    D, F = vlm.width, vlm.mlp_dim
    for name, value, factor in (("width", D, BLOCK_ROWS), ("MLP size", F, CHUNK)):
        if value % factor:
            return f"prefix {name} {value} is no multiple of {factor}"
    chunks = F // CHUNK
    each = -(-chunks // options.splits)
    if D // CHUNK < STAGES or chunks - (options.splits - 1) * each < STAGES:
        return f"prefix sizes {D} and {F} leave fewer than {STAGES} chunks of {CHUNK} columns"
    for count in (options.gate_up, options.down):
        if not 1 <= count <= 16 or Tiles.of(rows, count).columns > MAX_COLUMNS:
            return f"{count} tiles for {rows} rows; accepted: 1 to 16 of up to {MAX_COLUMNS} rows"
    return None


class PrefixProducts:
    """Compiled kernels of one model size, made on first use of a tile size."""

    def __init__(self, vlm: GemmaConfig, device: torch.device) -> None:
        self.vlm = vlm
        self.device = device
        self._kernels: dict[tuple[str, Tiles, int], tuple[launch.Kernel, int]] = {}

    def kernel(self, name: str, tiles: Tiles, splits: int) -> tuple[launch.Kernel, int]:
        """A kernel, and how many of its clusters the device holds at a time.

        Raises:
            KernelError: it cannot be compiled or loaded.

        """
        key = (name, tiles, splits)
        if key not in self._kernels:
            constants = {
                "COLS": tiles.columns,
                "CLUSTER": tiles.cluster,
                "STAGES": STAGES,
                "WIDTH": self.vlm.width,
                "MLP": self.vlm.mlp_dim,
                "SPLITS": splits,
            }
            module = launch.load("prefix/prefill.cu", constants, self.device)
            kernel = module.kernel(name, tiles.shared_bytes()[name])
            self._kernels[key] = kernel, kernel.resident_clusters(THREADS, tiles.cluster)
        return self._kernels[key]

    def prepare(self, rows: int, options: PrefixProductOptions) -> None:
        """Compile and load what `rows` rows need; see `kernel` for errors."""
        self.kernel("prefix_gate_up", Tiles.of(rows, options.gate_up), options.splits)
        self.kernel("prefix_down", Tiles.of(rows, options.down), options.splits)

    def gate_up(
        self,
        image: Tensor,
        weight: Tensor,
        scales: tuple[Tensor, Tensor],
        out: Tensor,
        out_scale: Tensor,
        amax: Tensor | None,
        *,
        rows: int,
        options: PrefixProductOptions,
        dependent: bool,
    ) -> None:
        """``gelu(gate) * up`` of an image of activations, as an image.

        Args:
            image: e4m3 ``[D / 128, image_rows, 128]``.
            weight: e4m3, `packing.pack_pairs` of alternating gate and up rows.
            scales: float32 of each weight row ``[2 F]`` as before packing, and of the activations
                ``[1]``.
            out: e4m3 ``[F / 128, image_rows, 128]``.
            out_scale: float32 ``[1]``, a power of two.
            amax: float32 ``[1]``, takes the largest magnitude before `out_scale`; or None.
            rows: of the prefix; at most `packing.image_rows` less what `packing.image_rows` adds.
            options: how it is divided.
            dependent: start before the kernel in front has finished.

        """
        tiles = Tiles.of(rows, options.gate_up)
        kernel, resident = self.kernel("prefix_gate_up", tiles, options.splits)
        items = 2 * self.vlm.mlp_dim // BLOCK_ROWS * tiles.groups
        sizes = (rows, items, tiles.groups)
        args = (image, image.shape[1], weight, *scales, out, out_scale, amax, *sizes)
        blocks = min(items, resident) * tiles.cluster
        kernel.launch((blocks,), THREADS, args, cluster=tiles.cluster, dependent=dependent)

    def down(
        self,
        image: Tensor,
        weight: Tensor,
        parts: Tensor,
        *,
        rows: int,
        options: PrefixProductOptions,
        dependent: bool,
    ) -> None:
        """Products without scales, to be added up.

        Args:
            image: e4m3 ``[F / 128, image_rows, 128]``.
            weight: e4m3, `packing.pack_weight`.
            parts: BF16, room for ``[splits, rows, D]``.
            rows: of the prefix.
            options: how it is divided.
            dependent: start before the kernel in front has finished.

        """
        tiles = Tiles.of(rows, options.down)
        kernel, _ = self.kernel("prefix_down", tiles, options.splits)
        items = self.vlm.width // BLOCK_ROWS * tiles.groups * options.splits
        args = (image, image.shape[1], weight, parts, rows, items, tiles.groups)
        kernel.launch(
            (items * tiles.cluster,), THREADS, args, cluster=tiles.cluster, dependent=dependent
        )
