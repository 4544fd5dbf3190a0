"""The engine's arithmetic in FP32 PyTorch with simulated quantization: what kernels must match.

The same packed weights (dequantized) and the same activation scales as the engine, but exact sums:
the difference between this and the plain model is the price of the FP8 format, the difference
between this and the engine is the fault of the kernels. Slow, written to be read; a stage in BF16
is computed in FP32 without rounding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from pi05_ros.backends.cuda.stages.modulation import Modulation, dequantize
from pi05_ros.backends.cuda.weights import Linear, Weights
from pi05_ros.backends.quantization.fake_quant import quantize

KV = list[tuple[Tensor, Tensor]]  # per layer k (after RoPE), v: [T, head_dim]


def unpaired(qkv: Tensor) -> Tensor:
    """Undo `weights.rope_pairs` in the last dimension, a head."""
    return torch.cat((qkv[..., 0::2], qkv[..., 1::2]), dim=-1)


def rms(x: Tensor) -> Tensor:
    """``1 / sqrt(mean(x^2) + eps)`` per row, ``[T, 1]``."""
    return torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


class Simulation:
    """Vision, prefill and denoise of one engine's weights and scales, in FP32."""

    def __init__(self, weights: Weights, scales: Tensor) -> None:
        self.weights = weights
        self.scales = scales.float()

    def matmul(self, x: Tensor, linear: Linear) -> Tensor:
        """``Q(x) @ Q(w).T (+ bias)``; Q is the identity for a BF16 stage."""
        if linear.coded:
            scale = self.scales[linear.site]
            x = quantize(x, scale, self.weights.inputs[linear.site]).float() * scale
        y = x @ dequantize(linear).t()
        return y if linear.bias is None else y + linear.bias.float()

    def vision(self, pixels: Tensor) -> Tensor:
        """Images ``[V, 3, S, S]`` in [-1, 1] -> tokens ``[V * P, D]``."""
        w = self.weights
        config = w.config.vision
        heads, D = config.num_attention_heads, config.hidden_size
        p = config.patch_size
        patches = F.unfold(pixels.float(), p, stride=p).transpose(1, 2)  # [V, P, 3 p p]
        assert w.patch.bias is not None
        x = patches @ w.patch.weight.float()[:, : patches.shape[-1]].t() + w.patch.bias.float()
        x = x + w.positions
        V, P, _ = x.shape
        for layer in w.vision:
            h = F.layer_norm(x, (D,), *layer.norm1, eps=1e-6)
            qkv = self.matmul(h, layer.qkv).view(V, P, 3, heads, D // heads)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(V, P, D)
            x = x + self.matmul(y, layer.out)
            h = F.layer_norm(x, (D,), *layer.norm2, eps=1e-6)
            h = F.gelu(self.matmul(h, layer.fc1), approximate="tanh")
            x = x + self.matmul(h, layer.fc2)
        x = F.layer_norm(x, (D,), *w.post_norm, eps=1e-6)
        return self.matmul(x, w.projector).flatten(0, 1)

    def embed(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        """Images and prompt ids -> prefix embeddings ``[T, D]``."""
        table = self.weights.embedding
        prompt = table[tokens].float() * math.sqrt(table.shape[1])
        return torch.cat((self.vision(pixels), prompt))

    def _rope(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        hd = self.weights.config.vlm.head_dim
        steps = torch.arange(0, hd, 2, dtype=torch.float32, device=positions.device)
        frequencies = 1.0 / (10000.0 ** (steps / hd))
        if self.weights.config.rope == "openpi-bf16":
            frequencies = frequencies.bfloat16().float()
        angles = positions.float()[:, None] * frequencies
        return angles.cos(), angles.sin()

    @staticmethod
    def _rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        """``[T, heads, head_dim]`` in the split-half convention."""
        cos, sin = (a[:, None, :] for a in angles)
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

    @staticmethod
    def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Q ``[T, heads, d]`` against k, v ``[K, d]`` -> ``[T, heads * d]``."""
        logits = torch.einsum("thd,kd->thk", q, k) / math.sqrt(q.shape[-1])
        return torch.einsum("thk,kd->thd", torch.softmax(logits, -1), v).flatten(1)

    def prefill(self, x: Tensor) -> KV:
        """Embeddings ``[T, D]`` (all valid) -> keys and values per layer."""
        w = self.weights
        hd, heads = w.config.vlm.head_dim, w.config.vlm.num_heads
        angles = self._rope(torch.arange(x.shape[0], device=x.device))
        cache: KV = []
        for layer in w.prefix:
            qkv = self.matmul(x * rms(x), layer.qkv).unflatten(-1, (-1, hd))
            if layer.qkv.image:
                qkv = unpaired(qkv)
            k = self._rotate(qkv[:, -2:-1], angles)[:, 0]
            v = qkv[:, -1]
            cache.append((k, v))
            if layer.out is None or layer.gate_up is None or layer.down is None:
                break
            y = self._attend(self._rotate(qkv[:, :heads], angles), k, v)
            x = x + self.matmul(y, layer.out)
            both = self.matmul(x * rms(x), layer.gate_up)
            if w.fused_gate_up:
                gate, up = both[:, 0::2], both[:, 1::2]
            else:
                gate, up = both.chunk(2, dim=-1)
            x = x + self.matmul(F.gelu(gate, approximate="tanh") * up, layer.down)
        return cache

    def velocity(self, state: Tensor, cache: KV, mod: Modulation, step: int) -> Tensor:
        """Velocity ``[H, A]`` at row `step` of the tables."""
        w = self.weights
        hd, heads = w.config.expert.head_dim, w.config.expert.num_heads
        x = state @ w.action_in[0] + w.action_in[1]
        length = cache[0][0].shape[0]
        angles = self._rope(length + torch.arange(state.shape[0], device=x.device))
        for index, layer in enumerate(w.expert):
            first, second = mod.mod[step, 2 * index], mod.mod[step, 2 * index + 1]
            bias = mod.bias[step, index]
            columns = layer.qkv.outputs
            qkv = rms(x) * self.matmul(x * first[0], layer.qkv) + bias[:columns]
            qkv = unpaired(qkv.unflatten(-1, (-1, hd)))
            k = torch.cat((cache[index][0], self._rotate(qkv[:, -2:-1], angles)[:, 0]))
            v = torch.cat((cache[index][1], qkv[:, -1]))
            y = self._attend(self._rotate(qkv[:, :heads], angles), k, v)
            x = x + first[2] * self.matmul(y, layer.out)
            both = rms(x) * self.matmul(x * second[0], layer.gate_up) + bias[columns:]
            hidden = F.gelu(both[:, 0::2], approximate="tanh") * both[:, 1::2]
            x = x + second[2] * self.matmul(hidden, layer.down)
        final = mod.mod[step, -1]
        y = x * rms(x) * final[0] + final[1]
        return y @ w.action_out[0].t() + w.action_out[1]

    def denoise(self, cache: KV, noise: Tensor, mod: Modulation) -> Tensor:
        """Noise ``[H, A]`` -> actions."""
        state = noise.float()
        for step in range(mod.steps):
            state = state - self.velocity(state, cache, mod, step) / mod.steps
        return state

    @torch.no_grad()
    def sample(self, pixels: Tensor, tokens: Tensor, noise: Tensor, mod: Modulation) -> Tensor:
        """All three stages."""
        return self.denoise(self.prefill(self.embed(pixels, tokens)), noise, mod)
