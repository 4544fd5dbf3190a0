"""Launches of `products.cu`: the four products of an expert layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pi05_ros.backends.cuda.hopper import launch
from pi05_ros.backends.cuda.packing import CHUNK, TILE
from pi05_ros.model import Pi05Config
from pi05_ros.model.config import GemmaConfig

THREADS = 128
MAX_SHARED = 227 * 1024  # bytes of a block on compute capability 9.0
# Shared memory that blocks ask for at least, so that one block of out and two of down at most
# share a processor: the device would put more there while others idle, and the kernels behind,
# which find no room beside them, would ask for their weights too late.
LEAST_SHARED = {"out_residual": 115 * 1024, "down_residual": 77 * 1024}
MAX_PARTS = 128  # tiles of columns whose sums of squares are kept (buffers.SUM_PARTS)


@dataclass(frozen=True)
class ProductOptions:
    """How the products are divided.

    Attributes:
        qkv: groups of action rows that blocks of q, k, v share among them, 1 to 8.
        out: blocks of the output projection that divide K among them: 1, 2, 4 or 8.
        down: same, for the down projection.
        gate_delay: cycles for which gate_up waits before it asks for its weights.

    """

    qkv: int = 2
    out: int = 4
    down: int = 8
    gate_delay: int = 0


def padded_rows(horizon: int) -> int:
    """Action rows that the matrix units work on."""
    return -(-horizon // 8) * 8


def row_blocks(rows: int, groups: int) -> tuple[int, int]:
    """Action rows of a group (whole eights), and how many groups that makes."""
    each = -(-rows // 8 // groups) * 8
    return each, -(-rows // each)


def shared_bytes(expert: GemmaConfig, options: ProductOptions, rows: int) -> dict[str, int]:
    """Shared memory of a block of each kernel, the sum that `Shared` in products.cu makes.

    Weights, activations, the exchange of a cluster, factors of the rows, barriers.
    """
    D, F, q = expert.width, expert.mlp_dim, expert.num_heads * expert.head_dim

    def need(K: int, split: int, loaded: int, exchange: int) -> int:
        chunks = K // CHUNK // split
        return chunks * (TILE + loaded) * CHUNK + exchange + 3 * TILE * 4 + 8 * (chunks + 1)

    def exchange(split: int) -> int:  # 16 columns in bf16 per row and warp
        return split * THREADS // 32 * (rows // split | 1) * 32 if split > 1 else 0

    return {
        "qkv_rope": need(D, 1, row_blocks(rows, options.qkv)[0], 0),
        "out_residual": need(q, options.out, rows, exchange(options.out)),
        "gate_up": need(D, 1, rows, rows * (TILE // 2 + 16)),
        "down_residual": need(F, options.down, rows, exchange(options.down)),
    }


def unsupported(
    config: Pi05Config, options: ProductOptions, capability: tuple[int, int]
) -> str | None:
    """Why these kernels cannot run the expert of `config` in FP8; None where they can."""
    expert = config.expert
    D, F, hd = expert.width, expert.mlp_dim, expert.head_dim
    q = expert.num_heads * hd
    if capability != (9, 0):
        return f"they need compute capability 9.0, this is {capability[0]}.{capability[1]}"
    for name, value, factor in (
        ("width", D, CHUNK),
        ("MLP size", F, CHUNK * options.down),
        ("attention width", q, CHUNK * options.out),
        ("head size", hd, TILE),
    ):
        if value % factor:
            return f"{name} {value} is no multiple of {factor}"
    if D // TILE > MAX_PARTS or (D // TILE) % 2:
        return f"width {D} has {D // TILE} tiles; accepted: even, up to {MAX_PARTS}"
    largest = max(shared_bytes(expert, options, TILE).values())
    if largest > MAX_SHARED:
        return f"a block would need {largest} bytes of shared memory of {MAX_SHARED}"
    return None


def defines(expert: GemmaConfig, options: ProductOptions, rows: int) -> dict[str, int]:
    """Constants of products.cu."""
    return {
        "ROWS": rows,
        "WIDTH": expert.width,
        "MLP": expert.mlp_dim,
        "HEADS": expert.num_heads,
        "HEAD_DIM": expert.head_dim,
        "QKV_GROUPS": options.qkv,
        "OUT_SPLIT": options.out,
        "DOWN_SPLIT": options.down,
        "GATE_DELAY": options.gate_delay,
    }


class Products:
    """Compiled kernels of one model size; one set per number of padded rows, made on first use."""

    def __init__(self, config: Pi05Config, options: ProductOptions, device: torch.device) -> None:
        self.expert = config.expert
        self.options = options
        self.device = device
        self._sets: dict[int, dict[str, launch.Kernel]] = {}

    def kernels(self, horizon: int) -> dict[str, launch.Kernel]:
        """Kernels for a horizon.

        Raises:
            KernelError: they cannot be compiled or loaded.

        """
        rows = padded_rows(horizon)
        if rows not in self._sets:
            e, o = self.expert, self.options
            module = launch.load("products.cu", defines(e, o, rows), self.device)
            self._sets[rows] = {
                name: module.kernel(name, max(size, LEAST_SHARED.get(name, 0)))
                for name, size in shared_bytes(e, o, rows).items()
            }
        return self._sets[rows]

    def launch(
        self,
        name: str,
        horizon: int,
        columns: int,
        args: tuple[launch.Argument, ...],
        dependent: bool = True,
    ) -> None:
        """Launch one product: `columns` of the result, `args` in the kernel's order."""
        o, rows = self.options, padded_rows(horizon)
        split = {"out_residual": o.out, "down_residual": o.down}.get(name, 1)
        blocks = columns // TILE * split
        if name == "qkv_rope":
            blocks *= row_blocks(rows, o.qkv)[1]
        self.kernels(horizon)[name].launch(
            (blocks,), THREADS, args, cluster=split, dependent=dependent
        )
