"""A policy that continues its own chunks: KV reuse and real-time chunking around `Policy`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pi05_ros.backends import Engine
from pi05_ros.backends.errors import BackendError
from pi05_ros.model import flow_sample
from pi05_ros.policy import ActionChunk, Observation, Policy
from pi05_ros.policy.execution.continuation import Continuation, continuation
from pi05_ros.policy.execution.rtc import MAX_GUIDANCE, guidance_weights, guided, sample_decided
from pi05_ros.policy.kv_reuse import MODES, EveryN, ReuseRule
from pi05_ros.policy.transforms import state_to_model
from pi05_ros.policy.vision_cache import VisionCache


class SteeredEngine:
    """Engine that can keep the last context and steer the flow; else it passes calls on.

    Args:
        engine: does the work. Steering needs the plain model, so the eager backend.

    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.keep = False
        self.steer: Continuation | None = None
        self.mode = "plain"
        self.schedule = "exp"
        self.vision: VisionCache | None = None
        self._context: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def sample(
        self, images: Any, tokens: torch.Tensor, noise: torch.Tensor, steps: int = 10
    ) -> Any:
        """Actions ``[H, 32]``; the kept context and the continuation are used where set."""
        if not (self.keep and self._context is not None):
            source = self.vision or self.engine
            self._context = source.context(images, tokens)
        if self.mode == "plain" or self.steer is None or self.steer.left == 0:
            return self.engine.denoise(self._context, noise, steps)
        model = getattr(self.engine, "model", None)
        if model is None or not hasattr(model, "velocity"):
            raise BackendError(
                f"real-time chunking needs the eager backend, not {self.engine.backend!r}"
            )
        kv = self._context
        x = noise.to(self.engine.device, torch.float32)[None]
        previous = torch.from_numpy(self.steer.previous).to(x)
        if self.mode == "trained":
            with torch.no_grad():
                return sample_decided(
                    lambda x_t, t: model.velocity(x_t, t, kv),
                    x,
                    previous,
                    self.steer.delay,
                    steps,
                    model.config.clock,
                )[0]
        weights = guidance_weights(self.schedule, len(noise), self.steer.delay, self.steer.left)
        velocity = guided(
            lambda x_t, t: model.velocity(x_t, t, kv), previous, weights, self.mode, MAX_GUIDANCE
        )
        with torch.no_grad():
            return flow_sample(velocity, x, steps, model.config.clock)[0]


@dataclass(frozen=True)
class MadeChunk:
    """A chunk and the step it is anchored to.

    Attributes:
        chunk: its ``kv_age`` counts the inferences since the KV cache was computed.
        anchor: control step of the observation that the KV cache, and with it row 0, belongs to.

    """

    chunk: ActionChunk
    anchor: float


class ChunkMaker:
    """Makes chunks for observations at counted control steps.

    Args:
        policy: is taken over; its engine is wrapped.
        mode: "plain", or how the previous chunk is continued: "vjp", "identity", "trained".
        schedule: of the guidance weights.
        reuse: when to keep the KV cache.
        margin: steps beyond the expected delay that are tied to the previous chunk as well, so
            that the hand-over itself is smooth and may come a little late.
        vision_change: threshold of a `VisionCache`; None runs the tower for every camera.

    """

    def __init__(
        self,
        policy: Policy,
        mode: str = "plain",
        schedule: str = "exp",
        reuse: ReuseRule | None = None,
        margin: int = 1,
        vision_change: float | None = None,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"chunk mode {mode!r}; accepted: {', '.join(MODES)}")
        self.policy = policy
        inner = policy.engine.engine if isinstance(policy.engine, SteeredEngine) else policy.engine
        self.engine = SteeredEngine(inner)
        self.engine.mode, self.engine.schedule = mode, schedule
        if vision_change is not None:
            self.engine.vision = VisionCache(inner, vision_change)
        policy.engine = self.engine
        self.reuse = reuse or EveryN(1)
        self.margin = margin
        self.reset()

    def reset(self) -> None:
        """Start a new episode: nothing to continue, nothing to reuse."""
        self.reuse.reset()
        if self.engine.vision is not None:
            self.engine.vision.reset()
        self._last: MadeChunk | None = None
        self._anchor_state: np.ndarray | None = None
        self._anchor = 0.0
        self._age = 0
        self.fresh_contexts = 0

    def make(
        self,
        obs: Observation,
        step: float,
        delay: int = 0,
        seed: int | None = None,
        denoise_steps: int | None = None,
    ) -> MadeChunk:
        """Chunk for an observation at control step ``step``.

        Args:
            obs: as for `Policy.infer`.
            step: time of the observation in control steps; must not decrease between resets.
            delay: steps that will pass before the chunk can be used.
            seed: of the noise.
            denoise_steps: as for `Policy.infer`.

        """
        pictures = {role: np.asarray(image) for role, image in obs.images.items()}
        # Rows count from the anchor; a cache older than half a chunk leaves too few of them.
        old = step - self._anchor > self.policy.info.horizon // 2
        fresh = self.reuse.fresh(pictures) or old or self._anchor_state is None
        if fresh or self._anchor_state is None:
            self._anchor, self._anchor_state, self._age = step, obs.state, 0
            self.fresh_contexts += 1
        else:
            self._age += 1
            obs = dataclasses.replace(obs, state=self._anchor_state)
        self.engine.keep = not fresh
        self.engine.steer = self._continuation(obs.state, step, delay)
        chunk = dataclasses.replace(
            self.policy.infer(obs, seed=seed, denoise_steps=denoise_steps), kv_age=self._age
        )
        self._last = MadeChunk(chunk, self._anchor)
        return self._last

    def _continuation(self, state: np.ndarray, step: float, delay: int) -> Continuation | None:
        last, policy = self._last, self.policy
        if last is None or self.engine.mode == "plain":
            return None
        actions = np.asarray(last.chunk.actions, dtype=np.float64)
        return continuation(
            actions,
            self._anchor - last.anchor,
            state_to_model(policy.robot, np.asarray(state, dtype=np.float64)),
            delta_mask=policy.robot.delta_mask,
            normalizer=policy.recipe.normalization.actions,
            horizon=len(last.chunk.normalized),
            model_dim=last.chunk.normalized.shape[1],
            delay=delay + self.margin + round(step - self._anchor),
        )
