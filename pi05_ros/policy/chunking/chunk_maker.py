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
from pi05_ros.errors import InvalidValueError
from pi05_ros.policy import ActionChunk, Observation, Policy
from pi05_ros.policy.chunking.continuation import Continuation, continuation, rows_from
from pi05_ros.policy.chunking.kv_reuse import MODES, EveryN, Plan, ReuseRule
from pi05_ros.policy.chunking.rtc import MAX_GUIDANCE, guidance_weights
from pi05_ros.policy.chunking.vision_cache import VisionCache
from pi05_ros.policy.policy import Prefilled
from pi05_ros.policy.transforms.images import to_uint8_hwc


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
        self.max_guidance = MAX_GUIDANCE
        self.vision: VisionCache | None = None
        self._context: Any = None
        self._kept = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    @property
    def timings(self) -> EngineTimings:
        """Of the last calls; a kept context took no time."""
        times = self.engine.timings
        if not self._kept:
            return times
        return EngineTimings(0.0, 0.0, times.denoise_ms, times.denoise_ms)

    def context(self, images: Any, tokens: torch.Tensor) -> Any:
        """KV cache of an observation, or the last one again while `keep` is set."""
        self._kept = self.keep and self._context is not None
        if not self._kept:
            self._context = None
            self._context = (self.vision or self.engine).context(images, tokens)
        return self._context

    def denoise(self, context: Any, noise: torch.Tensor, steps: int = 10) -> torch.Tensor:
        """Actions ``[H, 32]``, continuing the previous chunk if `steer` says how."""
        return self.engine.denoise(context, noise, steps, **self._steering(len(noise)))

    def sample(
        self, images: Any, tokens: torch.Tensor, noise: torch.Tensor, steps: int = 10
    ) -> torch.Tensor:
        """Actions ``[H, 32]``; the kept context and the continuation are used where set."""
        return self.denoise(self.context(images, tokens), noise, steps)

    def _steering(self, horizon: int) -> dict[str, Any]:
        """What `SteerableEngine.denoise` needs to continue the previous chunk."""
        if self.mode == "plain" or self.steer is None or self.steer.left == 0:
            return {}
        rows, columns = self.steer.previous.shape
        previous = torch.zeros(max(horizon, rows), columns)  # the policy may keep fewer rows
        previous[:rows] = torch.from_numpy(self.steer.previous)
        previous = previous[:horizon]
        if self.mode == "trained":
            return {"frozen": previous[: self.steer.delay]} if self.steer.delay else {}
        weights = guidance_weights(self.schedule, horizon, self.steer.delay, self.steer.left)
        return {"guidance": Guidance(previous, weights, self.mode, self.max_guidance)}


@dataclass(frozen=True)
class Anchor:
    """The observation that a KV cache belongs to, and how often the cache has been used again.

    Attributes:
        step: its time in control steps.
        state: its state ``[n]``, robot units.
        prompt: as it was written.
        age: inferences since.

    """

    step: float
    state: np.ndarray
    prompt: str
    age: int = 0


