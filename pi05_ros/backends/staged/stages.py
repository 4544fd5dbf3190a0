"""The three stages of pi0.5 as modules that export cleanly: static shapes, flat tensors.

They compute what `pi05_ros.model` computes (the tests hold them to it) with three changes of
form: Q is scaled before its product with K, padding is masked with a finite value, and the
adaRMS modulation of the expert comes in ready made, because it depends on the flow time only.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pi05_ros.backends.staged.layers import (
    Attention,
    GatedMlp,
    LayerNorm,
    MatMul,
    RmsNorm,
    Rotary,
    ada_rms_norm,
    frozen,
    linear,
    rotate,
)
from pi05_ros.errors import InvalidValueError
from pi05_ros.model import Pi05, Pi05Config
from pi05_ros.model.gemma import GemmaLayer, RMSNorm
from pi05_ros.model.sampler import flow_times
from pi05_ros.model.siglip import SiglipLayer


class VisionLayer(nn.Module):
    """One SigLIP block on a float32 residual stream."""

    def __init__(self, source: SiglipLayer, dtype: torch.dtype) -> None:
        super().__init__()
        attention = source.self_attn
        self.heads = attention.heads
        self.dtype = dtype
        self.norm1 = LayerNorm(source.layer_norm1, dtype)
        self.q_proj = linear(attention.q_proj, dtype)
        self.k_proj = linear(attention.k_proj, dtype)
        self.v_proj = linear(attention.v_proj, dtype)
        self.out_proj = linear(attention.out_proj, dtype)
        self.norm2 = LayerNorm(source.layer_norm2, dtype)
        self.fc1 = linear(source.mlp.fc1, dtype)
        self.fc2 = linear(source.mlp.fc2, dtype)
        self.qk = MatMul()
        self.av = MatMul()

    def forward(self, x: Tensor) -> Tensor:
        """float32 ``[V, N, D]`` -> the same."""
        V, N, D = x.shape
        head_dim = D // self.heads
        h = self.norm1(x)
        q = (self.q_proj(h) * head_dim**-0.5).reshape(V, N, self.heads, head_dim)
        k = self.k_proj(h).reshape(V, N, self.heads, head_dim)
        v = self.v_proj(h).reshape(V, N, self.heads, head_dim)
        logits = self.qk(q.transpose(1, 2), k.permute(0, 2, 3, 1)).float()
        weights = torch.softmax(logits, dim=-1).to(self.dtype)
        seen = self.av(weights, v.transpose(1, 2)).transpose(1, 2).reshape(V, N, D)
        x = x + self.out_proj(seen).float()
        h = self.fc1(self.norm2(x))
        return x + self.fc2(F.gelu(h, approximate="tanh")).float()


class VisionStage(nn.Module):
    """Cameras to image tokens in the width of the language model."""

    def __init__(self, model: Pi05, dtype: torch.dtype) -> None:
        super().__init__()
        tower = model.vision
        source = tower.patch_embedding
        self.dtype = dtype
        size = model.config.vision.patch_size
        self.patch = nn.Conv2d(3, source.out_channels, size, size, device="meta")
        assert source.bias is not None
        self.patch.weight = frozen(source.weight, dtype)
        self.patch.bias = frozen(source.bias, dtype)
        self.register_buffer("places", tower.position_embedding.weight.detach().float())
        self.places: Tensor
        self.layers = nn.ModuleList(
            VisionLayer(cast(SiglipLayer, layer), dtype) for layer in tower.layers
        )
        self.norm = LayerNorm(tower.post_layernorm, dtype)
        self.projector = linear(model.projector, dtype)

    def forward(self, pixels: Tensor) -> Tensor:
        """``[V, 3, S, S]`` in [-1, 1] -> ``[V, N, W]``."""
        x = self.patch(pixels).flatten(2).transpose(1, 2).float() + self.places
        for layer in self.layers:
            x = layer(x)
        return self.projector(self.norm(x))


class PrefixLayer(nn.Module):
    """One language-model block; the last one only has keys and values."""

    def __init__(self, source: GemmaLayer, config: Pi05Config, last: bool, dtype: torch.dtype):
        super().__init__()
        attention = source.self_attn
        self.last = last
        self.heads, self.head_dim = config.vlm.num_heads, config.vlm.head_dim
        self.norm1 = RmsNorm(cast(RMSNorm, source.input_layernorm).weight, dtype)
        self.k_proj = linear(attention.k_proj, dtype)
        self.v_proj = linear(attention.v_proj, dtype)
        if last:
            return
        self.q_proj = linear(attention.q_proj, dtype)
        self.o_proj = linear(attention.o_proj, dtype)
        self.attention = Attention(self.heads, self.head_dim, dtype)
        self.norm2 = RmsNorm(cast(RMSNorm, source.post_attention_layernorm).weight, dtype)
        self.mlp = _mlp(source, dtype)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """float32 ``[1, P, W]`` -> the same, and k, v ``[1, 1, P, head_dim]``."""
        h = self.norm1(x)
        k = rotate(self.k_proj(h)[:, :, None, :], cos, sin).transpose(1, 2).to(h.dtype)
        v = self.v_proj(h)[:, None, :, :]
        if self.last:
            return x, k, v
        q = self.q_proj(h).reshape(1, -1, self.heads, self.head_dim)
        seen = self.attention(rotate(q, cos, sin), k, v, mask)
        x = x + self.o_proj(seen).float()
        return x + self.mlp(self.norm2(x)).float(), k, v


def _mlp(source: GemmaLayer, dtype: torch.dtype) -> GatedMlp:
    mlp = source.mlp
    return GatedMlp(
        linear(mlp.gate_proj, dtype), linear(mlp.up_proj, dtype), linear(mlp.down_proj, dtype)
    )


class PrefillStage(nn.Module):
    """Prefix embeddings to keys and values of every layer; nothing else leaves it."""

    def __init__(self, model: Pi05, dtype: torch.dtype) -> None:
        super().__init__()
        config = model.config
        self.dtype = dtype
        self.rotary = Rotary(config.vlm.head_dim, config.rope, model.device)
        last = config.vlm.depth - 1
        self.layers = nn.ModuleList(
            PrefixLayer(cast(GemmaLayer, layer), config, index == last, dtype)
            for index, layer in enumerate(model.vlm.layers)
        )

    def forward(
        self, embeddings: Tensor, positions: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run the stack.

        Args:
            embeddings: ``[1, P, W]``.
            positions: int32 ``[1, P]``.
            mask: float32 ``[1, 1, 1, P]``: 0 for valid keys, `shapes.MASKED` for padding.

        Returns:
            keys (rotated) and values, each ``[L, 1, 1, P, head_dim]``.

        """
        x = embeddings.float()
        cos, sin = self.rotary(positions)
        keys, values = [], []
        for layer in self.layers:
            x, k, v = layer(x, cos, sin, mask)
            keys.append(k)
            values.append(v)
        return torch.stack(keys), torch.stack(values)


