"""Launch sequence of the vision stage: patch rows to image tokens."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from pi05_ros.backends.cuda.buffers import MAX_FC2_SPLITS, Buffers
from pi05_ros.backends.cuda.hopper.vision import vision_attention
from pi05_ros.backends.cuda.hopper.vision.vision_products import (
    MAX_STAGES,
    CodedProduct,
    narrow_product,
    normed_product,
    product,
)
from pi05_ros.backends.cuda.stages.choice import VISION_DIVISION, vision_clusters
from pi05_ros.backends.cuda.stages.patches import PatchKernels
from pi05_ros.backends.cuda.stages.stage import LOG2E
from pi05_ros.backends.cuda.triton import attention, gemm, prefill
from pi05_ros.backends.cuda.tuning import Tuning
from pi05_ros.backends.cuda.weights import Linear, PackedVisionLayer, Weights
from pi05_ros.backends.errors import BackendError


class VisionKernels(PatchKernels):
    """SigLIP on static buffers; in BF16 and FP8 on the kernels of hopper/ where that can be."""

    def __init__(
        self, weights: Weights, buffers: Buffers, tuning: Tuning, dependent: bool
    ) -> None:
        super().__init__(weights, buffers, tuning, dependent)
        device = weights.embedding.device
        self.clusters = vision_clusters(weights.config, weights.precision, tuning, device)
        reason = vision_attention.unsupported(weights.config.vision)
        self.attends_images = self.clusters > 0 and reason is None

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
        division = self._division(x) if self.clusters else {}
        for layer in w.vision:
            self._layernorm(x, source, pending, layer.norm1, h, layer.qkv, pending is None, parts)
            self._product(h, layer.qkv, qkv)
            self._image_attention(qkv, attn, layer.out, views)
            if division.get("fold", 0) and layer.fc1_affine is not None:
                self._around_norm(attn, layer, x, act, division)
            else:
                source, parts = self._sliced(attn, layer.out, "out", y)
                self._layernorm(x, source, layer.out, layer.norm2, h, layer.fc1, False, parts)
                if layer.fc1.coded and not self.clusters:
                    wide = b.vwide[rows]
                    self.matmul(h, layer.fc1, wide)
                    self._gelu(wide, layer.fc1, act, layer.fc2)
                else:
                    self._product(h, layer.fc1, act, layer.fc2)
            source, parts = self._sliced(act, layer.fc2, "fc2", y)
            pending = layer.fc2
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
        scale, amax = self.site(target)
        raw = source is not None and source.coded and not self.clusters
        biased = raw or parts > 1  # otherwise the GEMM added the bias
        D = x.shape[1]
        prefill.residual_layernorm[(x.shape[0],)](
            x,
            y,
            source.scale if source is not None and raw else b.ones,
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
            HAS_Y_SCALE=raw,
            HAS_Y_BIAS=biased,
            PDL=self.pdl,
            MONITOR=self.monitor and target.coded,
            num_warps=self.tuning.values["norm_warps"],
            **self.launch,
        )

    def _division(self, x: Tensor) -> dict[str, int]:
        """How the products of `x` are divided on the kernels of hopper/."""
        return self.tuning.by_rows(VISION_DIVISION[self.weights.precision.vision], x.shape[0])

    def _hopper_product(
        self,
        x: Tensor,
        linear: Linear,
        out: Tensor,
        splits: int = 1,
        target: Linear | None = None,
    ) -> None:
        """``x @ w.T + bias``, or slices of K without bias; with GELU as input of `target`."""
        scales = None
        if linear.scale is not None:
            scales = CodedProduct(linear.scale, self.site(linear)[0])
            if target is not None:
                scale, amax = self.site(target)
                scales = replace(scales, out=scale, amax=amax if self.monitor else None)
        division = self._division(x)
        product(
            x,
            linear.weight,
            linear.bias if splits == 1 else None,
            out,
            splits=splits,
            clusters=self.clusters,
            gelu=target is not None,
            dependent=self.pdl,
            stages=division.get("stages", MAX_STAGES),
            early=bool(division.get("early_trigger", 0)),
            scales=scales,
        )

    def _around_norm(
        self,
        attn: Tensor,
        layer: PackedVisionLayer,
        x: Tensor,
        act: Tensor,
        division: dict[str, int],
    ) -> None:
        """Projection into the residual `x`, and fc1 with the norm between, which has no kernel."""
        assert layer.fc1_affine is not None
        assert layer.out.bias is not None
        early = bool(division.get("early_trigger", 0))
        moments = narrow_product(
            attn,
            layer.out.weight,
            layer.out.bias,
            x,
            residual=x,
            moments=self.buffers.vmoments,
            clusters=self.clusters,
            dependent=self.pdl,
            stages=division.get("narrow_stages", MAX_STAGES),
            early=early,
        )
        normed_product(
            x,
            layer.fc1.weight,
            layer.fc1_affine,
            moments,
            act,
            clusters=self.clusters,
            dependent=self.pdl,
            stages=division.get("stages", MAX_STAGES),
            early=early,
        )

    def _product(
        self, x: Tensor, linear: Linear, out: Tensor, target: Linear | None = None
    ) -> None:
        """``x @ w.T + bias``, whole; with GELU as input of `target`."""
        if self.clusters:
            self._hopper_product(x, linear, out, target=target)
            return
        self.matmul(x, linear, out, gelu=target is not None)
        if linear.coded:
            self._scale_bias(out, linear)

    def _sliced(self, x: Tensor, linear: Linear, name: str, out: Tensor) -> tuple[Tensor, int]:
        """``x @ w.T`` as slices of K without bias, or whole in `out`; where it is, how many."""
        if not self.clusters:
            splits = self._split_matmul(x, linear) if name == "fc2" else 1
            if splits == 1:
                self.matmul(x, linear, out)
            return (self.buffers.vparts, splits) if splits > 1 else (out, 1)
        splits = self._division(x)[name]
        if splits > MAX_FC2_SPLITS:
            raise BackendError(f"vision {name} in more than {MAX_FC2_SPLITS} slices of K")
        if splits > 1:
            out = self.buffers.vparts
        self._hopper_product(x, linear, out, splits)
        return out, splits

    def _split_matmul(self, x: Tensor, linear: Linear) -> int:
        """``x @ w.T`` in slices of K into `vparts`; the number of slices, 1 = not done here."""
        options = self.tuning.by_rows("vision_fc2", x.shape[0])
        splits = options["splits"]
        if splits == 1 or linear.coded:
            return 1
        if splits > MAX_FC2_SPLITS:
            raise BackendError(f"vision fc2 in more than {MAX_FC2_SPLITS} slices of K")
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
        scale, amax = self.site(target)
        prefill.gelu_quantize[(y.shape[0], triton.cdiv(y.shape[1], 1024))](
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
        scale, amax = self.site(target)
        if self.attends_images:
            vision_attention.attend(
                qkv,
                out,
                LOG2E / math.sqrt(head_dim),
                dependent=self.pdl,
                out_scale=scale if target.coded else None,
                amax=amax if target.coded and self.monitor else None,
            )
            return
        d0 = max(16, 1 << (head_dim.bit_length() - 1))
        d1 = max(16, triton.next_power_of_2(max(1, head_dim - d0)))
        options = self.tuning.kernel("vision_attention")
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
            PDL=self.pdl,
            MONITOR=self.monitor and target.coded,
            num_warps=options["warps"],
            **self.launch,
        )
