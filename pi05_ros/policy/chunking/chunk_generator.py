"""A policy that continues its own chunks: KV reuse and real-time chunking around `Policy`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch

from pi05_ros.backends import Engine
from pi05_ros.backends.engine import Guidance, KVCache
from pi05_ros.backends.errors import BackendError
from pi05_ros.errors import InvalidValueError
from pi05_ros.model.guidance import MAX_GUIDANCE
from pi05_ros.policy import ActionChunk, Observation, Policy
from pi05_ros.policy.chunking.continuation import Continuation, continuation, rows_from
from pi05_ros.policy.chunking.kv_reuse import MODES, EveryN, RemainingMotion, ReuseRule
from pi05_ros.policy.chunking.rtc import guidance_weights
from pi05_ros.policy.chunking.vision_cache import VisionCache
from pi05_ros.policy.prefilled import Prefilled
from pi05_ros.policy.transforms.images import to_uint8_hwc


def require_mode(engine: Engine, mode: str) -> None:
    """Check that an engine can continue chunks in a mode of `ChunkGenerator`.

    Raises:
        ValueError: unknown mode.
        BackendError: the engine does not have it.

    """
    if mode not in MODES:
        raise InvalidValueError(f"chunk mode {mode!r}; accepted: {', '.join(MODES)}")
    has = supported_modes(engine)
    if mode not in has:
        others = f"it has {', '.join(has)}" if len(has) > 1 else "it has plain only"
        raise BackendError(
            f"chunk mode {mode!r} cannot run on backend {engine.backend!r}: {others}; "
            "backend 'eager' has all modes"
        )


def supported_modes(engine: Engine) -> tuple[str, ...]:
    """Modes of `ChunkGenerator` that an engine has."""
    able = engine.capabilities
    return ("plain", *able.guidance, *(("trained",) if able.frozen else ()))


@dataclass(frozen=True)
class Anchor:
    """The observation that a KV cache belongs to, and how often the cache has been used again.

    Attributes:
        step: its time in control steps.
        state: its state ``[n]``, robot units.
        prompt: as it was written.
        cache: the KV cache; None until it is there.
        age: inferences since.

    """

    step: float
    state: np.ndarray
    prompt: str
    cache: KVCache | None = None
    age: int = 0


@dataclass(frozen=True)
class PendingChunk:
    """A chunk whose KV cache is there, see `ChunkGenerator.start`.

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
class GeneratedChunk:
    """A chunk and the step it is anchored to.

    Attributes:
        chunk: its ``kv_age`` counts the inferences since the KV cache was computed.
        anchor: control step of the observation that the KV cache, and with it row 0, belongs to.

    """

    chunk: ActionChunk
    anchor: float


@dataclass(frozen=True)
class Finished:
    """What the next chunk continues of one.

    Attributes:
        normalized: the chunk ``[H, 32]``, as the model gave it.
        anchor: see `GeneratedChunk`.
        model_state: state ``[n]`` in the model's conventions, which its deltas refer to.

    """

    normalized: np.ndarray
    anchor: float
    model_state: np.ndarray


@dataclass(frozen=True)
class Continued:
    """Arguments of `Policy.denoise` that continue a chunk; neither for a free one."""

    guidance: Guidance | None = None
    frozen: torch.Tensor | None = None


MARGIN = 1
"""Steps beyond the expected delay that are tied to the previous chunk as well, so that the
hand-over itself is smooth and may come a little late."""


