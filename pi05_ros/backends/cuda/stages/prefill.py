"""Launch sequence of the prefill stage: image and prompt tokens to keys and values."""

from __future__ import annotations

import math
from collections.abc import Callable

import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from pi05_ros.backends.cuda.buffers import MAX_PREFILL_SPLITS, Slot
from pi05_ros.backends.cuda.stages.stage import LOG2E
from pi05_ros.backends.cuda.stages.vision import VisionKernels
from pi05_ros.backends.cuda.triton import attention, gemm, prefill
from pi05_ros.backends.cuda.weights import Linear
from pi05_ros.backends.errors import BackendError


class PrefixKernels(VisionKernels):
    """Vision and prefill on static buffers."""

    def embed_prompt(self, views: int, bucket: int, slot: Slot) -> None:
        """Prompt ids -> rows of `embeds` behind the images."""
        w, b = self.weights, self.buffers
        D = w.config.vlm.width
        prefill.embed_tokens[(bucket,)](
            w.embedding,
            b.prompt,
            slot.length,
            b.embeds,
            views * b.tokens,
            math.sqrt(D),
            VOCAB=w.embedding.shape[0],
            D=D,
            DP=triton.next_power_of_2(D),
        )

    def prefill(self, rows: int, slot: Slot, cached: Callable[[], None] | None = None) -> None:
        """`embeds` -> K and V of every layer in `slot`, for `rows` rows (a bucket).

        `cached` is called when the kernel that writes K and V of a layer is enqueued.
        """
        w, b = self.weights, self.buffers
        x = b.embeds[:rows]
        self._residual(x, None, None, x, self._normed(rows), w.prefix[0].qkv)
        for index, layer in enumerate(w.prefix):
            if layer.out is None or layer.gate_up is None or layer.down is None:
                self._qkv(rows, layer.qkv, slot, index, only_kv=True)
                if cached is not None:
                    cached()
                break
            self._qkv(rows, layer.qkv, slot, index, only_kv=False)
            if cached is not None:
                cached()
            self._attention(rows, slot, index, layer.out)
            self._out(rows, layer.out)
            self._mlp(x, layer.out, layer.gate_up, layer.down, w.prefix[index + 1].qkv)
            x = b.x[:rows]

    def _normed(self, rows: int) -> Tensor:
        """Where the input of the q, k, v product is kept."""
        return self.buffers.h[:rows]

    def _qkv(self, rows: int, linear: Linear, slot: Slot, index: int, only_kv: bool) -> None:
        """Queries into `q`, keys and values into the cache."""
        out = self.buffers.kv_only[:rows] if only_kv else self.buffers.qkv[:rows]
        self.matmul(self._normed(rows), linear, out)
        self._rope(out, linear, slot, index, only_kv)

    def _out(self, rows: int, linear: Linear) -> None:
        """Projection of what attention left, into `y`."""
        b, heads = self.buffers, self.weights.config.vlm.num_heads
        self.matmul(b.attn[: rows * heads].view(rows, -1), linear, b.y[:rows])

    def _mlp(
        self, x: Tensor, attention: Linear, gate_up: Linear, down: Linear, following: Linear
    ) -> None:
        """`x` and the projection of attention in `y` -> the sum in `b.x`, its norm in `b.h`."""
        b = self.buffers
        rows = x.shape[0]
        h, y, act, total = b.h[:rows], b.y[:rows], b.act[:rows], b.x[:rows]
        self._residual(x, y, attention, total, h, gate_up)
        if self.weights.fused_gate_up:
            self._geglu_gemm(h, gate_up, act, down)
        else:
            wide = b.wide[:rows]
            self.matmul(h, gate_up, wide)
            self._geglu(wide, gate_up, act, down)
        self.matmul(act, down, y)
        self._residual(total, y, down, total, h, following)

    def _residual(
        self,
        x: Tensor,
        y: Tensor | None,
        source: Linear | None,
        total: Tensor,
        out: Tensor,
        target: Linear,
        parts: int = 0,
    ) -> None:
        """``total = x + y`` and its norm; `parts`: y is so many partial sums without scales.

        An `out` of three dimensions is an image (hopper/packing.py).
        """
        scale, amax = self.site(target)
        fp8 = source is not None and source.coded
        D = x.shape[1]
        image = out.dim() == 3
        prefill.residual_rms[(x.shape[0],)](
            x,
            x if y is None else y,
            source.scale if source is not None and fp8 else self.buffers.ones,
            self.site(source)[0] if source is not None and parts else scale,
            total,
            out,
            scale,
            amax,
            x.numel(),
            out.shape[1] if image else 0,
            D=D,
            DP=triton.next_power_of_2(D),
            HAS_Y=y is not None,
            HAS_Y_SCALE=fp8,
            PARTS=parts,
            IMAGE=image,
            PDL=self.pdl,
            MONITOR=self.monitor and target.coded,
            num_warps=self.tuning.values["norm_warps"],
            **self.launch,
        )

    def _rope(self, qkv: Tensor, linear: Linear, slot: Slot, index: int, only_kv: bool) -> None:
        b = self.buffers
        config = self.weights.config.vlm
        prefill.rope_to_cache[(qkv.shape[0],)](
            qkv,
            linear.scale if linear.coded else b.ones,
            b.cos,
            b.sin,
            b.q,
            slot.k[index],
            slot.v[index],
            LOG2E / math.sqrt(config.head_dim),
            HEADS=config.num_heads,
            HEAD_DIM=config.head_dim,
            HAS_SCALE=linear.coded,
            ONLY_KV=only_kv,
            PDL=self.pdl,
            num_warps=4,
            **self.launch,
        )

    def _attention(self, rows: int, slot: Slot, index: int, target: Linear) -> None:
        b = self.buffers
        config = self.weights.config.vlm
        q_rows = rows * config.num_heads
        options = self.tuning.by_rows("prefill_attention", q_rows)
        tiles = triton.cdiv(q_rows, options["BM"])
        # 0: as many as fill the device once, one program per processor
        splits = options["splits"] or min(MAX_PREFILL_SPLITS, max(1, self.processors // tiles))
        if splits > MAX_PREFILL_SPLITS:
            raise BackendError(f"prefill attention in more than {MAX_PREFILL_SPLITS} splits")
        keys = triton.cdiv(triton.cdiv(rows, splits), options["BN"]) * options["BN"]
        scale, amax = self.site(target)
        direct = splits == 1
        attention.attend[(tiles, splits)](
            b.q,
            slot.k[index],
            slot.v[index],
            slot.length,
            b.attn if direct else b.parts,
            b.lse,
            scale,
            amax,
            q_rows,
            0,
            keys,
            q_rows,
            HEAD_DIM=config.head_dim,
            BM=options["BM"],
            BN=options["BN"],
            STAGES=options["stages"],
            ONE_BLOCK=False,
            DIRECT=direct,
            PDL=self.pdl,
            MONITOR=self.monitor and target.coded,
            num_warps=options["warps"],
            num_stages=options["stages"],
            **self.launch,
        )
        if not direct:
            self.combine((b.parts, b.lse, b.attn), q_rows, splits, q_rows, target)

    def combine(
        self,
        buffers: tuple[Tensor, Tensor, Tensor],
        rows: int,
        splits: int,
        stride: int,
        target: Linear,
    ) -> None:
        """Join attention splits: (parts, lse, out ``[rows, head_dim]``)."""
        options = self.tuning.by_rows("combine", rows)
        scale, amax = self.site(target)
        attention.combine[(triton.cdiv(rows, options["BM"]),)](
            *buffers,
            scale,
            amax,
            rows,
            splits,
            stride,
            HEAD_DIM=self.weights.config.vlm.head_dim,
            BM=options["BM"],
            SPLITS=triton.next_power_of_2(splits),
            PDL=self.pdl,
            MONITOR=self.monitor and target.coded,
            num_warps=options["warps"],
            **self.launch,
        )

    def _geglu(self, both: Tensor, linear: Linear, out: Tensor, target: Linear) -> None:
        b = self.buffers
        F = out.shape[1]
        block = min(self.tuning.values["geglu_block"], triton.next_power_of_2(F))
        scale, amax = self.site(target)
        gate = linear.scale if linear.scale is not None else b.ones
        prefill.geglu[(both.shape[0], triton.cdiv(F, block))](
            both,
            gate,
            gate[F:],
            out,
            scale,
            amax,
            F=F,
            BLOCK=block,
            HAS_SCALE=linear.coded,
            PDL=self.pdl,
            MONITOR=self.monitor and target.coded,
            num_warps=4,
            **self.launch,
        )

    def _geglu_gemm(self, x: Tensor, linear: Linear, out: Tensor, target: Linear) -> None:
        """Gate-up product and GeGLU in one kernel; gate and up rows alternate in the weight."""
        b = self.buffers
        rows, F = out.shape
        options = self.tuning.by_rows("fused_gate_up_" + ("fp8" if linear.coded else "bf16"), rows)
        BM, BN, BK = options["BM"], options["BN"], options["BK"]
        tiles = triton.cdiv(rows, BM) * (2 * F // BN)
        programs = min(tiles, self.processors) if options["persistent"] else tiles
        scale, amax = self.site(target)
        gemm.geglu_gemm[(programs,)](
            TensorDescriptor.from_tensor(x, [BM, BK]),
            TensorDescriptor.from_tensor(linear.weight, [BN, BK]),
            linear.scale if linear.scale is not None else b.ones,
            self.site(linear)[0],
            out,
            scale,
            amax,
            rows,
            K=linear.weight.shape[1],
            F=F,
            BM=BM,
            BN=BN,
            BK=BK,
            GROUP=options["group"],
            STAGES=options["stages"],
            HAS_SCALE=linear.coded,
            PERSISTENT=bool(options["persistent"]),
            PROGRAMS=programs,
            WS=bool(options["specialize"]),
            PDL=self.pdl,
            MONITOR=self.monitor and target.coded,
            num_warps=options["warps"],
            num_stages=options["stages"],
            **self.launch,
        )
