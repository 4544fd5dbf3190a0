"""Vision and prefill with the prefix on the Hopper kernels."""

from __future__ import annotations

import logging
import math

from torch import Tensor

from pi05_ros.backends.cuda.buffers import Buffers, Slot
from pi05_ros.backends.cuda.hopper.prefix import prefix_attention
from pi05_ros.backends.cuda.hopper.prefix.prefill import PrefixProducts
from pi05_ros.backends.cuda.hopper.prefix.prefix_projections import PrefixProjections
from pi05_ros.backends.cuda.stages.choice import prefill_options
from pi05_ros.backends.cuda.stages.prefill import PrefixKernels
from pi05_ros.backends.cuda.stages.stage import LOG2E
from pi05_ros.backends.cuda.tuning import Tuning
from pi05_ros.backends.cuda.weights import Linear, Weights
from pi05_ros.backends.errors import BackendError

log = logging.getLogger("pi05_ros.cuda")


class HopperPrefixKernels(PrefixKernels):
    """`PrefixKernels` on prefill.cu.

    For heads like those of pi0.5 also on prefix_projections.cu and prefix_attention.cu.
    """

    def __init__(
        self, weights: Weights, buffers: Buffers, tuning: Tuning, dependent: bool
    ) -> None:
        super().__init__(weights, buffers, tuning, dependent)
        self.products = PrefixProducts(weights.config.vlm, weights.embedding.device)
        vlm, rows = weights.config.vlm, buffers.embeds.shape[0]
        reason = prefix_attention.unsupported(vlm.num_heads, vlm.head_dim, rows)
        self.attends = reason is None
        projects = weights.prefix[0].qkv.image
        device = weights.embedding.device
        self.projections = PrefixProjections(vlm, device) if projects else None
        if reason is not None:
            log.info("attention of the prefix runs on the Triton kernels: %s", reason)

    def _normed(self, rows: int) -> Tensor:
        return self.buffers.h_image if self.projections else super()._normed(rows)

    def _qkv(self, rows: int, linear: Linear, slot: Slot, index: int, only_kv: bool) -> None:
        if self.projections is None:
            super()._qkv(rows, linear, slot, index, only_kv)
            return
        b = self.buffers
        assert linear.scale is not None
        self.projections.qkv(
            b.h_image,
            linear.weight,
            (linear.scale, self.site(linear)[0]),
            (b.cos, b.sin),
            (None if only_kv else b.q, slot.k[index], slot.v[index]),
            LOG2E / math.sqrt(self.weights.config.vlm.head_dim),
            rows=rows,
            dependent=self.pdl,
        )

    def _out(self, rows: int, linear: Linear) -> None:
        if self.projections is None:
            super()._out(rows, linear)
            return
        b = self.buffers
        self.projections.out(b.attn_image, linear.weight, b.y, rows=rows, dependent=self.pdl)

    def _attention(self, rows: int, slot: Slot, index: int, target: Linear) -> None:
        if not self.attends:
            super()._attention(rows, slot, index, target)
            return
        b = self.buffers
        scale, amax = self.site(target)
        prefix_attention.launch(
            b.q,
            slot.k[index],
            slot.v[index],
            slot.length,
            b.attn_image if self.projections else b.attn,
            scale,
            amax if self.monitor else None,
            rows=rows,
            options=prefix_attention.options_for(rows, self.processors),
            dependent=self.pdl,
        )

    def _mlp(
        self, x: Tensor, attention: Linear, gate_up: Linear, down: Linear, following: Linear
    ) -> None:
        b = self.buffers
        rows = x.shape[0]
        total = b.x[:rows]
        options = prefill_options(self.tuning, rows)
        out_scale, amax = self.site(down)
        assert gate_up.scale is not None
        if options.splits * rows > b.down_parts.shape[0]:
            raise BackendError(f"no room for {options.splits} partial sums of {rows} rows")
        unscaled = 1 if self.projections else 0
        self._residual(x, b.y[:rows], attention, total, b.h_image, gate_up, parts=unscaled)
        self.products.gate_up(
            b.h_image,
            gate_up.weight,
            (gate_up.scale, self.site(gate_up)[0]),
            b.act,
            out_scale,
            amax if self.monitor else None,
            rows=rows,
            options=options,
            dependent=self.pdl,
        )
        self.products.down(
            b.act, down.weight, b.down_parts, rows=rows, options=options, dependent=self.pdl
        )
        self._residual(
            total,
            b.down_parts,
            down,
            total,
            self._normed(rows),
            following,
            parts=options.splits,
        )