class ActionLayer(nn.Module):
    """One action-expert block over the cached prefix and its own tokens."""

    def __init__(self, source: GemmaLayer, config: Pi05Config, dtype: torch.dtype) -> None:
        super().__init__()
        attention = source.self_attn
        self.heads, self.head_dim = config.expert.num_heads, config.expert.head_dim
        self.dtype = dtype
        self.q_proj = linear(attention.q_proj, dtype)
        self.k_proj = linear(attention.k_proj, dtype)
        self.v_proj = linear(attention.v_proj, dtype)
        self.o_proj = linear(attention.o_proj, dtype)
        self.attention = Attention(self.heads, self.head_dim, dtype)
        self.mlp = _mlp(source, dtype)

    def forward(
        self,
        x: Tensor,
        modulation: tuple[Tensor, Tensor],
        cache: tuple[Tensor, Tensor],
        cos: Tensor,
        sin: Tensor,
        mask: Tensor,
    ) -> Tensor:
        """float32 ``[1, H, W]`` -> the same."""
        h, gate = ada_rms_norm(x, modulation[0])
        h = h.to(self.dtype)
        q = self.q_proj(h).reshape(1, -1, self.heads, self.head_dim)
        own_k = rotate(self.k_proj(h)[:, :, None, :], cos, sin).transpose(1, 2).to(self.dtype)
        k = torch.cat((cache[0], own_k), dim=2)
        v = torch.cat((cache[1], self.v_proj(h)[:, None, :, :]), dim=2)
        seen = self.attention(rotate(q, cos, sin), k, v, mask)
        x = x + self.o_proj(seen).float() * gate
        h, gate = ada_rms_norm(x, modulation[1])
        return x + self.mlp(h.to(self.dtype)).float() * gate


