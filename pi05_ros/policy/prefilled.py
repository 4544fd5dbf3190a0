"""The two ends of an inference's second half: what it starts from, and the chunk it ends in."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pi05_ros.backends.engine import KVCache
from pi05_ros.policy.checkpoints.recipe import Recipe
from pi05_ros.policy.interface import ActionChunk, StageTimings
from pi05_ros.policy.transforms.transforms import actions_from_model


@dataclass(frozen=True)
class Prefilled:
    """An observation whose KV cache is there, see `Policy.prefill`.

    Attributes:
        cache: KV cache, as the engine gave it.
        reused: whether it is that of an earlier observation.
        model_state: state ``[n]`` in the model's conventions, which deltas refer to.
        prompt: the cleaned prompt.
        seed: of the flow noise.
        steps: Euler steps of the flow.
        timings: of preprocessing, vision and prefill; ``model_ms`` is that of the KV cache.

    """

    cache: KVCache
    model_state: np.ndarray
    prompt: str
    seed: int
    steps: int
    timings: StageTimings
    reused: bool = False


CameraKeys = Callable[[Sequence[torch.Tensor]], Sequence[Hashable]]
"""Keys of the model's images, see `Policy.prefill`."""


def seeded_noise(seed: int, horizon: int, action_dim: int) -> torch.Tensor:
    """Flow noise ``[horizon, action_dim]`` float32, drawn on the CPU to be the same anywhere."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    return torch.randn(horizon, action_dim, generator=generator, dtype=torch.float32)


def make_chunk(
    output: np.ndarray, of: Prefilled, recipe: Recipe, horizon: int, timings: StageTimings
) -> ActionChunk:
    """First ``horizon`` steps of a model output ``[H, 32]`` in robot units."""
    start = time.perf_counter()
    output = output[:horizon]
    actions = actions_from_model(
        recipe.profile, recipe.normalization.actions.unnormalize(output), of.model_state
    )
    return ActionChunk(
        actions=np.ascontiguousarray(actions, dtype=np.float32),
        normalized=np.ascontiguousarray(output),
        names=recipe.profile.action_names,
        meanings=recipe.profile.action_meanings,
        units=recipe.profile.command_units,
        dt=recipe.profile.step_s,
        prompt=of.prompt,
        seed=of.seed,
        denoise_steps=of.steps,
        timings=dataclasses.replace(timings, postprocess_ms=1e3 * (time.perf_counter() - start)),
        pose_groups=recipe.profile.pose_groups,
    )
