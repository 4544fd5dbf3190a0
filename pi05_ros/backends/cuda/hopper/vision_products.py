"""Launches of `vision.cu` and `vision_fp8.cu`: the products of SigLIP in BF16 and W8A8."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from pi05_ros.backends.cuda.hopper import launch
from pi05_ros.backends.cuda.hopper.attention import MAX_SHARED
from pi05_ros.backends.cuda.hopper.compile import KernelError
from pi05_ros.backends.cuda.hopper.tensor_maps import LINE, line_columns, matrix_map
from pi05_ros.model.config import VisionConfig

THREADS = 384
CLUSTER = 2
ROWS = 128  # of a tile
PAIR = CLUSTER * ROWS  # rows of a cluster, one camera of SigLIP So400m
MAX_COLUMNS = 208
MAX_STAGES = 6
LEAST_SHARED = 115 * 1024  # so that a block has a processor to itself, beside smaller kernels
_AFFINE = 8  # bytes of scale and bias of a column, in e4m3


@dataclass(frozen=True)
class VisionTiles:
    """How one product is divided.

    Attributes:
        columns: rows of weights in a tile, a multiple of 16.
        count: tiles.
        splits: slices of K.
        coded: operands are e4m3, not bf16.

    """

    columns: int
    count: int
    splits: int
    coded: bool = False

    @classmethod
    def of(
        cls, rows: int, columns: int, splits: int, clusters: int, coded: bool = False
    ) -> VisionTiles:
        """The narrowest tiles of which all run at a time, where `clusters` are resident."""
        wanted = max(1, clusters // (rows // PAIR * splits))
        width = min(MAX_COLUMNS, -(-columns // wanted // 16) * 16)
        return cls(width, -(-columns // width), splits, coded)

    def stages(self, most: int = MAX_STAGES) -> int:
        """Chunks in shared memory."""
        return min(most, (MAX_SHARED - self._affine_bytes) // self._stage_bytes)

    def shared_bytes(self, stages: int) -> int:
        """Shared memory of a block, operands and barriers."""
        return max(stages * self._stage_bytes + self._affine_bytes, LEAST_SHARED)

    @property
    def _stage_bytes(self) -> int:
        return (ROWS + self.columns) * LINE + 16

    @property
    def _affine_bytes(self) -> int:
        return _AFFINE * self.columns if self.coded else 0


@dataclass(frozen=True)
class CodedProduct:
    """What a product of e4m3 operands needs besides; scales of activations are float32 ``[1]``.

    Attributes:
        weight: float32 ``[N]``, scale of each row of weights.
        x: of the rows.
        out: of the result, where that is e4m3 behind GELU; a power of two.
        amax: for the largest magnitude of such a result, where it is wanted.

    """

    weight: Tensor
    x: Tensor
    out: Tensor | None = None
    amax: Tensor | None = None


def unsupported(vision: VisionConfig, coded: bool) -> str | None:
    """Why these kernels cannot take a vision tower in e4m3 (`coded`) or bf16; None: they can."""
    unit, least = (16, LINE) if coded else (8, LINE // 2)
    if vision.tokens % PAIR:
        return f"{vision.tokens} tokens per camera are no multiple of {PAIR}"
    for name, value in (("width", vision.hidden_size), ("MLP size", vision.intermediate_size)):
        if value % unit or value < least:
            return f"vision {name} {value}; accepted: multiples of {unit} from {least} on"
    return None


def divides(columns: int, splits: int, coded: bool) -> bool:
    """Whether K of `columns` leaves no slice of it empty."""
    chunks = -(-columns // (LINE if coded else LINE // 2))
    return (splits - 1) * -(-chunks // splits) < chunks


@functools.cache
def _kernel(
    columns: int, coded: bool, most: int, early: bool, device: int
) -> tuple[launch.Kernel, int]:
    tiles = VisionTiles(columns, 1, 1, coded)
    stages = tiles.stages(most)
    source = "vision_fp8.cu" if coded else "vision.cu"
    defines = {"COLS": columns, "STAGES": stages, "EARLY": int(early)}
    module = launch.load(source, defines, torch.device("cuda", device))
    kernel = module.kernel("vision_product", tiles.shared_bytes(stages))
    return kernel, kernel.resident_clusters(THREADS, CLUSTER)


def resident_clusters(device: torch.device, coded: bool) -> int:
    """How many clusters run at a time; tiles of any width take a whole processor.

    Raises:
        KernelError: the kernel cannot be compiled or loaded.

    """
    columns = 144  # as fc1 and fc2 have with two cameras
    return _kernel(columns, coded, MAX_STAGES, False, _index(device))[1]


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
    early: bool = False,
    scales: CodedProduct | None = None,
) -> None:
    """``x @ weight.T + bias`` with GELU if `gelu`; or slices of K of it, without bias.

    Args:
        x: bf16 ``[rows, K]``, rows a multiple of 256; e4m3 with `scales`.
        weight: ``[N, K]`` of the same type.
        bias: ``[N]``, bf16, or float32 with `scales`; None for slices.
        out: bf16 with room for ``[splits, rows, N]``, or what `scales` says.
        splits: slices of K, 1: all of it.
        clusters: see `resident_clusters`.
        gelu: tanh approximation; with `scales` only where the result is e4m3 too.
        dependent: start before the kernel in front has finished.
        stages: most chunks of 128 bytes in shared memory; fewer leave room for other kernels.
        early: let the kernel behind start at once, not when the products are done.
        scales: operands are e4m3; the result, also of slices, has the scales applied.

    Raises:
        KernelError: sizes that the kernel does not take, or what the driver reports.

    """
    rows, K = x.shape
    N = weight.shape[0]
    coded = scales is not None
    if rows % PAIR or not divides(K, splits, coded) or (splits > 1 and (gelu or bias is not None)):
        raise KernelError(f"vision product of {rows} rows and {K} columns in {splits} slices")
    if scales is not None and gelu != (scales.out is not None):
        raise KernelError("vision product in e4m3: GELU goes with an e4m3 result and no other")
    tiles = VisionTiles.of(rows, N, splits, clusters, coded)
    kernel, _ = _kernel(tiles.columns, coded, stages, early, _index(x.device))
    maps = (matrix_map(x, ROWS), matrix_map(weight, tiles.columns // 2))
    sizes = (rows, N, -(-K // line_columns(x)), tiles.count, splits)
    args: tuple[launch.Argument, ...]
    if scales is None:
        args = (*maps, bias, out, *sizes, int(gelu))
    else:
        args = (*maps, scales.weight, scales.x, bias, out, scales.out, scales.amax, *sizes)
    blocks = rows // ROWS * tiles.count * splits
    kernel.launch((blocks,), THREADS, args, cluster=CLUSTER, dependent=dependent)
