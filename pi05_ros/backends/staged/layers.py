"""Building blocks of the exported stages: same weights as the plain model, fixed number types.

Residual streams, softmax, norm statistics and rotary angles are float32 whatever the stage's
dtype ("islands": Gemma's residual stream can leave the range of float16); products and MLPs run
in the stage's dtype. In a float32 stage the casts vanish. Parameters are shared with the model
whenever the dtype is the same.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pi05_ros.model.gemma import RMS_NORM_EPS, rope_frequencies


def frozen(tensor: Tensor, dtype: torch.dtype) -> nn.Parameter:
    """A parameter over the same memory, or a copy if the dtype differs."""
    return nn.Parameter(tensor.detach().to(dtype), requires_grad=False)


def linear(source: nn.Linear, dtype: torch.dtype) -> nn.Linear:
    """A Linear of its own (so that it may be quantized) over the parameters of ``source``."""
    has_bias = source.bias is not None
    result = nn.Linear(source.in_features, source.out_features, has_bias, device="meta")
    result.weight = frozen(source.weight, dtype)
    if has_bias:
        result.bias = frozen(source.bias, dtype)
    return result


class MatMul(nn.Module):
    """A matrix product of two activations, as a module so that quantizers can be attached."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """``a @ b``."""
        return torch.matmul(a, b)


class RmsNorm(nn.Module):
    """``x * rsqrt(mean(x^2) + eps) * (1 + w)`` of a float32 stream, in the stage's dtype."""

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("gain", 1.0 + weight.detach().float())
        self.gain: Tensor
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """float32 ``[..., D]`` -> ``[..., D]``."""
        return (_unit_rms(x) * self.gain).to(self.dtype)


def _unit_rms(x: Tensor) -> Tensor:
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + RMS_NORM_EPS)


def ada_rms_norm(x: Tensor, modulation: Tensor) -> tuple[Tensor, Tensor]:
    """Norm of the action expert (adaRMS) with ready-made modulation.

    Args:
        x: float32 ``[1, H, D]``.
        modulation: float32 ``[3 D]``: scale, shift, gate.

    Returns:
        normed ``[1, H, D]`` and gate ``[D]``, both float32.

    """
    scale, shift, gate = modulation.chunk(3)
    return _unit_rms(x) * (1.0 + scale) + shift, gate


class LayerNorm(nn.Module):
    """LayerNorm with float32 statistics, written out so that its types show in the graph."""

    def __init__(self, source: nn.LayerNorm, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("weight", source.weight.detach().float())
        self.register_buffer("bias", source.bias.detach().float())
        self.weight: Tensor
        self.bias: Tensor
        self.eps = source.eps
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """float32 ``[..., D]`` -> ``[..., D]`` in the stage's dtype."""
        x = x - x.mean(-1, keepdim=True)
        x = x * torch.rsqrt((x * x).mean(-1, keepdim=True) + self.eps)
        return (x * self.weight + self.bias).to(self.dtype)


class Rotary(nn.Module):
    """Cosines and sines of the rotary embedding, float32."""

    def __init__(self, head_dim: int, kind: str, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("frequencies", rope_frequencies(head_dim, kind, device))
        self.frequencies: Tensor

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """int32 ``[1, T]`` -> cos, sin, each float32 ``[1, T, 1, head_dim / 2]``."""
        angles = positions.float()[:, :, None, None] * self.frequencies
        return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of ``[1, T, heads, head_dim]``, split-half layout; result float32."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class GatedMlp(nn.Module):
    """``down(gelu_tanh(gate(h)) * up(h))``."""

    def __init__(self, gate: nn.Linear, up: nn.Linear, down: nn.Linear) -> None:
        super().__init__()
        self.gate_proj = gate
        self.up_proj = up
        self.down_proj = down

    def forward(self, h: Tensor) -> Tensor:
        """``[1, T, D]`` -> ``[1, T, D]``."""
        return self.down_proj(F.gelu(self.gate_proj(h), approximate="tanh") * self.up_proj(h))


class Attention(nn.Module):
    """Multi-query attention, spelled out over the heads.

    K and V are expanded to all heads before the products: this form TensorRT compiles into one
    fused kernel. With the heads folded into the rows, or K broadcast by the product, it does not.
    """

    def __init__(self, heads: int, head_dim: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = head_dim
        self.dtype = dtype
        self.qk = MatMul()
        self.av = MatMul()

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """Attend; Q is scaled before the product and the softmax runs in float32.

        Args:
            q: float32 ``[1, T, heads, head_dim]``, rotated.
            k: ``[1, 1, S, head_dim]``, rotated.
            v: ``[1, 1, S, head_dim]``.
            mask: float32 ``[1, 1, 1, S]``, added to the logits.

        Returns:
            ``[1, T, heads * head_dim]``.

        """
        length, keys = q.shape[1], k.shape[2]
        q = (q * self.head_dim**-0.5).to(self.dtype).transpose(1, 2)
        k = k.expand(1, self.heads, keys, self.head_dim)
        v = v.expand(1, self.heads, keys, self.head_dim)
        logits = self.qk(q, k.transpose(-1, -2)).float() + mask
        weights = torch.softmax(logits, dim=-1).to(self.dtype)
        attended = self.av(weights, v).transpose(1, 2)
        return attended.reshape(1, length, self.heads * self.head_dim)
