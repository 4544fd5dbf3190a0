"""The action expert on the Hopper kernels: five launches per layer and step, in FP8 or BF16."""

from __future__ import annotations

import math

from torch import Tensor

from pi05_ros.backends.cuda.buffers import Buffers, Slot
from pi05_ros.backends.cuda.hopper.euler import EulerStep
from pi05_ros.backends.cuda.hopper.euler import unsupported as no_euler_step
from pi05_ros.backends.cuda.hopper.products import ProductOptions, Products
from pi05_ros.backends.cuda.packing import TILE
from pi05_ros.backends.cuda.stages.choice import product_options
from pi05_ros.backends.cuda.stages.denoise import DenoiseKernels
from pi05_ros.backends.cuda.stages.modulation import Modulation
from pi05_ros.backends.cuda.stages.prefill import PrefixKernels
from pi05_ros.backends.cuda.stages.stage import LOG2E
from pi05_ros.backends.cuda.tuning import Tuning
from pi05_ros.backends.cuda.weights import Linear, PackedExpertLayer, Weights
from pi05_ros.backends.errors import BackendError


class HopperDenoiseKernels(DenoiseKernels):
    """Drop-in for `DenoiseKernels` where the expert's weights are packed as images."""

    image = True

    def __init__(
        self, weights: Weights, buffers: Buffers, tuning: Tuning, prefix: PrefixKernels
    ) -> None:
        super().__init__(weights, buffers, tuning, prefix)
        self._products: dict[ProductOptions, Products] = {}
        self.sum_parts = weights.config.expert.width // TILE
        self._euler_step: EulerStep | None = None
        self._states = (buffers.state, buffers.state.clone())  # read and written in turns

    def _divided(self, horizon: int, rows_cap: int) -> Products:
        kind = self.weights.precision.denoise
        chosen = product_options(self.tuning, horizon, rows_cap, kind)
        if chosen not in self._products:
            self._products[chosen] = Products(self.weights.config, chosen, self.buffers.dx.device)
        return self._products[chosen]

    def _amax(self, linear: Linear) -> Tensor | None:
        return self.prefix.site(linear)[1] if self.monitor and linear.coded else None

    def _layer(
        self,
        horizon: int,
        mod: Modulation,
        slot: Slot,
        rows_cap: int,
        step: int,
        index: int,
        layer: PackedExpertLayer,
        dependent: bool,
    ) -> None:
        b, config = self.buffers, self.weights.config.expert
        heads, hd = config.num_heads, config.head_dim
        columns = (heads + 2) * hd
        site = self.prefix.site
        k, v = slot.k[index], slot.v[index]
        bias = mod.bias[0, index]
        clock = (step, mod.steps, horizon)
        products = self._divided(horizon, rows_cap)
        products.launch(
            "qkv_rope",
            horizon,
            columns,
            (
                b.mirror, layer.qkv.weight, layer.qkv.scale, site(layer.qkv)[0], b.sum_attn,
                bias, mod.bias.stride(0), b.frozen, b.cos, b.sin, slot.length, b.dq, k, v,
                *clock, LOG2E / math.sqrt(hd),
            ),
            dependent,
        )  # fmt: skip
        if not self.attention.run_clusters(horizon, rows_cap, slot, index, layer.out):
            raise BackendError(f"no attention kernel takes {rows_cap} rows and {horizon} actions")
        mods = mod.mod[0, 2 * index : 2 * index + 3]
        self._project(
            products,
            "out_residual",
            b.dattn,
            layer.out,
            layer.gate_up,
            mods[:2],
            b.sum_mlp,
            mod,
            clock,
        )
        products.launch(
            "gate_up",
            horizon,
            2 * config.mlp_dim,
            (
                b.mirror, layer.gate_up.weight, layer.gate_up.scale, site(layer.gate_up)[0],
                b.sum_mlp, bias[columns:], mod.bias.stride(0), b.frozen, b.dact,
                site(layer.down)[0], self._amax(layer.down), layer.down.weight, *clock,
            ),
            self.pdl,
        )  # fmt: skip
        # Behind the last layer comes the final norm, which euler_step computes itself; the mirror
        # written here is then not read, and its site is the first layer's.
        last = index + 1 == len(self.weights.expert)
        following = self.weights.expert[0 if last else index + 1].qkv
        self._project(
            products,
            "down_residual",
            b.dact,
            layer.down,
            following,
            mods[1:],
            b.sum_attn,
            mod,
            clock,
            not last,
        )

    def _euler(self, horizon: int, mod: Modulation, step: int, guided: bool = False) -> None:
        """As in `DenoiseKernels`, in CUDA C++ where the sizes allow it."""
        w, b = self.weights, self.buffers
        if no_euler_step(w.config) is not None:
            super()._euler(horizon, mod, step, guided)
            return
        target = w.expert[0].qkv
        if self._euler_step is None:
            self._euler_step = EulerStep(w.config, b.dx.device, target.coded)
        first, last = step < 0, step == mod.steps - 1
        old = b.noise if first else self._states[step % 2]
        new = b.actions if last else self._states[(step + 1) % 2]
        self._euler_step.launch(
            horizon,
            (
                b.dx, old, new, w.action_out[0], mod.velocity, mod.mod[0, -1, 0], *w.action_in,
                mod.mod[0, 0, 0], mod.mod.stride(0), b.frozen, b.mirror,
                self.prefix.site(target)[0], b.sum_attn, None if last else self._amax(target),
                b.target, b.guide_weight, b.guide_clock, step, mod.steps, horizon,
                1.0 / mod.steps, int(guided),
            ),
            self.pdl and not first,
        )  # fmt: skip

    def _project(
        self,
        products: Products,
        name: str,
        image: Tensor,
        linear: Linear,
        target: Linear,
        mods: Tensor,
        sums: Tensor,
        mod: Modulation,
        clock: tuple[int, int, int],
        monitored: bool = True,
    ) -> None:
        """Projection with residual: gate of the first norm of `mods`, scale of the second."""
        b = self.buffers
        products.launch(
            name,
            clock[2],
            self.weights.config.expert.width,
            (
                image, linear.weight, linear.scale, self.prefix.site(linear)[0], mods[0, 2],
                mods[1, 0], mod.mod.stride(0), b.frozen, b.dx, b.mirror,
                self.prefix.site(target)[0], sums, self._amax(target) if monitored else None,
                *clock,
            ),
            self.pdl,
        )  # fmt: skip
