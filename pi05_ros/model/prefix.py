"""The prefix: image and prompt tokens through PaliGemma's language model into a KV cache.

Tokens that no other token attends to (masked cameras, prompt padding) change nothing but the
position counter, which skips them. So they are dropped before the stack runs: the result is the
same and the prefix is as short as its valid tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from pi05_ros.model.config import Pi05Config
from pi05_ros.model.embedding import embedding
from pi05_ros.model.gemma import GemmaLayer, RMSNorm, additive_mask, rope


@dataclass(frozen=True)
class KVCache:
    """Keys and values of the prefix, frozen while the actions are denoised.

    Attributes:
        k: per layer ``[B, KV, T, head_dim]``, after RoPE.
        v: per layer ``[B, KV, T, head_dim]``.
        mask: bool ``[B, T]``, the tokens that count.
        length: int64 ``[B]``, valid tokens per row; also the position of the first action.

    """

    k: list[Tensor]
    v: list[Tensor]
    mask: Tensor
    length: Tensor


def positions_of(mask: Tensor) -> Tensor:
    """Position ids ``[B, T]``: masked tokens repeat the position of the last valid one."""
    return mask.long().cumsum(dim=-1) - 1


def compact(embeddings: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move the valid tokens of each row to the front, in order, and cut the common rest.

    Args:
        embeddings: ``[B, P, D]``.
        mask: bool ``[B, P]``.

    Returns:
        ``[B, T, D]`` and bool ``[B, T]``, where T is the longest row (at least 1).

    """
    length = int(mask.sum(dim=-1).max().clamp(min=1))
    order = (~mask).to(torch.uint8).argsort(dim=-1, stable=True)[:, :length]
    return (
        embeddings.gather(1, order[..., None].expand(-1, -1, embeddings.shape[-1])),
        mask.gather(1, order),
    )


class PrefixLM(nn.Module):
    """PaliGemma's Gemma stack. Its last block and final norm only matter to training."""

    def __init__(self, config: Pi05Config) -> None:
        super().__init__()
        self.config = config
        gemma = config.vlm
        self.embed_tokens = embedding(config.vocab, gemma.width)
        self.layers = nn.ModuleList(GemmaLayer(gemma, RMSNorm) for _ in range(gemma.depth))
        self.norm = RMSNorm(gemma.width)

    def embed(self, tokens: Tensor) -> Tensor:
        """Token ids ``[...]`` -> ``[..., D]``, scaled by sqrt(D) (images are not)."""
        found: Tensor = self.embed_tokens(tokens) * math.sqrt(self.config.vlm.width)
        return found

    def forward(
        self, embeddings: Tensor, mask: Tensor, *, whole: bool = False
    ) -> tuple[KVCache, Tensor | None]:
        """Run the stack over ``[B, T, D]`` with valid tokens `mask`, all seeing each other.

        The last block gives only its K and V, which is all the actions can see; `whole` runs it
        to the end and returns the normalized hidden states as well.
        """
        x = embeddings.to(self.embed_tokens.weight.dtype)
        angles = rope(positions_of(mask), self.config.vlm.head_dim, x.dtype, self.config.rope)
        attend = additive_mask(mask)
        keys, values = [], []
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            if index == last and not whole:
                k, v = cast(GemmaLayer, layer).keys_values(x, angles)
            else:
                x, (k, v) = layer(x, angles, attend)
            keys.append(k)
            values.append(v)
        cache = KVCache(keys, values, mask, mask.sum(dim=-1))
        return cache, self.norm(x)[0] if whole else None
