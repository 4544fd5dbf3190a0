"""Launches of the products of SigLIP: `vision.cu` in BF16, `vision_fp8.cu` in W8A8, and two more.

`vision_narrow.cu` ends in whole rows of the residual and their moments; `vision_normed.cu` takes
such rows and applies the LayerNorm to its result.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pi05_ros.backends.cuda.hopper import launch
from pi05_ros.backends.cuda.hopper.attention import MAX_SHARED
from pi05_ros.backends.cuda.hopper.compile import KernelError
from pi05_ros.backends.cuda.hopper.tensor_maps import LINE, line_columns, matrix_map
from pi05_ros.model.config import VisionConfig

WARPGROUP = 128
CLUSTER = 2
ROWS = 128  # of a tile
NARROW_ROWS = 64
PAIR = CLUSTER * ROWS  # rows of a cluster, one camera of SigLIP So400m
MAX_COLUMNS = 208
MAX_STAGES = 6
LEAST_SHARED = 115 * 1024  # so that a block has a processor to itself, beside smaller kernels
_PAIR_OF_FLOATS = 8  # bytes: scale and bias of a column, mean and deviation of a row


@dataclass(frozen=True)
class VisionTiles:
    """How one product is divided.

    Attributes:
        columns: rows of weights in a tile, a multiple of 16.
        count: tiles.
        splits: slices of K.
        coded: operands are e4m3, not bf16.
        form: "plain"; "narrow": see `narrow_product`; "normed": see `normed_product`.

    """

    columns: int
    count: int
    splits: int
    coded: bool = False
    form: str = "plain"

    @classmethod
    def of(
        cls,
        rows: int,
        columns: int,
        splits: int,
        clusters: int,
        coded: bool = False,
        form: str = "plain",
    ) -> VisionTiles:
        """The narrowest tiles of which all run at a time, where `clusters` are resident."""
        found = cls(16, 1, splits, coded, form)
        wanted = max(1, clusters // (rows // (CLUSTER * found.rows) * splits))
        width = min(MAX_COLUMNS, -(-columns // wanted // 16) * 16)
        return replace(found, columns=width, count=-(-columns // width))

    @property
    def rows(self) -> int:
        """Rows of x in a tile."""
        return NARROW_ROWS if self.form == "narrow" else ROWS

    def stages(self, most: int = MAX_STAGES) -> int:
        """Chunks in shared memory."""
        return min(most, (MAX_SHARED - self._bytes_behind) // self._stage_bytes)

    def shared_bytes(self, stages: int) -> int:
        """Shared memory of a block, operands and barriers."""
        return max(stages * self._stage_bytes + self._bytes_behind, LEAST_SHARED)

    @property
    def _stage_bytes(self) -> int:
        return (self.rows + self.columns) * LINE + 16

    @property
    def _bytes_behind(self) -> int:
        if self.form == "narrow":
            return self.rows * (2 * self.columns + 16)
        rows = self.rows if self.form == "normed" else 0
        columns = self.columns if self.coded or rows else 0
        return _PAIR_OF_FLOATS * (rows + columns)


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
def _kernel(tiles: VisionTiles, most: int, early: bool, device: int) -> tuple[launch.Kernel, int]:
    stages = tiles.stages(most)
    source = {"plain": "fp8" if tiles.coded else ""}.get(tiles.form, tiles.form)
    defines = {"COLS": tiles.columns, "STAGES": stages, "EARLY": int(early)}
    path = f"vision/vision_{source}.cu" if source else "vision/vision.cu"
    module = launch.load(path, defines, torch.device("cuda", device))
    name = "vision_product" if tiles.form == "plain" else f"vision_{tiles.form}"
    kernel = module.kernel(name, tiles.shared_bytes(stages))
    threads = WARPGROUP * (1 + tiles.rows // 64)
    return kernel, kernel.resident_clusters(threads, CLUSTER)


def resident_clusters(device: torch.device, coded: bool) -> int:
    """How many clusters run at a time; tiles of any width take a whole processor.

    Raises:
        KernelError: the kernel cannot be compiled or loaded.

    """
    columns = 144  # as fc1 and fc2 have with two cameras
    return _kernel(VisionTiles(columns, 1, 1, coded), MAX_STAGES, False, _index(device))[1]


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
    args: tuple[launch.Argument, ...]
    sizes = (-(-K // line_columns(x)), tiles.count, splits)
    if scales is None:
        args = (bias, out, rows, N, *sizes, int(gelu))
    else:
        args = (scales.weight, scales.x, bias, out, scales.out, scales.amax, rows, N, *sizes)
    _launch(tiles, x, weight, args, stages, early, dependent)


def _launch(
    tiles: VisionTiles,
    x: Tensor,
    weight: Tensor,
    args: tuple[launch.Argument, ...],
    stages: int,
    early: bool,
    dependent: bool,
) -> None:
    any_place = replace(tiles, count=1, splits=1)
    kernel, _ = _kernel(any_place, stages, early, _index(x.device))
    maps = (matrix_map(x, tiles.rows), matrix_map(weight, tiles.columns // 2))
    blocks = x.shape[0] // tiles.rows * tiles.count * tiles.splits
    threads = WARPGROUP * (1 + tiles.rows // 64)
    kernel.launch((blocks,), threads, (*maps, *args), cluster=CLUSTER, dependent=dependent)


@dataclass(frozen=True)
class Moments:
    """What a LayerNorm must know of each row, per tile of its columns.

    Attributes:
        values: float32 ``[tiles, rows, 2]``: mean, and sum of squares about it.
        step: columns of a tile but the last.

    """

    values: Tensor
    step: int


def moments_room(rows: int, columns: int) -> int:
    """Floats that moments of ``[rows, columns]`` take at most."""
    return -(-columns // 16) * rows * 2


def narrow_product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    out: Tensor,
    *,
    residual: Tensor,
    moments: Tensor,
    clusters: int,
    dependent: bool,
    stages: int = MAX_STAGES,
    early: bool = False,
) -> Moments:
    """``x @ weight.T + bias + residual`` in tiles of 64 rows, never divided along K.

    Args:
        x: bf16 ``[rows, K]``, rows a multiple of 128.
        weight: bf16 ``[N, K]``.
        bias: bf16 ``[N]``.
        out: bf16 ``[rows, N]``.
        residual: same; may be `out` itself.
        moments: room of `moments_room` for float32, for those of the rounded result.
        clusters: see `resident_clusters`.
        dependent: start before the kernel in front has finished.
        stages: most chunks in shared memory; it has room for more than in `product`.
        early: as for `product`.

    Raises:
        KernelError: sizes that the kernel does not take, or what the driver reports.

    """
    rows, K = x.shape
    N = weight.shape[0]
    if rows % (CLUSTER * NARROW_ROWS) or N % 8 or K % 8:
        raise KernelError(f"vision product of {rows} rows, {K} and {N} columns, in narrow tiles")
    tiles = VisionTiles.of(rows, N, 1, clusters, form="narrow")
    if moments.numel() < tiles.count * rows * 2:
        raise KernelError(f"room for {moments.numel()} numbers, not {tiles.count * rows * 2}")
    chunks = -(-K // line_columns(x))
    args = (bias, residual, out, moments, rows, N, chunks, tiles.count)
    _launch(tiles, x, weight, args, stages, early, dependent)
    values = moments.flatten()[: tiles.count * rows * 2].view(tiles.count, rows, 2)
    return Moments(values, tiles.columns)


def normed_product(
    x: Tensor,
    weight: Tensor,
    affine: Tensor,
    moments: Moments,
    out: Tensor,
    *,
    clusters: int,
    dependent: bool,
    stages: int = MAX_STAGES,
    early: bool = False,
) -> None:
    """``gelu(rstd * (x @ weight.T - mean * c) + b)``: a LayerNorm of `x` is folded into weights.

    Args:
        x: bf16 ``[rows, K]``, rows a multiple of 256.
        weight: bf16 ``[N, K]``, with the norm's factor in its columns.
        affine: float32 ``[N, 2]``, c and b of each row of weights (`weights.fold_norm`).
        moments: of `x`.
        out: bf16 ``[rows, N]``.
        clusters: see `resident_clusters`.
        dependent: start before the kernel in front has finished.
        stages: most chunks in shared memory.
        early: let the kernel behind start at once.

    Raises:
        KernelError: sizes that the kernel does not take, or what the driver reports.

    """
    rows, K = x.shape
    N = weight.shape[0]
    covered = (moments.values.shape[0] - 1) * moments.step
    if rows % PAIR or N % 8 or moments.values.shape[1] != rows or not covered < K:
        raise KernelError(f"vision product of {rows} rows and {K} columns behind a norm")
    tiles = VisionTiles.of(rows, N, 1, clusters, form="normed")
    sizes = (rows, N, -(-K // line_columns(x)), tiles.count, K, moments.step)
    args = (affine, moments.values, out, *sizes)
    _launch(tiles, x, weight, args, stages, early, dependent)
