"""SigLIP vision tower: one camera image to patch tokens (So400m/14 in the published model)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pi05_ros.model.config import VisionConfig
from pi05_ros.model.embedding import embedding

LAYER_NORM_EPS = 1e-6


class SiglipAttention(nn.Module):
    """Full bidirectional attention over the patches of one image."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        D = config.hidden_size
        self.heads = config.num_attention_heads
        self.q_proj = nn.Linear(D, D)
        self.k_proj = nn.Linear(D, D)
        self.v_proj = nn.Linear(D, D)
        self.out_proj = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, P, D]`` -> ``[N, P, D]``."""
        N, P, D = x.shape

        def split(y: Tensor) -> Tensor:
            return y.view(N, P, self.heads, D // self.heads).transpose(1, 2)

        y = F.scaled_dot_product_attention(
            split(self.q_proj(x)), split(self.k_proj(x)), split(self.v_proj(x))
        )
        found: Tensor = self.out_proj(y.transpose(1, 2).reshape(N, P, D))
        return found


class SiglipMLP(nn.Module):
    """Two linear layers with tanh GELU between."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, P, D]`` -> ``[N, P, D]``."""
        found: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return found


class SiglipLayer(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPS)
        self.self_attn = SiglipAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPS)
        self.mlp = SiglipMLP(config)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, P, D]`` -> ``[N, P, D]``."""
        x = x + self.self_attn(self.layer_norm1(x))
        found: Tensor = x + self.mlp(self.layer_norm2(x))
        return found


class SiglipTower(nn.Module):
    """Patch embedding, learned positions, the blocks and the final norm; no pooling head."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Conv2d(
            3, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )
        self.position_embedding = embedding(config.tokens, config.hidden_size)
        self.layers = nn.ModuleList(SiglipLayer(config) for _ in range(config.num_hidden_layers))
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPS)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[N, 3, S, S]`` in [-1, 1] -> tokens ``[N, P, D]``, patches in row order.

        Patches and positions are computed in their own dtype (float32 under openpi's policy);
        the blocks run in the dtype of their weights.
        """
        x = self.patch_embedding(images.to(self.patch_embedding.weight.dtype))
        x = x.flatten(2).transpose(1, 2) + self.position_embedding.weight
        x = x.to(self.post_layernorm.weight.dtype)
        for layer in self.layers:
            x = layer(x)
        found: Tensor = self.post_layernorm(x)
        return found


def check_images(images: Tensor, config: VisionConfig) -> None:
    """Raise ValueError unless the last dimensions are ``[3, S, S]`` and the values are floats."""
    S = config.image_size
    if not isinstance(images, torch.Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, torch.Tensor) else type(images).__name__
        raise ValueError(f"images are {kind}; accepted: a float tensor in [-1, 1]")
    if images.ndim < 3 or images.shape[-3:] != (3, S, S):
        raise ValueError(f"images have shape {list(images.shape)}; accepted: [..., 3, {S}, {S}]")
