"""Launch sequence of the flow: N steps of the expert, five or six launches per layer."""

from __future__ import annotations

import math

from torch import Tensor

from pi05_ros.backends.cuda.buffers import (
    ACTION_ROWS,
    MAX_RESIDUAL_SPLIT,
    SUM_PARTS,
    Buffers,
    Slot,
)
from pi05_ros.backends.cuda.stages.beside_prefill import Gate
from pi05_ros.backends.cuda.stages.denoise_attention import DenoiseAttention
from pi05_ros.backends.cuda.stages.modulation import Modulation
from pi05_ros.backends.cuda.stages.prefill import PrefixKernels
from pi05_ros.backends.cuda.stages.stage import LOG2E
from pi05_ros.backends.cuda.triton import denoise, flow_step
from pi05_ros.backends.cuda.tuning import Tuning
from pi05_ros.backends.cuda.weights import Linear, PackedExpertLayer, Weights
from pi05_ros.backends.errors import BackendError


def fit(options: dict[str, int], N: int, K: int) -> dict[str, int]:
    """Shrink tile sizes to what divides ``[N, K]``; sizes of the real model pass unchanged."""
    out = dict(options)
    split = out.get("split", 1)
    if split > MAX_RESIDUAL_SPLIT:
        raise BackendError(f"{split} slices of K; accepted: 1 to {MAX_RESIDUAL_SPLIT}")
    K //= split
    while N % out["BN"]:
        out["BN"] //= 2
    while K % out["BK"]:
        out["BK"] //= 2
    if out["BN"] < 16 or out["BK"] < 16:
        raise BackendError(f"a matrix of {N} x {K} does not divide into tiles of 16 x 16")
    return out


