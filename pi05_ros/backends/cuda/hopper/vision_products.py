"""Launches of `vision.cu`: the products of SigLIP in BF16."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from pi05_ros.backends.cuda.hopper import launch
from pi05_ros.backends.cuda.hopper.attention import MAX_SHARED
from pi05_ros.backends.cuda.hopper.compile import KernelError
from pi05_ros.backends.cuda.hopper.tensor_maps import CHUNK, matrix_map
from pi05_ros.model.config import VisionConfig

THREADS = 384
CLUSTER = 2
ROWS = 128  # of a tile
PAIR = CLUSTER * ROWS  # rows of a cluster, one camera of SigLIP So400m
MAX_COLUMNS = 208
MAX_STAGES = 6
_LINE = 128  # bytes of a swizzled line


@dataclass(frozen=True)
class VisionTiles:
    """How one product is divided.

    Attributes:
        columns: rows of weights in a tile, a multiple of 16.
        count: tiles.
        splits: slices of K.

    """

    columns: int
    count: int
    splits: int

    @classmethod
    def of(cls, rows: int, columns: int, splits: int, clusters: int) -> VisionTiles:
        """The narrowest tiles of which all run at a time, where `clusters` are resident."""
        wanted = max(1, clusters // (rows // PAIR * splits))
        width = min(MAX_COLUMNS, -(-columns // wanted // 16) * 16)
        return cls(width, -(-columns // width), splits)

    def stages(self, most: int = MAX_STAGES) -> int:
        """Chunks in shared memory."""
        return min(most, MAX_SHARED // self._stage_bytes)

    def shared_bytes(self, stages: int) -> int:
        """Shared memory of a block, operands and barriers."""
        return stages * self._stage_bytes

    @property
    def _stage_bytes(self) -> int:
        return (ROWS + self.columns) * _LINE + 16


def unsupported(vision: VisionConfig) -> str | None:
    """Why these kernels cannot take a vision tower; None where they can."""
    if vision.tokens % PAIR:
        return f"{vision.tokens} tokens per camera are no multiple of {PAIR}"
    for name, value in (("width", vision.hidden_size), ("MLP size", vision.intermediate_size)):
        if value % 8 or value < CHUNK:
            return f"vision {name} {value}; accepted: multiples of 8 from {CHUNK} on"
    return None


def divides(columns: int, splits: int) -> bool:
    """Whether K of `columns` leaves no slice of it empty."""
    chunks = -(-columns // CHUNK)
    return (splits - 1) * -(-chunks // splits) < chunks


@functools.cache
def _kernel(columns: int, stages: int, shared: int, device: int) -> tuple[launch.Kernel, int]:
    defines = {"COLS": columns, "STAGES": stages}
    module = launch.load("vision.cu", defines, torch.device("cuda", device))
    kernel = module.kernel("vision_product", shared)
    return kernel, kernel.resident_clusters(THREADS, CLUSTER)


def resident_clusters(device: torch.device) -> int:
    """How many clusters run at a time; tiles of any width take a whole processor.

    Raises:
        KernelError: the kernel cannot be compiled or loaded.

    """
    tiles = VisionTiles(144, 1, 1)  # as fc1 and fc2 have with two cameras
    stages = tiles.stages()
    return _kernel(tiles.columns, stages, tiles.shared_bytes(stages), _index(device))[1]


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    *,
    splits: int,
    clusters: int,
    gelu: bool,
    dependent: bool,
    stages: int = MAX_STAGES,
) -> None:
    """``x @ weight.T + bias`` with GELU if `gelu`; or slices of K of it, without bias.

    Args:
        x: bf16 ``[rows, K]``, rows a multiple of 256.
        weight: bf16 ``[N, K]``.
        bias: bf16 ``[N]``; None for slices.
        out: bf16 with room for ``[splits, rows, N]``.
        splits: slices of K, 1: all of it.
        clusters: see `resident_clusters`.
        gelu: tanh approximation.
        dependent: start before the kernel in front has finished.
        stages: most chunks of 64 columns in shared memory; fewer leave room for other kernels.

    Raises:
        KernelError: sizes that the kernel does not take, or what the driver reports.

    """
    rows, K = x.shape
    N = weight.shape[0]
    chunks = -(-K // CHUNK)
    if rows % PAIR or not divides(K, splits) or (splits > 1 and (gelu or bias is not None)):
        raise KernelError(f"vision product of {rows} rows and {K} columns in {splits} slices")
    tiles = VisionTiles.of(rows, N, splits, clusters)
    stages = tiles.stages(stages)
    kernel, _ = _kernel(tiles.columns, stages, tiles.shared_bytes(stages), _index(x.device))
    blocks = rows // ROWS * tiles.count * splits
    kernel.launch(
        (blocks,),
        THREADS,
        (
            matrix_map(x, ROWS),
            matrix_map(weight, tiles.columns // 2),
            bias,
            out,
            rows,
            N,
            chunks,
            tiles.count,
            splits,
            int(gelu),
        ),
        cluster=CLUSTER,
        dependent=dependent,
    )
