"""Static device memory of one engine: every graph reads and writes the same buffers.

Rows are allocated for the largest bucket; stages use the first rows of each buffer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pi05_ros.backends.cuda import packing
from pi05_ros.backends.cuda.hopper.vision.vision_products import moments_room
from pi05_ros.backends.cuda.packing import CHUNK
from pi05_ros.backends.cuda.weights import (
    PATCH_DTYPE,
    Weights,
    half,
    input_dtype,
    patch_columns,
)
from pi05_ros.model.gemma import rope_frequencies

ACTION_ROWS = 64  # rows of the denoise kernels: horizons up to 64
MAX_SPLITS = 64  # key splits of attention in denoise
MAX_PREFILL_SPLITS = 4
MAX_FC2_SPLITS = 8
MAX_RESIDUAL_SPLIT = 8  # slices of K in the denoise projections
MAX_STEPS = 20
SUM_PARTS = 128  # most column tiles whose sums of squares are kept


@dataclass
class Slot:
    """One KV cache: prefix keys and values, then room for the action rows."""

    k: Tensor  # bf16 [L, Tmax + 64, head_dim]
    v: Tensor
    length: Tensor  # int32 [1], valid prefix rows


@dataclass(frozen=True)
class CudaKVCache:
    """What `prefill` gave: a slot, and the write of it that the cache stands for.

    Attributes:
        slot: index in `Buffers.slots`.
        serial: of the write, unique among all engines of the process; a later write into the
            slot ends the cache.
        views: cameras V.
        bucket: prompt rows, of which ``length`` are valid.
        length: prompt tokens.

    """

    slot: int
    serial: int
    views: int
    bucket: int
    length: int


class Buffers:
    """Allocate everything for `views` cameras and prompts of `max_prompt` tokens.

    `part_rows`: rows of partial sums of the prefix' down projection, 0 where it makes none.
    """

    def __init__(
        self,
        weights: Weights,
        views: int,
        max_prompt: int,
        slots: int,
        device: torch.device,
        part_rows: int = 0,
    ) -> None:
        config = weights.config
        vision, vlm, expert = config.vision, config.vlm, config.expert
        self.views = views
        self.tokens = vision.tokens
        image_rows = views * self.tokens
        rows = image_rows + max_prompt
        hd, heads = vlm.head_dim, vlm.num_heads

        wide = half(device)

        def make(*shape: int, dtype: torch.dtype = wide) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        f32 = torch.float32
        v8 = input_dtype(weights.precision.vision, wide)
        p8 = input_dtype(weights.precision.prefill, wide)
        d8 = input_dtype(weights.precision.denoise, wide)
        # vision
        D, F = vision.hidden_size, vision.intermediate_size
        self.patches = make(image_rows, patch_columns(config), dtype=PATCH_DTYPE)
        self.patch_out = make(image_rows, D, dtype=PATCH_DTYPE)
        self.vx = make(image_rows, D)
        self.vh = make(image_rows, D, dtype=v8)
        self.vpost = make(image_rows, D)
        self.vqkv = make(image_rows, 3 * D)
        self.vattn = make(image_rows, D, dtype=v8)
        self.vy = make(image_rows, D)
        self.vwide = make(image_rows, F) if v8 != wide else make(0)
        self.vparts = make(MAX_FC2_SPLITS * image_rows, D)
        self.vact = make(image_rows, F, dtype=v8)
        self.vmoments = make(moments_room(image_rows, D), dtype=f32)
        # prefill
        D, F = vlm.width, vlm.mlp_dim
        self.prompt = make(max_prompt, dtype=torch.int64)
        self.embeds = make(rows, D)
        self.x = make(rows, D)
        self.h = make(rows, D, dtype=p8)
        self.qkv = make(rows, (heads + 2) * hd)
        self.kv_only = make(rows, 2 * hd)
        self.q = make(rows * heads, hd)
        self.attn = make(rows * heads, hd, dtype=p8)
        self.y = make(rows, D)
        self.wide = make(0 if weights.fused_gate_up else rows, 2 * F)
        if part_rows:  # hopper/prefill.cu: images in chunks of 128 columns
            cap = packing.image_rows(rows)
            self.h_image = make(D // CHUNK, cap, CHUNK, dtype=p8)
            self.act = make(F // CHUNK, cap, CHUNK, dtype=p8)
            self.attn_image = make(heads * hd // CHUNK, cap, CHUNK, dtype=p8)
            self.down_parts = make(part_rows, D)
        else:
            self.act = make(rows, F, dtype=p8)
        self.parts = make(MAX_PREFILL_SPLITS * rows * heads, hd)
        self.lse = make(MAX_PREFILL_SPLITS * rows * heads, dtype=f32)
        self.slots = [
            Slot(
                k=make(vlm.depth, rows + ACTION_ROWS, hd),
                v=make(vlm.depth, rows + ACTION_ROWS, hd),
                length=make(1, dtype=torch.int32),
            )
            for _ in range(slots)
        ]
        # denoise
        A, D, F = config.action_dim, expert.width, expert.mlp_dim
        M = ACTION_ROWS
        self.noise = make(M, A, dtype=f32)
        self.state = make(M, A, dtype=f32)
        self.actions = make(M, A, dtype=f32)
        self.dx = make(M, D, dtype=f32)
        self.mirror = make(M, D, dtype=d8)
        self.sum_attn = make(SUM_PARTS, M, dtype=f32)  # of x at the first norm of a layer
        self.sum_mlp = make(SUM_PARTS, M, dtype=f32)  # of x at the second
        self.dq = make(M * heads, hd)
        self.dparts = make(MAX_SPLITS * M * heads, hd)  # own: prefill may run beside denoise
        self.dlse = make(MAX_SPLITS * M * heads, dtype=f32)
        self.dattn = make(M * heads, hd, dtype=d8)
        self.dact = make(M, F, dtype=d8)
        self.residual_parts = make(MAX_RESIDUAL_SPLIT * M * D, dtype=f32)
        self.arrived = make(SUM_PARTS, dtype=torch.int32)
        self.frozen = make(1, dtype=torch.int32)
        self.target = make(M, A, dtype=f32)  # guidance: the previous chunk,
        self.guide_weight = make(M, dtype=f32)  # how strongly each row is tied to it,
        self.guide_clock = make(MAX_STEPS, 2, dtype=f32)  # flow time and gain of each step
        self.seed = make(1, dtype=torch.int64)
        # scales and largest magnitudes of the sites
        count = len(weights.sites)
        # cuBLASLt wants a scale's address on 16 bytes: four floats per site, the first counts
        self.scale_cells = torch.ones(count, 4, dtype=f32, device=device)
        self.scales = self.scale_cells[:, 0]
        self.amax = make(count, dtype=f32)
        self.one = torch.ones((), dtype=f32, device=device)
        self.ones = torch.ones(2 * max(vlm.mlp_dim, expert.mlp_dim), dtype=f32, device=device)
        # rotary tables, float32 [positions, head_dim / 2]
        frequencies = rope_frequencies(hd, config.rope, device)
        angles = torch.arange(rows + ACTION_ROWS, device=device).float()[:, None] * frequencies
        self.cos, self.sin = angles.cos().contiguous(), angles.sin().contiguous()

    def rows_of(self, cache: CudaKVCache) -> int:
        """Prefix rows of a KV cache's bucket: image tokens, then prompt rows."""
        return cache.views * self.tokens + cache.bucket
