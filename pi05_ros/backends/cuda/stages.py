"""Launch sequences of vision and prefill; graphs.py captures them.

Everything here only enqueues work on static buffers: no synchronisation, no allocation, and
nothing that depends on values on the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from pi05_ros.backends.cuda.buffers import MAX_PREFILL_SPLITS, Buffers, Slot
from pi05_ros.backends.cuda.kernels import attention, gemm, prefill, preprocess
from pi05_ros.backends.cuda.tuning import Tuning
from pi05_ros.backends.cuda.weights import Linear, Weights
from pi05_ros.backends.resize import fitted_size
from pi05_ros.backends.resize import _weights as filter_weights

LOG2E = 1.4426950408889634


@dataclass(frozen=True)
class ResizeTables:
    """Filter of one frame size: first source index and fixed-point weights per output pixel."""

    new_height: int
    new_width: int
    x_first: Tensor
    x_weight: Tensor
    y_first: Tensor
    y_weight: Tensor
    scratch: Tensor  # uint8 [Hc, new_width, 3]

    @classmethod
    def build(cls, height: int, width: int, size: int, device: torch.device) -> ResizeTables:
        """Tables for frames ``[height, width, 3]``."""
        new_height, new_width = fitted_size(height, width, size)
        tensors = []
        for source, target in ((width, new_width), (height, new_height)):
            index, weight = filter_weights(source, target)
            tensors.append(torch.from_numpy(index[:, 0].astype("int32")).to(device))
            tensors.append(torch.from_numpy(weight).to(device))
        scratch = torch.empty(height, new_width, 3, dtype=torch.uint8, device=device)
        return cls(new_height, new_width, *tensors, scratch)


class ContextStages:
    """Vision and prefill on static buffers."""

    def __init__(self, weights: Weights, buffers: Buffers, tuning: Tuning, dependent: bool) -> None:
        self.weights = weights
        self.buffers = buffers
        self.tuning = tuning
        self.pdl = dependent
        self.monitor = False
        self.launch = {"launch_pdl": True} if dependent else {}
        self.processors = 1
        if weights.embedding.is_cuda:
            properties = torch.cuda.get_device_properties(weights.embedding.device)
            self.processors = properties.multi_processor_count

    def _site(self, linear: Linear) -> tuple[Tensor, Tensor]:
        """Scale and amax cell of the input of a GEMM."""
        b = self.buffers
        return b.scales[linear.site : linear.site + 1], b.amax[linear.site : linear.site + 1]

    def matmul(self, x: Tensor, linear: Linear, out: Tensor, gelu: bool = False) -> None:
        """``out = x @ w.T``: BF16 with bias (and GELU), FP8 times the input scale only."""
        w = linear.weight.t()
        if linear.fp8:
            scale = self.buffers.scales[linear.site]
            if x.is_cuda:
                torch._scaled_mm(
                    x,
                    w,
                    scale_a=scale,
                    scale_b=self.buffers.one,
                    out_dtype=out.dtype,
                    use_fast_accum=True,
                    out=out,
                )
            else:
                out.copy_((x.float() * scale) @ w.float())
        elif linear.bias is None:
            torch.mm(x, w, out=out)
        elif not gelu:
            torch.addmm(linear.bias, x, w, out=out)
        elif x.is_cuda:
            torch._addmm_activation(linear.bias, x, w, use_gelu=True, out=out)
        else:
            y = torch.addmm(linear.bias.float(), x.float(), w.float())
            out.copy_(torch.nn.functional.gelu(y, approximate="tanh"))

    # vision -----------------------------------------------------------------------------------

    def frame_to_patches(self, frame: Tensor, view: int, tables: ResizeTables) -> None:
        """uint8 ``[Hc, Wc, 3]`` -> the patch rows of camera `view`."""
        config = self.weights.config.vision
        size, patch = config.image_size, config.patch_size
        height, width = frame.shape[:2]
        out = self.buffers.patches[view * config.tokens :]
        preprocess.resize_rows[(height, triton.cdiv(tables.new_width * 3, 256))](
            frame,
            tables.x_first,
            tables.x_weight,
            tables.scratch,
            width,
            tables.new_width,
            TAPS=tables.x_weight.shape[1],
            BLOCK=256,
        )
        preprocess.resize_columns_to_patches[(size,)](
            tables.scratch,
            tables.y_first,
            tables.y_weight,
            out,
            height,
            tables.new_width,
            tables.new_height,
            (size - tables.new_height) // 2,
            (size - tables.new_width) // 2,
            SIZE=size,
            PATCH=patch,
            GRID=size // patch,
            ROW=out.shape[1],
            TAPS=tables.y_weight.shape[1],
            BLOCK=triton.next_power_of_2(size * 3),
        )

    def pixels_to_patches(self, pixels: Tensor, view: int) -> None:
        """float32 ``[V, 3, S, S]`` in [-1, 1] -> patch rows of cameras from `view` on."""
        config = self.weights.config.vision
        size, patch = config.image_size, config.patch_size
        out = self.buffers.patches[view * config.tokens :]
        preprocess.pixels_to_patches[(size, pixels.shape[0] * 3)](
            pixels,
            out,
            SIZE=size,
            PATCH=patch,
            GRID=size // patch,
            ROW=out.shape[1],
            BLOCK=triton.next_power_of_2(size),
        )

    def vision(self, first: int, views: int) -> None:
        """Patch rows -> image tokens in `embeds`, for cameras [first, first + views)."""
        w, b = self.weights, self.buffers
        config = w.config.vision
        rows = slice(first * config.tokens, (first + views) * config.tokens)
        n = views * config.tokens
        assert w.patch.bias is not None
        torch.addmm(w.patch.bias, b.patches[rows], w.patch.weight.t(), out=b.patch_out[rows])
        x, h, y = b.vx[rows], b.vh[rows], b.vy[rows]
        qkv, attn, act = b.vqkv[rows], b.vattn[rows], b.vact[rows]
        source, pending, parts = b.patch_out[rows], None, 1
        for layer in w.vision:
            self._layernorm(x, source, pending, layer.norm1, h, layer.qkv, pending is None, parts)
            self.matmul(h, layer.qkv, qkv)
            if layer.qkv.fp8:
                self._scale_bias(qkv, layer.qkv)
            self._image_attention(qkv, attn, layer.out, views)
            self.matmul(attn, layer.out, y)
            self._layernorm(x, y, layer.out, layer.norm2, h, layer.fc1, False)
            if layer.fc1.fp8:
                wide = b.vwide[rows]
                self.matmul(h, layer.fc1, wide)
                self._gelu(wide, layer.fc1, act, layer.fc2)
            else:
                self.matmul(h, layer.fc1, act, gelu=True)
            source, pending = y, layer.fc2
            parts = self._split_matmul(act, layer.fc2)
            if parts > 1:
                source = b.vparts
            else:
                self.matmul(act, layer.fc2, y)
        post = b.vpost[rows]
        self._layernorm(x, source, pending, w.post_norm, post, w.projector, False, parts)
        self.matmul(post, w.projector, b.embeds[rows])
        assert n == post.shape[0]

    def _layernorm(
        self,
        x: Tensor,
        y: Tensor,
        source: Linear | None,
        norm: tuple[Tensor, Tensor],
        out: Tensor,
        target: Linear,
        is_input: bool,
        parts: int = 1,
    ) -> None:
        b = self.buffers
        scale, amax = self._site(target)
        fp8 = source is not None and source.fp8
        biased = fp8 or parts > 1  # otherwise the GEMM added the bias
        D = x.shape[1]
        prefill.residual_layernorm[(x.shape[0],)](
            x,
            y,
            source.scale if source is not None and fp8 else b.ones,
            source.bias if source is not None and biased else b.ones,
            self.weights.positions,
            norm[0],
            norm[1],
            out,
            scale,
            amax,
            b.tokens,
            x.numel(),
            D=D,
            DP=triton.next_power_of_2(D),
            INPUT=is_input,
            PARTS=parts,
            HAS_Y_SCALE=fp8,
            HAS_Y_BIAS=biased,
            PDL=self.pdl,
            MONITOR=self.monitor and target.fp8,
            num_warps=self.tuning.values["norm_warps"],
            **self.launch,
        )

    def _split_matmul(self, x: Tensor, linear: Linear) -> int:
        """``x @ w.T`` in slices of K into `vparts`; the number of slices, 1 = not done here."""
        options = self.tuning.by_rows("vision_fc2", x.shape[0])
        splits = options["splits"]
        if splits == 1 or linear.fp8:
            return 1
        N, K = linear.weight.shape
        BM, BN, BK = options["BM"], options["BN"], options["BK"]
        rows = x.shape[0]
        per_split = triton.cdiv(triton.cdiv(K, splits), BK) * BK
        grid = (triton.cdiv(rows, BM), triton.cdiv(N, BN), splits)
        gemm.split_gemm[grid](
            TensorDescriptor.from_tensor(x, [BM, BK]),
            TensorDescriptor.from_tensor(linear.weight, [BN, BK]),
            self.buffers.vparts,
            rows,
            per_split,
            N=N,
            K=K,
            BM=BM,
            BN=BN,
            BK=BK,
            STAGES=options["stages"],
            num_warps=options["warps"],
            num_stages=options["stages"],
        )
        return splits

    def _scale_bias(self, y: Tensor, linear: Linear) -> None:
        n = y.shape[1]
        prefill.channel_scale_bias[(y.shape[0], triton.cdiv(n, 1024))](
            y, linear.scale, linear.bias, N=n, BLOCK=1024
        )

    def _gelu(self, y: Tensor, linear: Linear, out: Tensor, target: Linear) -> None:
        scale, amax = self._site(target)
        prefill.gelu_quantise[(y.shape[0], triton.cdiv(y.shape[1], 1024))](
            y,
            linear.scale,
            linear.bias,
            out,
            scale,
            amax,
            F=y.shape[1],
            BLOCK=1024,
            MONITOR=self.monitor,
        )

    def _image_attention(self, qkv: Tensor, out: Tensor, target: Linear, views: int) -> None:
        config = self.weights.config.vision
        head_dim = config.hidden_size // config.num_attention_heads
        d0 = max(16, 1 << (head_dim.bit_length() - 1))
        d1 = max(16, triton.next_power_of_2(max(1, head_dim - d0)))
        options = self.tuning.kernel("vision_attention")
        scale, amax = self._site(target)
        grid = (triton.cdiv(config.tokens, options["BM"]), config.num_attention_heads, views)
        attention.attend_image[grid](
            qkv,
            out,
            scale,
            amax,
            config.tokens,
            LOG2E / math.sqrt(head_dim),
            WIDTH=config.hidden_size,
            HEAD_DIM=head_dim,
            D0=d0,
            D1=d1,
            BM=options["BM"],
            BN=options["BN"],
            MONITOR=self.monitor and target.fp8,
            num_warps=options["warps"],
        )

    # prefill ----------------------------------------------------------------------------------

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

    def prefill(self, rows: int, slot: Slot) -> None:
        """`embeds` -> K and V of every layer in `slot`, for `rows` rows (a bucket)."""
        w, b = self.weights, self.buffers
        heads = w.config.vlm.num_heads
        h, y, wide, act = b.h[:rows], b.y[:rows], b.wide[:rows], b.act[:rows]
        x = b.embeds[:rows]
        self._residual(x, None, None, x, h, w.prefix[0].qkv)
        for index, layer in enumerate(w.prefix):
            if layer.out is None or layer.gate_up is None or layer.down is None:
                self.matmul(h, layer.qkv, b.kv_only[:rows])
                self._rope(b.kv_only[:rows], layer.qkv, slot, index, only_kv=True)
                break
            self.matmul(h, layer.qkv, b.qkv[:rows])
            self._rope(b.qkv[:rows], layer.qkv, slot, index, only_kv=False)
            self._attention(rows, slot, index, layer.out)
            self.matmul(b.attn[: rows * heads].view(rows, -1), layer.out, y)
            self._residual(x, y, layer.out, b.x[:rows], h, layer.gate_up)
            x = b.x[:rows]
            if w.fused_gate_up:
                self._geglu_gemm(h, layer.gate_up, act, layer.down)
            else:
                self.matmul(h, layer.gate_up, wide)
                self._geglu(wide, layer.gate_up, act, layer.down)
            self.matmul(act, layer.down, y)
            self._residual(x, y, layer.down, x, h, w.prefix[index + 1].qkv)

    def _residual(
        self,
        x: Tensor,
        y: Tensor | None,
        source: Linear | None,
        total: Tensor,
        out: Tensor,
        target: Linear,
    ) -> None:
        scale, amax = self._site(target)
        fp8 = source is not None and source.fp8
        D = x.shape[1]
        prefill.residual_rms[(x.shape[0],)](
            x,
            x if y is None else y,
            source.scale if source is not None and fp8 else self.buffers.ones,
            total,
            out,
            scale,
            amax,
            D=D,
            DP=triton.next_power_of_2(D),
            HAS_Y=y is not None,
            HAS_Y_SCALE=fp8,
            PDL=self.pdl,
            MONITOR=self.monitor and target.fp8,
            num_warps=self.tuning.values["norm_warps"],
            **self.launch,
        )

    def _rope(self, qkv: Tensor, linear: Linear, slot: Slot, index: int, only_kv: bool) -> None:
        b = self.buffers
        config = self.weights.config.vlm
        prefill.rope_to_cache[(qkv.shape[0],)](
            qkv,
            linear.scale if linear.fp8 else b.ones,
            b.cos,
            b.sin,
            b.q,
            slot.k[index],
            slot.v[index],
            LOG2E / math.sqrt(config.head_dim),
            HEADS=config.num_heads,
            HEAD_DIM=config.head_dim,
            HAS_SCALE=linear.fp8,
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
        keys = triton.cdiv(triton.cdiv(rows, splits), options["BN"]) * options["BN"]
        scale, amax = self._site(target)
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
            MONITOR=self.monitor and target.fp8,
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
        options = self.tuning.kernel("combine")
        scale, amax = self._site(target)
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
            MONITOR=self.monitor and target.fp8,
            num_warps=options["warps"],
            **self.launch,
        )

    def _geglu(self, both: Tensor, linear: Linear, out: Tensor, target: Linear) -> None:
        b = self.buffers
        F = out.shape[1]
        block = min(self.tuning.values["geglu_block"], triton.next_power_of_2(F))
        scale, amax = self._site(target)
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
            HAS_SCALE=linear.fp8,
            PDL=self.pdl,
            MONITOR=self.monitor and target.fp8,
            num_warps=4,
            **self.launch,
        )

    def _geglu_gemm(self, x: Tensor, linear: Linear, out: Tensor, target: Linear) -> None:
        """Gate-up product and GeGLU in one kernel; gate and up rows alternate in the weight."""
        b = self.buffers
        rows, F = out.shape
        options = self.tuning.by_rows("fused_gate_up_" + ("fp8" if linear.fp8 else "bf16"), rows)
        BM, BN, BK = options["BM"], options["BN"], options["BK"]
        tiles = triton.cdiv(rows, BM) * (2 * F // BN)
        programs = min(tiles, self.processors) if options["persistent"] else tiles
        scale, amax = self._site(target)
        gemm.geglu_gemm[(programs,)](
            TensorDescriptor.from_tensor(x, [BM, BK]),
            TensorDescriptor.from_tensor(linear.weight, [BN, BK]),
            linear.scale if linear.scale is not None else b.ones,
            self._site(linear)[0],
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
            HAS_SCALE=linear.fp8,
            PERSISTENT=bool(options["persistent"]),
            PROGRAMS=programs,
            WS=bool(options["specialize"]),
            PDL=self.pdl,
            MONITOR=self.monitor and target.fp8,
            num_warps=options["warps"],
            num_stages=options["stages"],
            **self.launch,
        )
