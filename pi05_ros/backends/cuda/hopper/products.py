"""Launches of `products.cu`: the four products of an expert layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pi05_ros.backends.cuda.hopper import launch
from pi05_ros.backends.cuda.hopper.packing import CHUNK, TILE
from pi05_ros.model import Pi05Config
from pi05_ros.model.config import GemmaConfig

THREADS = 128
MAX_SHARED = 227 * 1024  # bytes of a block on compute capability 9.0
MAX_PARTS = 128  # tiles of columns whose sums of squares are kept (buffers.SUM_PARTS)


@dataclass(frozen=True)
class Options:
    """How the products are divided.

    Attributes:
        qkv: blocks that share a tile of columns, K divided over them: 1, 2, 4 or 8.
        out: same, for the output projection.
        down: same, for the down projection.

    """

    qkv: int = 1
    out: int = 8
    down: int = 8


def padded_rows(horizon: int) -> int:
    """Action rows that the matrix units work on."""
    return -(-horizon // 8) * 8


def shared_bytes(K: int, split: int, rows: int, gate_up: bool = False) -> int:
    """Shared memory of a block: weights, activations, exchange, factors of rows, barriers."""
    chunks = K // CHUNK // split
    exchange = rows * (TILE // 2 + 16) if gate_up else rows * (TILE + 8) * 4
    factors = 3 * TILE * 4
    return chunks * (TILE + rows) * CHUNK + exchange + factors + 8 * (chunks + 1)


def unsupported(config: Pi05Config, options: Options, capability: tuple[int, int]) -> str | None:
    """Why these kernels cannot run the expert of `config` in FP8; None where they can."""
    expert = config.expert
    D, F, hd = expert.width, expert.mlp_dim, expert.head_dim
    q = expert.num_heads * hd
    if capability != (9, 0):
        return f"they need compute capability 9.0, this is {capability[0]}.{capability[1]}"
    for name, value, factor in (
        ("width", D, CHUNK * options.qkv),
        ("MLP size", F, CHUNK * options.down),
        ("attention width", q, CHUNK * options.out),
        ("head size", hd, TILE),
    ):
        if value % factor:
            return f"{name} {value} is no multiple of {factor}"
    if D // TILE > MAX_PARTS or (D // TILE) % 2:
        return f"width {D} has {D // TILE} tiles; accepted: even, up to {MAX_PARTS}"
    largest = max(
        shared_bytes(D, 1, TILE, gate_up=True),
        shared_bytes(D, options.qkv, TILE),
        shared_bytes(F, options.down, TILE),
        shared_bytes(q, options.out, TILE),
    )
    if largest > MAX_SHARED:
        return f"a block would need {largest} bytes of shared memory of {MAX_SHARED}"
    return None


def defines(expert: GemmaConfig, options: Options, rows: int) -> dict[str, int]:
    """Constants of products.cu."""
    return {
        "ROWS": rows,
        "WIDTH": expert.width,
        "MLP": expert.mlp_dim,
        "HEADS": expert.num_heads,
        "HEAD_DIM": expert.head_dim,
        "QKV_SPLIT": options.qkv,
        "OUT_SPLIT": options.out,
        "DOWN_SPLIT": options.down,
    }


class Products:
    """Compiled kernels of one model size; one set per number of padded rows, made on first use."""

    def __init__(self, config: Pi05Config, options: Options, device: torch.device) -> None:
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
            q = e.num_heads * e.head_dim
            module = launch.load("products.cu", defines(e, o, rows), self.device)
            self._sets[rows] = {
                name: module.kernel(name, shared_bytes(K, split, rows, name == "gate_up"))
                for name, K, split in (
                    ("qkv_rope", e.width, o.qkv),
                    ("out_residual", q, o.out),
                    ("gate_up", e.width, 1),
                    ("down_residual", e.mlp_dim, o.down),
                )
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
        o = self.options
        split = {"qkv_rope": o.qkv, "out_residual": o.out, "down_residual": o.down}.get(name, 1)
        self.kernels(horizon)[name].launch(
            (columns // TILE * split,), THREADS, args, cluster=split, dependent=dependent
        )
