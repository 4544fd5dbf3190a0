"""A policy that continues its own chunks: KV reuse and real-time chunking around `Policy`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pi05_ros.backends import Engine
from pi05_ros.backends.engine import EngineTimings, Guidance
from pi05_ros.backends.errors import BackendError
from pi05_ros.policy import ActionChunk, Observation, Policy
from pi05_ros.policy.execution.continuation import Continuation, continuation
from pi05_ros.policy.execution.rtc import guidance_weights
from pi05_ros.policy.kv_reuse import MODES, EveryN, ReuseRule
from pi05_ros.policy.transforms import state_to_model
from pi05_ros.policy.vision_cache import VisionCache


class SteeredEngine:
    """Engine that can keep the last context and steer the flow; else it passes calls on.

    Args:
        engine: does the work.
        mode: how a chunk continues the one before, see `ChunkMaker`.

    Raises:
        BackendError: the engine does not have the mode.

    """

    def __init__(self, engine: Engine, mode: str = "plain") -> None:
        has = getattr(engine, "steering", ())
        if mode != "plain" and mode not in has:
            others = f"it has {', '.join(('plain', *has))}" if has else "it has plain only"
            raise BackendError(
                f"chunk mode {mode!r} cannot run on backend {engine.backend!r}: {others}; "
                "backend 'eager' has all modes"
            )
        self.engine = engine
        self.keep = False
        self.steer: Continuation | None = None
        self.mode = mode
        self.schedule = "exp"
        self.vision: VisionCache | None = None
        self._context: Any = None
        self._kept = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    @property
    def timings(self) -> EngineTimings:
        """Of the last `sample`; a kept context took no time."""
        times = self.engine.timings
        if not self._kept:
            return times
        return EngineTimings(0.0, 0.0, times.denoise_ms, times.denoise_ms)

    def sample(
        self, images: Any, tokens: torch.Tensor, noise: torch.Tensor, steps: int = 10
    ) -> Any:
        """Actions ``[H, 32]``; the kept context and the continuation are used where set."""
        self._kept = self.keep and self._context is not None
        if not self._kept:
            source = self.vision or self.engine
            self._context = source.context(images, tokens)
        steering = self._steering(len(noise))
        return self.engine.denoise(self._context, noise, steps, **steering)

    def _steering(self, horizon: int) -> dict[str, Any]:
        """What `SteerableEngine.denoise` needs to continue the previous chunk."""
        if self.mode == "plain" or self.steer is None or self.steer.left == 0:
            return {}
        previous = torch.from_numpy(self.steer.previous)
        if self.mode == "trained":
            return {"frozen": previous[: self.steer.delay]} if self.steer.delay else {}
        weights = guidance_weights(self.schedule, horizon, self.steer.delay, self.steer.left)
        return {"guidance": Guidance(previous, weights, self.mode)}


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
        mode: "plain", or how the previous chunk is continued: "vjp", "identity", "trained". What
            the engine does not have is refused.
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
        self.engine = SteeredEngine(inner, mode)
        self.engine.schedule = schedule
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
