"""Model inputs and flow-matching loss that the small pi0.5 of the simulated arm is trained on.

Target u = noise - action at x_t = t * noise + (1 - t) * action, t from openpi's Beta(1.5, 1)
(pi0_pytorch.py). Per image several (noise, t) pairs are drawn, since computing the prefix
dominates the cost. Part of them carry a frozen prefix of actions at time 0, which is what
training-time real-time chunking needs (arXiv 2512.05964).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pi05_ros.model import Pi05
from pi05_ros.model.prefix import KVCache
from pi05_ros.policy.prompt.prompt import PromptEncoder
from pi05_ros.policy.transforms.normalize import Normalization
from pi05_ros.policy.transforms.transforms import absolute_to_delta, pad_to
from pi05_ros.sim.arm.tasks import TASKS
from pi05_ros.sim.training.demonstrations import Demonstrations
from pi05_ros.sim.training.shipped import ASSET_ID, CONFIG

DELTA_MASK = (True,) * 6 + (False,)
PADDING_WEIGHT = 0.1
MIN_SPAN = 0.05
"""Smallest q99 - q01 that is used: a joint that hardly moves must not blow its noise up."""


@dataclass(frozen=True)
class TrainingRecipe:
    """What the shipped weights were trained with."""

    batch: int = 384
    draws: int = 4
    peak_lr: float = 1e-3
    warmup: int = 300
    weight_decay: float = 0.01
    ema: float = 0.999
    frozen: float = 0.3
    """Share of draws with a frozen prefix of 1..max_frozen actions."""
    max_frozen: int = 8
    drop_wrist: float = 0.04
    seed: int = 0


def initial_model(seed: int, device: torch.device) -> Pi05:
    """Fresh weights: normal with 1/sqrt(fan_in), residual outputs smaller, norms at identity."""
    torch.manual_seed(seed)
    model = Pi05(CONFIG)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") and "norm" not in name:
            nn.init.zeros_(parameter)
        elif "position_embedding" in name:
            nn.init.normal_(parameter, std=0.02)
        elif "embed_tokens" in name:
            nn.init.normal_(parameter, std=CONFIG.vlm.width**-0.5)
        elif "dense" in name:  # adaRMS: gates of 1/2 rather than 0, so that all layers learn
            nn.init.normal_(parameter, std=0.02)
        elif parameter.ndim >= 2:
            fan_in = math.prod(parameter.shape[1:])
            depth = CONFIG.vision.num_hidden_layers + CONFIG.vlm.depth
            last = any(k in name for k in ("o_proj", "out_proj.weight", "down_proj", "fc2"))
            small = last and not name.startswith("action")
            nn.init.normal_(parameter, std=fan_in**-0.5 * (depth**-0.5 if small else 1.0))
    for layer in [*model.expert.layers]:
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.dense.bias.data[2 * CONFIG.expert.width :] = 0.5
    return model.to(device).requires_grad_(True)


def write_stats(directory: Path, data: Demonstrations) -> None:
    """Write assets/sim_arm/norm_stats.json in openpi's form, over states and delta actions."""
    deltas = absolute_to_delta(data.actions, data.states, DELTA_MASK).reshape(-1, 7)
    stats = {"state": _stats(data.states), "actions": _stats(deltas)}
    path = directory / "assets" / ASSET_ID / "norm_stats.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"norm_stats": stats}, indent=1) + "\n", encoding="utf-8")


def _stats(values: np.ndarray) -> dict[str, list[float]]:
    low, high = np.quantile(values, 0.01, axis=0), np.quantile(values, 0.99, axis=0)
    short = np.maximum(0.0, MIN_SPAN - (high - low)) / 2
    rows = {
        "mean": values.mean(axis=0),
        "std": values.std(axis=0),
        "q01": low - short,
        "q99": high + short,
    }
    return {name: [round(float(v), 6) for v in row] for name, row in rows.items()}


def prepare(
    data: Demonstrations, encoder: PromptEncoder, normalization: Normalization
) -> dict[str, Tensor]:
    """Model inputs of all frames: images, tokens ``[N, L]`` (0 pads), actions ``[N, H, 32]``."""
    prompts = [task.prompt for task in TASKS.values()]
    states = normalization.state.normalize(data.states)
    tokens = np.zeros((len(states), CONFIG.max_prompt_tokens), dtype=np.int64)
    for i, (task, state) in enumerate(zip(data.tasks, states, strict=True)):
        ids = encoder.encode(prompts[task], state)
        tokens[i, : len(ids)] = ids
    deltas = absolute_to_delta(data.actions, data.states, DELTA_MASK)
    actions = pad_to(normalization.actions.normalize(deltas), CONFIG.action_dim)
    return {
        "images": torch.from_numpy(data.images),
        "tokens": torch.from_numpy(tokens[:, : int((tokens != 0).sum(axis=1).max())]),
        "actions": torch.from_numpy(actions.astype(np.float32)),
    }


def prefix(model: Pi05, images: Tensor, tokens: Tensor, seen: Tensor) -> KVCache:
    """KV cache of uint8 images ``[B, V, S, S, 3]``; ``seen`` [B, V] False masks a camera."""
    B, V = images.shape[:2]
    pixels = images.permute(0, 1, 4, 2, 3).to(torch.float32) / 255.0 * 2.0 - 1.0
    patches = model.embed_images(pixels.flatten(0, 1)).unflatten(0, (B, V)).flatten(1, 2)
    words = model.embed_prompt(tokens)
    mask = torch.cat((seen.repeat_interleave(CONFIG.vision.tokens, dim=1), tokens != 0), dim=1)
    return model.prefill_embedded(
        torch.cat((patches.to(words.dtype), words), dim=1), mask, compact=False
    )


def loss_of(
    model: Pi05,
    images: Tensor,
    tokens: Tensor,
    seen: Tensor,
    actions: Tensor,
    noise: Tensor,
    t: Tensor,
    frozen: Tensor,
) -> Tensor:
    """Mean squared velocity error over the undecided actions, padding dimensions counting less.

    Args:
        model: being trained.
        images: uint8 ``[B, V, S, S, 3]``.
        tokens: ``[B, L]``, 0 at padding.
        seen: bool ``[B, V]``.
        actions: normalized ``[B, H, 32]``.
        noise: ``[B * draws, H, 32]``.
        t: flow time ``[B * draws]``.
        frozen: number of leading actions that are given, int64 ``[B * draws]``.

    """
    kv = prefix(model, images, tokens, seen)
    draws = noise.shape[0] // images.shape[0]
    repeated = KVCache(
        [k.repeat_interleave(draws, 0) for k in kv.k],
        [v.repeat_interleave(draws, 0) for v in kv.v],
        kv.mask.repeat_interleave(draws, 0),
        kv.length.repeat_interleave(draws, 0),
    )
    clean = actions.repeat_interleave(draws, 0)
    given = torch.arange(clean.shape[1], device=clean.device)[None] < frozen[:, None]
    time = torch.where(given, 0.0, t[:, None])
    x_t = time[..., None] * noise + (1 - time[..., None]) * clean
    square = (model.velocity(x_t, time, repeated) - (noise - clean)).square()
    n = len(DELTA_MASK)
    error = square[..., :n].mean(-1) + PADDING_WEIGHT * square[..., n:].mean(-1)
    free = (~given).float()
    return (error * free).sum() / free.sum()