class DenoiseKernels:
    """The action expert on static buffers.

    Attributes:
        image: whether operands are kept as swizzled images (hopper/headers/layout.cuh).
        sum_parts: tiles of columns whose sums of squares the first norm of a layer reads.

    """

    image = False

    def __init__(
        self, weights: Weights, buffers: Buffers, tuning: Tuning, prefix: PrefixKernels
    ) -> None:
        self.weights = weights
        self.buffers = buffers
        self.tuning = tuning
        self.prefix = prefix
        self.pdl = prefix.pdl
        self.launch = prefix.launch
        self.attention = DenoiseAttention(weights, buffers, tuning, prefix, self.image)
        config = weights.config.expert
        kind = weights.precision.denoise
        D, F = config.width, config.mlp_dim
        q = config.num_heads * config.head_dim
        both = q + 2 * config.num_kv_heads * config.head_dim
        self.options = {
            name: fit(tuning.kernel("denoise", kind, name), N, K)
            for name, N, K in (
                ("qkv", min(both, config.head_dim * both), D),
                ("out", D, q),
                ("gate_up", 2 * F, D),
                ("down", D, F),
            )
        }
        while config.head_dim % self.options["qkv"]["BN"]:
            self.options["qkv"]["BN"] //= 2
        self.sum_parts = D // self.options["down"]["BN"]
        for name in ("out", "down"):
            if D // self.options[name]["BN"] > SUM_PARTS:
                raise BackendError(f"expert width {D} needs a {name} tile of {D // SUM_PARTS}+")

    @property
    def monitor(self) -> bool:
        """Whether kernels record the largest input of each FP8 GEMM."""
        return self.prefix.monitor

    def run(
        self,
        horizon: int,
        mod: Modulation,
        slot: Slot,
        rows_cap: int,
        guided: bool = False,
        gate: Gate | None = None,
    ) -> None:
        """Noise -> actions.

        Args:
            horizon: rows.
            mod: tables of the number of steps.
            slot: keys and values.
            rows_cap: most prefix rows that `slot` may hold in this graph.
            guided: pull towards the previous chunk (`Buffers.target` and what belongs to it).
            gate: called in the first step before each layer, with its index, where keys and
                values come while that step runs: makes the stream wait for those of the layer.

        """
        self._euler(horizon, mod, -1)
        for step in range(mod.steps):
            for index, layer in enumerate(self.weights.expert):
                dependent = self.pdl
                if step == 0 and gate is not None:
                    gate(index)
                    dependent = False
                self._layer(horizon, mod, slot, rows_cap, step, index, layer, dependent)
            self._euler(horizon, mod, step, guided)

    def _common(self, options: dict[str, int], dependent: bool) -> dict[str, object]:
        return {
            "BM": ACTION_ROWS,
            "BN": options["BN"],
            "BK": options["BK"],
            "STAGES": options["stages"],
            "EARLY": self.tuning.flag("early_trigger"),
            "PDL": dependent,
            "num_warps": options["warps"],
            "num_stages": options["stages"],
            **(self.launch if dependent else {}),
        }

    def _scale(self, linear: Linear) -> Tensor:
        return self.buffers.ones if linear.scale is None else linear.scale

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
        D, F, hd, heads = config.width, config.mlp_dim, config.head_dim, config.num_heads
        k, v = slot.k[index], slot.v[index]
        steps = mod.steps
        mod_stride = mod.mod.stride(0)
        bias_stride = mod.bias.stride(0)
        bias = mod.bias[0, index]
        first, second, third = (
            mod.mod[0, 2 * index],
            mod.mod[0, 2 * index + 1],
            mod.mod[0, 2 * index + 2],
        )
        qkv_rows = layer.qkv.weight.shape[0]

        options = self.options["qkv"]
        scale, _ = self.prefix.site(layer.qkv)
        denoise.qkv_rope[(qkv_rows // options["BN"],)](
            b.mirror,
            layer.qkv.weight,
            self._scale(layer.qkv),
            scale,
            b.sum_attn,
            bias,
            bias_stride,
            b.frozen,
            b.cos,
            b.sin,
            slot.length,
            b.dq,
            k,
            v,
            step,
            steps,
            horizon,
            LOG2E / math.sqrt(hd),
            D=D,
            HEADS=heads,
            HEAD_DIM=hd,
            PARTS=D // self.options["down"]["BN"],
            **self._common(options, dependent),
        )

        self.attention.run(horizon, rows_cap, slot, index, layer.out)
        self._residual(
            b.dattn, layer.out, "out", first[2], second[0], mod_stride, b.sum_mlp,
            layer.gate_up, step, steps, horizon,
        )  # fmt: skip

        options = self.options["gate_up"]
        scale, _ = self.prefix.site(layer.gate_up)
        out_scale, amax = self.prefix.site(layer.down)
        denoise.gate_up[(2 * F // options["BN"],)](
            b.mirror,
            layer.gate_up.weight,
            self._scale(layer.gate_up),
            scale,
            b.sum_mlp,
            bias[qkv_rows:],
            bias_stride,
            b.frozen,
            b.dact,
            out_scale,
            amax,
            step,
            steps,
            horizon,
            D=D,
            F=F,
            PARTS=D // self.options["out"]["BN"],
            MONITOR=self.monitor and layer.down.coded,
            **self._common(options, self.pdl),
        )

        # Behind the last layer comes the final norm, which euler_step computes itself; the mirror
        # written here is then not read, and its site is the first layer's.
        following = self.weights.expert[(index + 1) % len(self.weights.expert)].qkv
        monitored = index + 1 < len(self.weights.expert)
        self._residual(
            b.dact, layer.down, "down", second[2], third[0], mod_stride, b.sum_attn,
            following, step, steps, horizon, monitored,
        )  # fmt: skip

    def _residual(
        self,
        a: Tensor,
        linear: Linear,
        name: str,
        gate: Tensor,
        next_scale: Tensor,
        mod_stride: int,
        sums: Tensor,
        target: Linear,
        step: int,
        steps: int,
        horizon: int,
        monitored: bool = True,
    ) -> None:
        b = self.buffers
        options = self.options[name]
        N, K = linear.weight.shape
        scale, _ = self.prefix.site(linear)
        next_site, amax = self.prefix.site(target)
        split = options["split"]
        denoise.residual_gemm[(N // options["BN"], split)](
            a,
            linear.weight,
            self._scale(linear),
            scale,
            gate,
            next_scale,
            mod_stride,
            b.frozen,
            b.dx,
            b.mirror,
            next_site,
            sums,
            b.residual_parts,
            b.arrived,
            amax,
            step,
            steps,
            horizon,
            K=K,
            N=N,
            SPLIT=split,
            MONITOR=self.monitor and target.coded and monitored,
            **self._common(options, self.pdl),
        )

    def _euler(self, horizon: int, mod: Modulation, step: int, guided: bool = False) -> None:
        """Between steps; -1 is the entry from noise. Only the entry waits for everything before
        it (no dependent launch), so that kernels behind it may read the prefix above their wait.
        """
        w, b = self.weights, self.buffers
        first, last = step < 0, step == mod.steps - 1
        target = w.expert[0].qkv
        scale, amax = self.prefix.site(target)
        options = self.tuning.kernel("denoise", "step")
        pdl = self.pdl and not first
        D = w.config.expert.width
        chunk = options["CHUNK"]
        while D % chunk:  # the kernel takes whole chunks, of a power of two columns
            chunk //= 2
        flow_step.euler_step[(horizon,)](
            b.dx,
            b.state,
            *w.action_out,
            mod.mod[0, -1],
            *w.action_in,
            mod.mod[0, 0],
            mod.mod.stride(0),
            b.frozen,
            b.mirror,
            scale,
            b.sum_attn,
            amax,
            b.noise,
            b.actions,
            b.target,
            b.guide_weight,
            b.guide_clock,
            step,
            mod.steps,
            1.0 / mod.steps,
            D=D,
            A=w.config.action_dim,
            CHUNK=chunk,
            BM=ACTION_ROWS,
            PARTS=self.sum_parts,
            IMAGE=self.image,
            FIRST=first,
            LAST=last,
            GUIDED=guided,
            PDL=pdl,
            MONITOR=self.monitor and target.coded and not last,
            num_warps=options["warps"],
            **(self.launch if pdl else {}),
        )
