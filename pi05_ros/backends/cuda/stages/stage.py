"""What vision, prefill and denoise share: buffers, scales of GEMM inputs, the GEMM call.

Stages only enqueue work on static buffers: no synchronization, no allocation, and nothing that
depends on values on the device, so that graphs.py can capture them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import triton
from torch import Tensor

from pi05_ros.backends.cuda.buffers import Buffers
from pi05_ros.backends.cuda.triton import gemm
from pi05_ros.backends.cuda.tuning import Tuning
from pi05_ros.backends.cuda.weights import Linear, Weights

LOG2E = 1.4426950408889634


class Stage:
    """Base of the launch sequences.

    `dependent` launches kernels with programmatic dependent launch; `recording` lets them record
    the largest input of each 8-bit GEMM.
    """

    def __init__(
        self, weights: Weights, buffers: Buffers, tuning: Tuning, dependent: bool
    ) -> None:
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

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Kernels launched within record the largest input of each 8-bit GEMM."""
        self.monitor = True
        try:
            yield
        finally:
            self.monitor = False

    def site(self, linear: Linear) -> tuple[Tensor, Tensor]:
        """Scale and amax cell of the input of a GEMM."""
        b = self.buffers
        return b.scales[linear.site : linear.site + 1], b.amax[linear.site : linear.site + 1]

    def matmul(self, x: Tensor, linear: Linear, out: Tensor, gelu: bool = False) -> None:
        """``out = x @ w.T``: BF16 with bias (and GELU), 8 bits times the input scale only."""
        w = linear.weight.t()
        if x.dtype == torch.int8:
            self.int8_product(x, linear, out)
        elif linear.coded:
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

    def int8_product(self, x: Tensor, linear: Linear, out: Tensor) -> None:
        """Times the input scale, as FP8: who reads `out` multiplies by the scale per channel."""
        rows, K = x.shape
        N = linear.weight.shape[0]
        options = self.tuning.by_rows("int8_product", rows)
        BM, BN, BK = options["BM"], options["BN"], options["BK"]
        gemm.int8_product[(triton.cdiv(rows, BM), triton.cdiv(N, BN))](
            x,
            linear.weight,
            self.site(linear)[0],
            out,
            rows,
            N=N,
            K=K,
            BM=BM,
            BN=BN,
            BK=BK,
            STAGES=options["stages"],
            PDL=self.pdl,
            num_warps=options["warps"],
            num_stages=options["stages"],
            **self.launch,
        )
