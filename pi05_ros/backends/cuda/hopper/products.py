"""Launches of `products.cu`: the four products of an expert layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pi05_ros.backends.cuda.hopper import euler, launch
from pi05_ros.backends.cuda.packing import CHUNK, TILE
from pi05_ros.model import Pi05Config
from pi05_ros.model.config import GemmaConfig

THREADS = 128
MAX_SHARED = 227 * 1024  # bytes of a block on compute capability 9.0
# Shared memory that blocks ask for at least in e4m3, so that one block of out and two of down at
# most share a processor: the device would put more there while others idle, and the kernels
# behind, which find no room beside them, would ask for their weights too late.
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
        qkv_split: blocks of q, k, v that divide K among them: 1, 2, 4 or 8.
        gate_up_room: KB of shared memory that a block of gate_up may take; with less than it
            needs for all its activations these take turns.
        down_room: same, for the down projection.
        look_ahead: whether gate_up has L2 take in the weights of the down projection.
        coded: operands are e4m3, not bf16.

    """

    qkv: int = 2
    out: int = 4
    down: int = 8
    gate_delay: int = 0
    qkv_split: int = 1
    gate_up_room: int = MAX_SHARED // 1024
    down_room: int = MAX_SHARED // 1024
    look_ahead: int = 0
    coded: bool = True

    @property
    def operand_bytes(self) -> int:
        """Bytes of a weight or an activation."""
        return 1 if self.coded else 2


@dataclass(frozen=True)
class Block:
    """Shared memory of a block, the sum that `Shared` in products.cu makes.

    Attributes:
        chunks: of K, each with 64 rows of weights.
        loaded: action rows.
        behind: bytes of exchange or result, factors of the rows and barriers.
        slots: chunks of activations that find room at the same time.

    """

    chunks: int
    loaded: int
    behind: int
    slots: int

    @property
    def bytes(self) -> int:
        """All of it."""
        return (self.chunks * TILE + self.slots * self.loaded) * CHUNK + self.behind

    @property
    def runs(self) -> bool:
        """Whether chunks of activations can take turns."""
        return self.slots == self.chunks or self.slots >= 2


def padded_rows(horizon: int) -> int:
    """Action rows that the matrix units work on."""
    return -(-horizon // 8) * 8


def row_blocks(rows: int, groups: int) -> tuple[int, int]:
    """Action rows of a group (whole eights), and how many groups that makes."""
    each = -(-rows // 8 // groups) * 8
    return each, -(-rows // each)


def blocks(expert: GemmaConfig, options: ProductOptions, rows: int) -> dict[str, Block]:
    """How a block of each kernel divides its shared memory."""
    D, F, q = expert.width, expert.mlp_dim, expert.num_heads * expert.head_dim
    o, size = options, options.operand_bytes

    def block(
        K: int, split: int, loaded: int, room: int = MAX_SHARED // 1024, result: int = 0
    ) -> Block:
        chunks = K * size // CHUNK // split
        # of a cluster: 16 columns in bf16 per row and warp
        exchange = split * THREADS // 32 * (loaded // split | 1) * 32 if split > 1 else result
        behind = exchange + 3 * TILE * 4 + 8 * (chunks + 1)
        free = room * 1024 - behind - chunks * TILE * CHUNK
        return Block(chunks, loaded, behind, max(0, min(chunks, free // (loaded * CHUNK))))

    return {
        "qkv_rope": block(D, o.qkv_split, row_blocks(rows, o.qkv)[0]),
        "out_residual": block(q, o.out, rows),
        "gate_up": block(D, 1, rows, o.gate_up_room, rows * (TILE // 2 * size + 16)),
        "down_residual": block(F, o.down, rows, o.down_room),
    }


def shared_bytes(expert: GemmaConfig, options: ProductOptions, rows: int) -> dict[str, int]:
    """Shared memory of a block of each kernel."""
    return {name: block.bytes for name, block in blocks(expert, options, rows).items()}


def unsupported(
    config: Pi05Config, options: ProductOptions, capability: tuple[int, int], rows: int = TILE
) -> str | None:
    """Why these kernels cannot run the expert of `config` on padded rows; None where they can."""
    expert = config.expert
    D, F, hd = expert.width, expert.mlp_dim, expert.head_dim
    q = expert.num_heads * hd
    if capability != (9, 0):
        return f"they need compute capability 9.0, this is {capability[0]}.{capability[1]}"
    size = options.operand_bytes
    for name, value, factor in (
        ("width", D, max(CHUNK, CHUNK * options.qkv_split // size)),
        ("MLP size", F, max(CHUNK, CHUNK * options.down // size)),
        ("attention width", q, max(CHUNK, CHUNK * options.out // size)),
        ("head size", hd, TILE),
    ):
        if value % factor:
            return f"{name} {value} is no multiple of {factor}"
    if D // TILE > MAX_PARTS or (D // TILE) % 2:
        return f"width {D} has {D // TILE} tiles; accepted: even, up to {MAX_PARTS}"
    for name, block in blocks(expert, options, rows).items():
        if not block.runs:
            return f"weights leave {name} too little of {MAX_SHARED} bytes of shared memory"
    if not options.coded:  # Triton's kernel between the steps writes images in e4m3 only
        return euler.unsupported(config)
    return None


def defines(expert: GemmaConfig, options: ProductOptions, rows: int) -> dict[str, int]:
    """Constants of products.cu."""
    of = blocks(expert, options, rows)
    return {
        "ROWS": rows,
        "WIDTH": expert.width,
        "MLP": expert.mlp_dim,
        "HEADS": expert.num_heads,
        "HEAD_DIM": expert.head_dim,
        "CODED": int(options.coded),
        "QKV_GROUPS": options.qkv,
        "QKV_SPLIT": options.qkv_split,
        "OUT_SPLIT": options.out,
        "DOWN_SPLIT": options.down,
        "GATE_DELAY": options.gate_delay,
        "LOOK_AHEAD": options.look_ahead,
        "QKV_SLOTS": of["qkv_rope"].slots,
        "OUT_SLOTS": of["out_residual"].slots,
        "GATE_UP_SLOTS": of["gate_up"].slots,
        "DOWN_SLOTS": of["down_residual"].slots,
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
            least = LEAST_SHARED if o.coded else {}
            self._sets[rows] = {
                name: module.kernel(name, max(size, least.get(name, 0)))
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
        splits = {"qkv_rope": o.qkv_split, "out_residual": o.out, "down_residual": o.down}
        split = splits.get(name, 1)
        blocks = columns // TILE * split
        if name == "qkv_rope":
            blocks *= row_blocks(rows, o.qkv)[1]
        self.kernels(horizon)[name].launch(
            (blocks,), THREADS, args, cluster=split, dependent=dependent
        )
