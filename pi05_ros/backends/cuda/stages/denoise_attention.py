"""Launches of the action queries' attention: one of clusters (Hopper), or two of Triton."""

from __future__ import annotations

import torch
import triton

from pi05_ros.backends.cuda.buffers import ACTION_ROWS, MAX_SPLITS, Buffers, Slot
from pi05_ros.backends.cuda.hopper import attention as cluster_attention
from pi05_ros.backends.cuda.stages.choice import attention_options
from pi05_ros.backends.cuda.stages.prefill import PrefixKernels
from pi05_ros.backends.cuda.triton import attention
from pi05_ros.backends.cuda.tuning import Tuning
from pi05_ros.backends.cuda.weights import FP8, Linear, Weights
from pi05_ros.backends.errors import BackendError


class DenoiseAttention:
    """Queries `dq` against a KV cache, on static buffers.

    Attributes:
        image: whether the result is kept as a swizzled image (hopper/headers/layout.cuh).
        clusters: whether the kernel of clusters may be used.

    """

    def __init__(
        self,
        weights: Weights,
        buffers: Buffers,
        tuning: Tuning,
        prefix: PrefixKernels,
        image: bool,
    ) -> None:
        self.weights = weights
        self.buffers = buffers
        self.tuning = tuning
        self.prefix = prefix
        self.image = image
        self.pdl = prefix.pdl
        self.launch = prefix.launch
        self.clusters = (
            tuning.values["denoise_attention"] == "cluster"
            and buffers.dattn.dtype != torch.int8  # clusters write e4m3 or 16 bits
            and cluster_attention.unavailable(buffers.dq.device) is None
        )

    def run(self, horizon: int, rows_cap: int, slot: Slot, index: int, target: Linear) -> None:
        """Queries `dq` against the cache -> `dattn`: one launch of clusters, or two of Triton."""
        if self.clusters and self.run_clusters(horizon, rows_cap, slot, index, target):
            return
        b, config = self.buffers, self.weights.config.expert
        k, v = slot.k[index], slot.v[index]
        rows = horizon * config.num_heads
        scale, amax = self.prefix.site(target)
        options = self.tuning.kernel("denoise", "attention")
        BN = options["BN"]
        splits = triton.cdiv(rows_cap + horizon, BN)
        if splits > MAX_SPLITS:
            raise BackendError(f"{rows_cap + horizon} keys need more than {MAX_SPLITS} splits")
        stride = ACTION_ROWS * config.num_heads
        attention.attend[(triton.cdiv(rows, options["BM"]), splits)](
            b.dq,
            k,
            v,
            slot.length,
            b.dparts,
            b.dlse,
            scale,
            amax,
            rows,
            horizon,
            BN,
            stride,
            HEAD_DIM=config.head_dim,
            BM=options["BM"],
            BN=BN,
            STAGES=1,
            ONE_BLOCK=True,
            DIRECT=False,
            PDL=self.pdl,
            MONITOR=False,
            num_warps=options["warps"],
            **self.launch,
        )
        self.prefix.combine((b.dparts, b.dlse, b.dattn), rows, splits, stride, target)

    def run_clusters(
        self, horizon: int, rows_cap: int, slot: Slot, index: int, target: Linear
    ) -> bool:
        """As one launch of clusters; False where no choice takes this workload."""
        b = self.buffers
        options = attention_options(self.tuning, self.weights.config, rows_cap, horizon)
        if options is None:
            return False
        scale, amax = self.prefix.site(target)
        layout = "e4m3" if b.dattn.dtype == FP8 else "bf16"
        if self.image:
            layout = "image" if layout == "e4m3" else "bf16-image"
        cluster_attention.launch(
            b.dq,
            slot.k[index],
            slot.v[index],
            slot.length,
            b.dattn,
            scale,
            amax if self.prefix.monitor and target.coded else None,
            horizon=horizon,
            prefix_rows=rows_cap,
            output=layout,
            options=options,
            dependent=self.pdl,
        )
        return True