class DenoiseStage(nn.Module):
    """One velocity of the flow. Action projections and all modulation stay float32."""

    def __init__(self, model: Pi05, dtype: torch.dtype) -> None:
        super().__init__()
        config = model.config
        self.dtype = dtype
        self.rotary = Rotary(config.expert.head_dim, config.rope, model.device)
        self.action_in_proj = linear(model.action_in_proj, torch.float32)
        self.action_out_proj = linear(model.action_out_proj, torch.float32)
        self.layers = nn.ModuleList(
            ActionLayer(cast(GemmaLayer, layer), config, dtype) for layer in model.expert.layers
        )

    def forward(
        self,
        x_t: Tensor,
        modulation: Tensor,
        keys: Tensor,
        values: Tensor,
        action_positions: Tensor,
        mask: Tensor,
    ) -> Tensor:
        """Velocity at ``x_t``.

        Args:
            x_t: float32 ``[1, H, A]``.
            modulation: float32 ``[2 L + 1, 3 W]``, see `modulation_table`.
            keys: ``[L, 1, 1, P, head_dim]``.
            values: ``[L, 1, 1, P, head_dim]``.
            action_positions: int32 ``[1, H]``.
            mask: float32 ``[1, 1, 1, P]`` of the prefix.

        Returns:
            float32 ``[1, H, A]``.

        """
        cos, sin = self.rotary(action_positions)
        own = torch.zeros(1, 1, 1, x_t.shape[1], dtype=torch.float32, device=x_t.device)
        whole_mask = torch.cat((mask, own), dim=-1)
        x = self.action_in_proj(x_t)
        for index, layer in enumerate(self.layers):
            pair = (modulation[2 * index], modulation[2 * index + 1])
            x = layer(x, pair, (keys[index], values[index]), cos, sin, whole_mask)
        x, _ = ada_rms_norm(x, modulation[2 * len(self.layers)])
        return self.action_out_proj(x)


class FullStage(nn.Module):
    """All stages in one graph with the flow loop unrolled; the number of steps is frozen."""

    def __init__(
        self, vision: nn.Module, prefill: nn.Module, denoise: nn.Module, modulation: Tensor
    ) -> None:
        super().__init__()
        self.vision = vision
        self.prefill = prefill
        self.denoise = denoise
        self.register_buffer("modulation", modulation)
        self.modulation: Tensor

    def forward(
        self,
        pixels: Tensor,
        prompt_embeddings: Tensor,
        positions: Tensor,
        mask: Tensor,
        action_positions: Tensor,
        noise: Tensor,
    ) -> Tensor:
        """Pixels, prompt and noise -> actions float32 ``[1, H, A]``."""
        image_tokens = self.vision(pixels).flatten(0, 1)[None]
        embeddings = torch.cat((image_tokens, prompt_embeddings), dim=1)
        keys, values = self.prefill(embeddings, positions, mask)
        steps = self.modulation.shape[0]
        x = noise
        for step in range(steps):
            v = self.denoise(x, self.modulation[step], keys, values, action_positions, mask)
            x = x - (1.0 / steps) * v
        return x


@torch.no_grad()
def modulation_table(model: Pi05, steps: int, device: torch.device | None = None) -> Tensor:
    """Scale, shift and gate of every adaRMS norm at every step of the flow, float32.

    Computed once per number of steps, so that neither the time MLP nor the 2 L + 1 dense layers
    (a third of the expert's weights) are read again while acting.

    Args:
        model: its own clock and time embedding are used.
        steps: N.
        device: where the table goes; None keeps the model's.

    Returns:
        ``[N, 2 L + 1, 3 W]``; row 2 i is layer i's first norm, 2 i + 1 its second, 2 L the last.

    """
    times = torch.tensor(flow_times(steps, model.config.clock), device=model.device)
    cond = model.condition(times)
    norms: list[Any] = []
    for layer in model.expert.layers:
        norms += [layer.input_layernorm, layer.post_attention_layernorm]
    norms.append(model.expert.norm)
    rows = [norm.dense(cond.to(norm.dense.weight.dtype)).float() for norm in norms]
    return torch.stack(rows, dim=1).to(device or model.device)


def prefill_mlp(model: Pi05, layer: int, dtype: torch.dtype) -> GatedMlp:
    """The MLP of one prefill layer by itself."""
    return _mlp(cast(GemmaLayer, model.vlm.layers[layer]), dtype)


STAGE_CLASSES: dict[str, Any] = {
    "vision": VisionStage,
    "prefill": PrefillStage,
    "denoise_step": DenoiseStage,
}


def make_stage(model: Pi05, stage: str, dtype: torch.dtype) -> nn.Module:
    """A float stage ("vision", "prefill", "denoise_step") over the model's weights."""
    if stage not in STAGE_CLASSES:
        raise InvalidValueError(f"unknown stage {stage!r}; accepted: {', '.join(STAGE_CLASSES)}")
    module: nn.Module = STAGE_CLASSES[stage](model, dtype).eval()
    return module.requires_grad_(False)
