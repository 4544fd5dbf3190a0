"""pi0.5: SigLIP and PaliGemma read images and prompt, the action expert denoises a chunk.

    images, prompt --prefill--> KV cache --velocity x N (flow)--> actions

This is the reference that every backend is compared with; it is written to be read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pi05_ros.model import random_weights
from pi05_ros.model.config import Pi05Config
from pi05_ros.model.dtypes import parameter_dtype
from pi05_ros.model.expert import ActionExpert, time_embedding
from pi05_ros.model.prefix import KVCache, PrefixLM
from pi05_ros.model.prefix import compact as drop_masked
from pi05_ros.model.sampler import DENOISE_STEPS, Velocity, flow_sample
from pi05_ros.model.siglip import SiglipTower, check_images


class Pi05(nn.Module):
    """A pi0.5 model, in eval mode and without parameter gradients until asked for them.

    The constructor gives torch's usual initial values (nothing but shapes on the meta device);
    use `load_checkpoint` or `Pi05.random` for weights that mean something.

    Args:
        config: sizes.
        dtype: torch.float32, or torch.bfloat16 for openpi's mixed policy (`parameter_dtype`).
        device: where the parameters live; None takes torch's default device.

    """

    def __init__(
        self,
        config: Pi05Config,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        width = config.expert.width
        with contextlib.nullcontext() if device is None else torch.device(device):
            self.vision = SiglipTower(config.vision)
            self.projector = nn.Linear(config.vision.hidden_size, config.vlm.width)
            self.vlm = PrefixLM(config)
            self.expert = ActionExpert(config)
            self.action_in_proj = nn.Linear(config.action_dim, width)
            self.action_out_proj = nn.Linear(width, config.action_dim)
            self.time_mlp_in = nn.Linear(width, width)
            self.time_mlp_out = nn.Linear(width, width)
        for name, parameter in self.named_parameters():
            parameter.data = parameter.data.to(parameter_dtype(name, dtype))
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def random(
        cls,
        config: Pi05Config,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Pi05:
        """Build a model with seeded random weights: a pure function of seed, names and shapes."""
        model = cls(config, dtype, device="meta")
        random_weights.fill(model, config, seed, dtype, device)
        return model

    @classmethod
    def random_on_device(
        cls,
        config: Pi05Config,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cuda",
    ) -> Pi05:
        """As `random` with numbers of the device's own generator: seconds, not a minute."""
        model = cls(config, dtype, device="meta")
        random_weights.fill_on_device(model, config, seed, dtype, device)
        return model

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.action_in_proj.weight.device

    # vision ---------------------------------------------------------------------------------

    def embed_images(self, images: Tensor) -> Tensor:
        """Images ``[N, 3, S, S]`` in [-1, 1] -> tokens ``[N, P, D]`` (P = 256 at 224 pixels)."""
        check_images(images, self.config.vision)
        found: Tensor = self.projector(self.vision(images))
        return found

    def embed_prompt(self, tokens: Tensor) -> Tensor:
        """Token ids ``[..., L]`` -> ``[..., L, D]``."""
        return self.vlm.embed(tokens)

    # prefill --------------------------------------------------------------------------------

    def embed_prefix(
        self, images: Tensor, image_masks: Tensor, tokens: Tensor, token_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Lay image and prompt tokens out as base | wrist | wrist 2 | prompt.

        Masked cameras are not run through the tower; their tokens are zeros.

        Args:
            images: float ``[B, V, 3, S, S]`` in [-1, 1].
            image_masks: bool ``[B, V]``, False for a camera that is not there.
            tokens: int64 ``[B, L]``.
            token_mask: bool ``[B, L]``, False at padding.

        Returns:
            embeddings ``[B, V * P + L, D]`` and bool mask ``[B, V * P + L]``.

        Raises:
            ValueError: shapes or dtypes do not fit together or to the model.

        """
        check_prefix(images, image_masks, tokens, token_mask, self.config.vocab)
        B, V = image_masks.shape
        prompt = self.embed_prompt(tokens)
        P = self.config.vision.tokens
        seen = prompt.new_zeros(B, V, P, prompt.shape[-1])
        if image_masks.any():
            seen[image_masks] = self.embed_images(images[image_masks]).to(seen.dtype)
        mask = torch.cat((image_masks.repeat_interleave(P, dim=1), token_mask), dim=1)
        return torch.cat((seen.flatten(1, 2), prompt), dim=1), mask

    def prefill_embedded(
        self, embeddings: Tensor, mask: Tensor, compact: bool | None = None
    ) -> KVCache:
        """Run the prefix stack over embedded tokens ``[B, P, D]`` with bool mask ``[B, P]``.

        With `compact` the invalid tokens are dropped first (see `prefix.compact`). None means
        yes, except with rope "openpi-bf16": that is for bit equality with openpi, and bfloat16
        sums over fewer tokens round differently.
        """
        if compact is None:
            compact = self.config.rope != "openpi-bf16"
        if compact:
            embeddings, mask = drop_masked(embeddings, mask)
        found: KVCache = self.vlm(embeddings, mask)[0]
        return found

    def prefill(
        self,
        images: Tensor,
        image_masks: Tensor,
        tokens: Tensor,
        token_mask: Tensor,
        compact: bool | None = None,
    ) -> KVCache:
        """Vision and prefill in one: see `embed_prefix` and `prefill_embedded`."""
        embeddings, mask = self.embed_prefix(images, image_masks, tokens, token_mask)
        return self.prefill_embedded(embeddings, mask, compact)

    # denoise --------------------------------------------------------------------------------

    def condition(self, t: Tensor) -> Tensor:
        """Flow time ``[...]`` -> condition of the adaRMS norms ``[..., D]``."""
        e = time_embedding(t.float(), self.config.expert.width)
        e = self.time_mlp_in(e.to(self.time_mlp_in.weight.dtype))
        return F.silu(self.time_mlp_out(F.silu(e)))

    def velocity(self, x_t: Tensor, t: float | Tensor, kv: KVCache) -> Tensor:
        """Velocity of the flow at x_t; differentiable with respect to x_t.

        Args:
            x_t: ``[B, H, A]``, any H.
            t: flow time, 1 = noise, 0 = data: a float, a tensor ``[]`` or ``[B]``, or one time
                per action ``[B, H]`` (0 for actions that are already frozen: training-time
                RTC, arXiv 2512.05964).
            kv: the prefix, from `prefill`.

        Returns:
            ``[B, H, A]`` float32, pointing from data to noise.

        """
        A = self.config.action_dim
        if x_t.ndim != 3 or x_t.shape[-1] != A:
            raise ValueError(f"x_t has shape {list(x_t.shape)}; accepted: [B, H, {A}]")
        B, H, _ = x_t.shape
        if kv.mask.shape[0] != B:
            raise ValueError(f"x_t has {B} rows but the KV cache has {kv.mask.shape[0]}")
        time = torch.as_tensor(t, dtype=torch.float32, device=x_t.device)
        if time.ndim < 2:
            time = time.expand(B)
        elif time.shape != (B, H):
            raise ValueError(f"t has shape {list(time.shape)}; accepted: [], [B] or [{B}, {H}]")
        x = self.action_in_proj(x_t.to(self.action_in_proj.weight.dtype))
        x = self.expert(x, self.condition(time), kv)
        found: Tensor = self.action_out_proj(x.to(self.action_out_proj.weight.dtype)).float()
        return found

    @torch.no_grad()
    def sample(
        self,
        images: Tensor,
        image_masks: Tensor,
        tokens: Tensor,
        token_mask: Tensor,
        noise: Tensor,
        steps: int = DENOISE_STEPS,
        clock: str | None = None,
        guide: Callable[[Velocity], Velocity] | None = None,
    ) -> Tensor:
        """Sample a chunk of normalized actions.

        Args:
            images: see `embed_prefix`, as are image_masks, tokens and token_mask.
            image_masks: see there.
            tokens: see there.
            token_mask: see there.
            noise: standard normal ``[B, H, A]``; its H is the chunk's.
            steps: Euler steps N.
            clock: "openpi" or "exact"; None takes `config.clock`.
            guide: turns the model's velocity into a guided one; it runs under no_grad and
                enables gradients itself where it needs them.

        Returns:
            ``[B, H, A]`` float32.

        """
        kv = self.prefill(images, image_masks, tokens, token_mask)

        def plain(x_t: Tensor, t: float) -> Tensor:
            return self.velocity(x_t, t, kv)

        velocity = plain if guide is None else guide(plain)
        return flow_sample(velocity, noise, steps, clock or self.config.clock)


def check_prefix(
    images: Tensor, image_masks: Tensor, tokens: Tensor, token_mask: Tensor, vocab: int
) -> None:
    """Raise ValueError unless the four prefix inputs agree in shape and dtype."""
    if images.ndim != 5:
        raise ValueError(f"images have shape {list(images.shape)}; accepted: [B, V, 3, S, S]")
    for name, tensor, want in (
        ("image_masks", image_masks, images.shape[:2]),
        ("token_mask", token_mask, tokens.shape),
    ):
        if tensor.dtype != torch.bool or tensor.shape != want:
            raise ValueError(
                f"{name} is {tensor.dtype} {list(tensor.shape)}; accepted: bool {list(want)}"
            )
    if tokens.ndim != 2 or tokens.shape[0] != images.shape[0]:
        raise ValueError(
            f"tokens have shape {list(tokens.shape)}; accepted: [{images.shape[0]}, L]"
        )
    if tokens.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"tokens are {tokens.dtype}; accepted: int64")
    if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab:
        raise ValueError(
            f"tokens reach from {int(tokens.min())} to {int(tokens.max())}; accepted: 0 to "
            f"{vocab - 1}, the vocabulary of this model"
        )
