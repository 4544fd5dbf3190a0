"""Gemma decoder blocks shared by both stacks: RMSNorm, adaRMSNorm, RoPE, attention, MLP.

The prefix stack (PaliGemma's language model) uses RMSNorm; the action expert replaces every
norm by adaRMSNorm, whose scale, shift and gate come from the flow time.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pi05_ros.model.config import GemmaConfig

RMS_NORM_EPS = 1e-6
ROPE_BASE = 10000.0
MASKED = -2.3819763e38  # added to the logit of a key that must not be seen; openpi's value

Rope = tuple[Tensor, Tensor]  # cos, sin: each [B, 1, T, head_dim] in the activation dtype
KeysValues = tuple[Tensor, Tensor]  # k (after RoPE), v: each [B, KV, T, head_dim]


def rms(x: Tensor) -> Tensor:
    """``x / sqrt(mean(x^2) + eps)`` over the last dimension, in float32."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + RMS_NORM_EPS)


class RMSNorm(nn.Module):
    """Gemma's norm: the learned factor is ``1 + weight``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, cond: Tensor | None = None) -> tuple[Tensor, None]:
        """``[B, T, D]`` -> the normalized x in its own dtype, and no gate."""
        return (rms(x) * (1.0 + self.weight.float())).to(x.dtype), None


class AdaRMSNorm(nn.Module):
    """RMSNorm whose scale, shift and residual gate are a linear function of a condition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, 3 * width)
        if not self.dense.weight.is_meta:
            nn.init.zeros_(self.dense.weight)
            nn.init.zeros_(self.dense.bias)

    def forward(self, x: Tensor, cond: Tensor) -> tuple[Tensor, Tensor]:
        """Normalize x ``[B, T, D]`` under cond ``[B, D]`` or, one per token, ``[B, T, D]``.

        Returns the normalized x and the gate of the residual branch, both in x's dtype.
        """
        modulation = self.dense(cond.to(self.dense.weight.dtype))
        if modulation.ndim == 2:
            modulation = modulation[:, None, :]
        scale, shift, gate = modulation.chunk(3, dim=-1)
        y = rms(x) * (1.0 + scale.float()) + shift.float()
        return y.to(x.dtype), gate.to(x.dtype)


def rope_frequencies(head_dim: int, kind: str, device: torch.device) -> Tensor:
    """``10000^(-2i/d)``, float32 ``[head_dim / 2]``; `kind` is `Pi05Config.rope`."""
    steps = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device)
    frequencies: Tensor = 1.0 / (ROPE_BASE ** (steps / head_dim))
    return frequencies.bfloat16().float() if kind == "openpi-bf16" else frequencies


def rope(positions: Tensor, head_dim: int, dtype: torch.dtype, kind: str) -> Rope:
    """Rotary angles of integer positions ``[B, T]``: cos and sin ``[B, 1, T, head_dim]``.

    Angles are float32 products ``position * 10000^(-2i/d)``; `kind` is `Pi05Config.rope`.
    """
    frequencies = rope_frequencies(head_dim, kind, positions.device)
    angles = positions[:, None, :, None].float() * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, angles: Rope) -> Tensor:
    """Apply RoPE in the split-half convention to x ``[B, heads, T, head_dim]``."""
    cos, sin = angles
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def additive_mask(valid: Tensor) -> Tensor:
    """Turn valid keys ``[B, K]`` into the float32 mask ``[B, 1, 1, K]`` added to the logits."""
    mask = torch.zeros(valid.shape, dtype=torch.float32, device=valid.device)
    return mask.masked_fill(~valid, MASKED)[:, None, None, :]


class GemmaAttention(nn.Module):
    """Grouped-query attention; keys and values are computed apart so that they can be cached."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.config = config
        q_rows = config.num_heads * config.head_dim
        kv_rows = config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.width, q_rows, bias=False)
        self.k_proj = nn.Linear(config.width, kv_rows, bias=False)
        self.v_proj = nn.Linear(config.width, kv_rows, bias=False)
        self.o_proj = nn.Linear(q_rows, config.width, bias=False)

    def _split(self, y: Tensor) -> Tensor:
        found: Tensor = torch.unflatten(y, -1, (-1, self.config.head_dim)).transpose(1, 2)
        return found

    def keys_values(self, x: Tensor, angles: Rope) -> KeysValues:
        """K (after RoPE) and V of x ``[B, T, D]``."""
        return rotate(self._split(self.k_proj(x)), angles), self._split(self.v_proj(x))

    def forward(self, x: Tensor, angles: Rope, keys_values: KeysValues, mask: Tensor) -> Tensor:
        """Queries of x ``[B, T, D]`` over K keys; mask ``[B, 1, 1, K]`` float32, additive.

        Softmax is float32; its result returns to the query dtype before it meets the values.
        """
        k, v = keys_values
        groups = self.config.num_heads // self.config.num_kv_heads
        q = rotate(self._split(self.q_proj(x)), angles)
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        logits = (q @ k.transpose(-1, -2)) * self.config.head_dim**-0.5
        weights = torch.softmax(logits + mask, dim=-1, dtype=torch.float32).to(q.dtype)
        found: Tensor = self.o_proj((weights @ v).transpose(1, 2).flatten(2))
        return found


class GemmaMLP(nn.Module):
    """Gated MLP: ``down(gelu_tanh(gate(x)) * up(x))``."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.mlp_dim, bias=False)
        self.up_proj = nn.Linear(config.width, config.mlp_dim, bias=False)
        self.down_proj = nn.Linear(config.mlp_dim, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, D]`` -> ``[B, T, D]``."""
        found: Tensor = self.down_proj(
            F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x)
        )
        return found


def residual(x: Tensor, y: Tensor, gate: Tensor | None) -> Tensor:
    """``x + gate * y``; a norm without gate counts as one."""
    return x + y if gate is None else x + y * gate


class GemmaLayer(nn.Module):
    """One block. `post_attention_layernorm` is the norm before the MLP, despite its name."""

    def __init__(self, config: GemmaConfig, norm: type[RMSNorm] | type[AdaRMSNorm]) -> None:
        super().__init__()
        self.input_layernorm = norm(config.width)
        self.self_attn = GemmaAttention(config)
        self.post_attention_layernorm = norm(config.width)
        self.mlp = GemmaMLP(config)

    def keys_values(self, x: Tensor, angles: Rope, cond: Tensor | None = None) -> KeysValues:
        """K and V alone, all that the last prefix layer has to give."""
        h, _ = self.input_layernorm(x, cond)
        return self.self_attn.keys_values(h, angles)

    def forward(
        self,
        x: Tensor,
        angles: Rope,
        mask: Tensor,
        cond: Tensor | None = None,
        past: KeysValues | None = None,
    ) -> tuple[Tensor, KeysValues]:
        """Run the block on x ``[B, T, D]`` and return it with its own K and V.

        Args:
            x: residual stream.
            angles: RoPE of x's positions.
            mask: additive, over past keys and own keys in that order.
            cond: condition of the adaRMS norms.
            past: cached K and V that come before x's own.

        """
        h, gate = self.input_layernorm(x, cond)
        own = self.self_attn.keys_values(h, angles)
        seen = own
        if past is not None:
            seen = (torch.cat((past[0], own[0]), dim=2), torch.cat((past[1], own[1]), dim=2))
        x = residual(x, self.self_attn(h, angles, seen, mask), gate)
        h, gate = self.post_attention_layernorm(x, cond)
        return residual(x, self.mlp(h), gate), own