class ChunkGenerator:
    """Makes chunks for observations at counted control steps.

    Args:
        policy: makes the chunks.
        mode: "plain", or how the previous chunk is continued: "vjp", "vjp-scaled", "identity",
            "trained". What the engine does not have is refused.
        reuse: when to keep the KV cache.
        vision_change: threshold of a `VisionCache`; None runs the tower for every camera.
        max_guidance: clip of the guidance gain.

    """

    def __init__(
        self,
        policy: Policy,
        mode: str = "plain",
        reuse: ReuseRule | None = None,
        vision_change: float | None = None,
        max_guidance: float = MAX_GUIDANCE,
    ) -> None:
        require_mode(policy.engine, mode)
        self.policy = policy
        self.mode = mode
        self.max_guidance = max_guidance
        self.vision = None if vision_change is None else VisionCache(policy.engine, vision_change)
        self.reuse = reuse or EveryN(1)
        self._episode = 0
        self._last: tuple[int, Finished] | None = None  # and its episode
        self.reset()

    def reset(self) -> None:
        """Start a new episode: nothing to continue, nothing to reuse.

        In the thread that calls `start`; a chunk under way is still finished, and not continued.
        """
        self.reuse.reset()
        if self.vision is not None:
            self.vision.reset()
        self._episode += 1
        self._anchor: Anchor | None = None
        self.fresh_caches = 0

    @property
    def finished(self) -> Finished | None:
        """What the next chunk would continue; None after a reset."""
        episode, last = self._last or (0, None)
        return last if episode == self._episode else None

    def resume(self, last: Finished) -> None:
        """Go on from a chunk that another generator of this policy has finished."""
        self.reset()
        self._last = (self._episode, last)

    def make(
        self,
        obs: Observation,
        step: float,
        delay: int = 0,
        seed: int | None = None,
        denoise_steps: int | None = None,
    ) -> GeneratedChunk:
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
    ) -> PendingChunk:
        """First half of `make`: decide on the KV cache, and compute it if need be.

        With overlap (`Policy.allow_overlap`) it may run while the chunk before is finished in
        another thread. A new prompt always gets a new cache.
        """
        prompt = self.policy.prompt_of(obs)
        frames = {
            role: to_uint8_hwc(image, role)
            for role, image in obs.images.items()
            if image is not None
        }
        kept, self._anchor = self._anchor, None  # stays so if prefill fails
        if kept is not None and (
            kept.prompt != prompt or not self.policy.engine.holds(kept.cache)
        ):  # the engine may have answered somebody else meanwhile
            self.reuse.reset()
        # Rows count from the anchor; a cache older than half a chunk leaves too few of them.
        old = kept is not None and step - kept.step > self.policy.info.horizon // 2
        fresh = self.reuse.fresh(frames, self._plan(step, old))
        if kept is None or fresh:
            kept = None  # frees its cache before the new one is made
            anchor = Anchor(step, np.array(obs.state), prompt)
        else:
            anchor = dataclasses.replace(kept, age=kept.age + 1)
        prefilled = self.policy.prefill(
            dataclasses.replace(obs, state=anchor.state, prompt=prompt),
            seed=seed,
            denoise_steps=denoise_steps,
            reuse=anchor.cache,
            camera_keys=None if self.vision is None else self.vision.keys,
        )
        anchor = dataclasses.replace(anchor, cache=prefilled.cache)
        self._anchor = anchor
        self.fresh_caches += anchor.age == 0
        return PendingChunk(prefilled, step, anchor, self._episode)

    def _plan(self, step: float, old: bool) -> RemainingMotion:
        """What the chunk finished last has still to do at a step."""
        episode, last = self._last or (0, None)
        if last is None or episode != self._episode:
            return RemainingMotion(old=old)
        # Grippers (no deltas) do not count, nor do columns beyond the robot's.
        moving = np.flatnonzero(self.policy.robot.delta_mask)
        rows = rows_from(last.normalized, step - last.anchor)
        soon = rows[: self.policy.info.horizon // 4 + 1, moving]
        if len(soon) < 2 or not moving.size:
            return RemainingMotion(old=old)
        return RemainingMotion(float(np.abs(soon[-1] - soon[0]).max()), old)

    def finish(self, started: PendingChunk, delay: int = 0) -> GeneratedChunk:
        """Second half of `make`: denoise, continuing the chunk that was finished before.

        Chunks are finished in the order in which they were started.
        """
        following = self._continuation(started, delay)
        made_with = Continued() if following is None else self.continued(following)
        chunk = self.policy.denoise(
            started.prefilled, guidance=made_with.guidance, frozen=made_with.frozen
        )
        made = GeneratedChunk(
            dataclasses.replace(chunk, kv_age=started.anchor.age), started.anchor.step
        )
        if np.isfinite(chunk.actions).all():
            self._last = (
                started.episode,
                Finished(chunk.normalized, made.anchor, started.prefilled.model_state),
            )
        return made

    def continued(self, rest: Continuation) -> Continued:
        """What `Policy.denoise` gets to continue the rest of a chunk."""
        if self.mode == "plain" or rest.left == 0:
            return Continued()
        horizon, rows = self.policy.model_horizon, len(rest.previous)
        # The policy may keep fewer rows than the model has.
        previous = torch.zeros(horizon, rest.previous.shape[1])
        previous[:rows] = torch.from_numpy(rest.previous)[:horizon]
        if self.mode == "trained":
            return Continued(frozen=previous[: rest.delay]) if rest.delay else Continued()
        weights = guidance_weights("exp", horizon, rest.delay, rest.left)
        return Continued(Guidance(previous, weights, self.mode, self.max_guidance))

    def _continuation(self, started: PendingChunk, delay: int) -> Continuation | None:
        """What of the chunk before ``started`` has to continue."""
        if self._last is None or self.mode == "plain":
            return None
        episode, last = self._last
        if episode != started.episode:
            return None
        policy, anchor = self.policy, started.anchor
        return continuation(
            np.asarray(last.normalized, dtype=np.float64),
            anchor.step - last.anchor,
            np.subtract(started.prefilled.model_state, last.model_state, dtype=np.float64),
            delta_mask=policy.robot.delta_mask,
            normalizer=policy.recipe.normalization.actions,
            columns=len(policy.robot.action_names),
            horizon=len(last.normalized),
            delay=delay + MARGIN + round(started.step - anchor.step),
        )