@dataclass(frozen=True)
class StartedChunk:
    """A chunk whose KV cache is there, see `ChunkMaker.start`.

    Attributes:
        prefilled: for `Policy.denoise`.
        step: time of the observation in control steps.
        anchor: what the cache belongs to.
        episode: number of the reset before; chunks of another one are not continued.

    """

    prefilled: Prefilled
    step: float
    anchor: Anchor
    episode: int


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
        mode: "plain", or how the previous chunk is continued: "vjp", "vjp-scaled", "identity",
            "trained". What the engine does not have is refused.
        schedule: of the guidance weights.
        reuse: when to keep the KV cache.
        margin: steps beyond the expected delay that are tied to the previous chunk as well, so
            that the hand-over itself is smooth and may come a little late.
        vision_change: threshold of a `VisionCache`; None runs the tower for every camera.
        max_guidance: clip of the guidance gain.

    """

    def __init__(
        self,
        policy: Policy,
        mode: str = "plain",
        schedule: str = "exp",
        reuse: ReuseRule | None = None,
        margin: int = 1,
        vision_change: float | None = None,
        max_guidance: float = MAX_GUIDANCE,
    ) -> None:
        if mode not in MODES:
            raise InvalidValueError(f"chunk mode {mode!r}; accepted: {', '.join(MODES)}")
        self.policy = policy
        inner = policy.engine.engine if isinstance(policy.engine, SteeredEngine) else policy.engine
        self.engine = SteeredEngine(inner, mode)
        self.engine.schedule = schedule
        self.engine.max_guidance = max_guidance
        if vision_change is not None:
            self.engine.vision = VisionCache(inner, vision_change)
        policy.engine = self.engine
        self.reuse = reuse or EveryN(1)
        self.margin = margin
        self._episode = 0
        # Finished last: its episode, the chunk, and the model's state that its deltas refer to.
        self._last: tuple[int, MadeChunk, np.ndarray] | None = None
        self.reset()

    def reset(self) -> None:
        """Start a new episode: nothing to continue, nothing to reuse.

        In the thread that calls `start`; a chunk under way is still finished, and not continued.
        """
        self.reuse.reset()
        if self.engine.vision is not None:
            self.engine.vision.reset()
        self._episode += 1
        self._anchor: Anchor | None = None
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
        return self.finish(self.start(obs, step, seed, denoise_steps), delay)

    def start(
        self,
        obs: Observation,
        step: float,
        seed: int | None = None,
        denoise_steps: int | None = None,
    ) -> StartedChunk:
        """First half of `make`: decide on the KV cache, and compute it if need be.

        With overlap (`Policy.allow_overlap`) it may run while the chunk before is finished in
        another thread. A new prompt always gets a new cache.
        """
        prompt = self.policy.prompt_of(obs)
        pictures = {
            role: to_uint8_hwc(image, role)
            for role, image in obs.images.items()
            if image is not None
        }
        kept, self._anchor = self._anchor, None  # stays so if prefill fails
        if kept is not None and kept.prompt != prompt:
            self.reuse.reset()
        # Rows count from the anchor; a cache older than half a chunk leaves too few of them.
        old = kept is not None and step - kept.step > self.policy.info.horizon // 2
        fresh = self.reuse.fresh(pictures, self._plan(step, old))
        if kept is None or fresh:
            anchor = Anchor(step, np.array(obs.state), prompt)
        else:
            anchor = dataclasses.replace(kept, age=kept.age + 1)
        self.engine.keep = anchor.age > 0
        prefilled = self.policy.prefill(
            dataclasses.replace(obs, state=anchor.state, prompt=prompt),
            seed=seed,
            denoise_steps=denoise_steps,
        )
        self._anchor = anchor
        self.fresh_contexts += anchor.age == 0
        return StartedChunk(prefilled, step, anchor, self._episode)

    def _plan(self, step: float, old: bool) -> Plan:
        """What the chunk finished last has still to do at a step."""
        episode, last, _ = self._last or (0, None, None)
        if last is None or episode != self._episode:
            return Plan(old=old)
        # Grippers (no deltas) do not count, nor do columns beyond the robot's.
        moving = np.flatnonzero(self.policy.robot.delta_mask)
        rows = rows_from(last.chunk.normalized, step - last.anchor)
        soon = rows[: self.policy.info.horizon // 4 + 1, moving]
        if len(soon) < 2 or not moving.size:
            return Plan(old=old)
        return Plan(float(np.abs(soon[-1] - soon[0]).max()), old)

    def finish(self, started: StartedChunk, delay: int = 0) -> MadeChunk:
        """Second half of `make`: denoise, continuing the chunk that was finished before.

        Chunks are finished in the order in which they were started.
        """
        self.engine.steer = self._continuation(started, delay)
        chunk = self.policy.denoise(started.prefilled)
        made = MadeChunk(
            dataclasses.replace(chunk, kv_age=started.anchor.age), started.anchor.step
        )
        if np.isfinite(chunk.actions).all():
            self._last = (started.episode, made, started.prefilled.model_state)
        return made

    def _continuation(self, started: StartedChunk, delay: int) -> Continuation | None:
        """What of the chunk before ``started`` has to continue."""
        if self._last is None or self.engine.mode == "plain":
            return None
        episode, last, state = self._last
        if episode != started.episode:
            return None
        policy, anchor = self.policy, started.anchor
        return continuation(
            np.asarray(last.chunk.normalized, dtype=np.float64),
            anchor.step - last.anchor,
            np.subtract(started.prefilled.model_state, state, dtype=np.float64),
            delta_mask=policy.robot.delta_mask,
            normalizer=policy.recipe.normalization.actions,
            columns=len(policy.robot.action_names),
            horizon=len(last.chunk.normalized),
            delay=delay + self.margin + round(started.step - anchor.step),
        )
