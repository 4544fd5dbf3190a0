"""`Policy`: a checkpoint on a robot, Observation in, ActionChunk out. No ROS needed."""

from __future__ import annotations

import copy
import dataclasses
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pi05_ros.backends import Engine, EngineTimings
from pi05_ros.backends.create import overlapped
from pi05_ros.backends.engine import EngineHealth, Guidance, KVCache
from pi05_ros.policy.argument_checks import check_count, check_seed, check_text
from pi05_ros.policy.checkpoints.description import describe_policy, hashed_info
from pi05_ros.policy.checkpoints.loading import load, prompt_encoder
from pi05_ros.policy.checkpoints.recipe import Recipe
from pi05_ros.policy.errors import PolicyError
from pi05_ros.policy.interface import (
    MAX_DENOISE_STEPS,
    MAX_SEED,
    ActionChunk,
    Observation,
    PolicyInfo,
    StageTimings,
)
from pi05_ros.policy.model_inputs import (
    ModelInputs,
    ObservationReader,
    black_observation,
    choose_prompt,
)
from pi05_ros.policy.policy_config import PolicyConfig
from pi05_ros.policy.prefilled import CameraKeys, Prefilled, make_chunk, seeded_noise
from pi05_ros.policy.prompt.prompt import PromptEncoder, clean_prompt
from pi05_ros.policy.remote.from_config import remote_from_config
from pi05_ros.policy.robots.profile import RobotProfile


class Policy:
    """A loaded checkpoint with its robot's conventions; use `Policy.load`.

    An inference is one call of `infer`, or `prefill` and then `denoise`, which gives the same
    actions. Each of the three may be called from any thread, calls are serialized. `prefill` of
    an observation runs at the same time as `denoise` of the one before only after
    `allow_overlap`. `set_prompt` may be called at any time.
    """

    def __init__(
        self,
        engine: Engine,
        recipe: Recipe,
        encoder: PromptEncoder,
        info: PolicyInfo,
        *,
        model_horizon: int,
        image_size: int,
        action_dim: int,
        seed: int = 0,
        prompt: str | None = None,
    ) -> None:
        self.engine = engine
        self.recipe = recipe
        self.robot: RobotProfile = recipe.profile
        self.info = info
        self._reader = ObservationReader(recipe, encoder, image_size)
        self._model_horizon = model_horizon
        self._action_dim = action_dim
        self._seed = seed
        self._counter = 0
        self._prompt: str | None = None
        self._overlap = False
        # Either half has a lock of its own; without overlap they are one and the same.
        self._prefill_lock = threading.RLock()
        self._denoise_lock = self._prefill_lock
        self._closed = False
        if prompt:
            self.set_prompt(prompt)

    @classmethod
    def load(cls, checkpoint: str | Path, **options: Any) -> Policy:
        """Load a checkpoint for a robot; the options are the fields of `PolicyConfig`.

        Raises:
            PolicyError, RobotProfileError, CheckpointError, BackendError: one clear line each.

        """
        return cls.from_config(PolicyConfig(checkpoint, **options))

    @classmethod
    def from_config(cls, config: PolicyConfig) -> Policy:
        """Load what a configuration asks for; see `load`.

        A policy server's address gives a `RemotePolicy`, which has the same interface.
        """
        if (remote := remote_from_config(config)) is not None:
            return remote  # type: ignore[return-value]
        loaded = load(config)
        policy = cls(
            loaded.engine,
            loaded.recipe,
            prompt_encoder(loaded.recipe, loaded.tokenizer),
            describe_policy(loaded, config),
            model_horizon=loaded.horizon,
            image_size=loaded.image_size,
            action_dim=loaded.action_dim,
            seed=config.seed,
            prompt=config.prompt,
        )
        policy.info = hashed_info(policy, loaded, warm_up=config.warm_up)
        return policy

    @property
    def model_horizon(self) -> int:
        """Rows of the model's chunks; `PolicyInfo.horizon` of them are kept."""
        return self._model_horizon

    @property
    def action_dim(self) -> int:
        """Columns of the model's actions, 32 for pi0.5."""
        return self._action_dim

    def set_prompt(self, text: str) -> None:
        """Prompt of observations that bring none; empty text means the profile's default."""
        self._prompt = text if clean_prompt(check_text(text)) else None

    def infer(
        self, obs: Observation, *, seed: int | None = None, denoise_steps: int | None = None
    ) -> ActionChunk:
        """Answer one observation.

        Equal observation, seed and steps give equal actions on one machine and backend. A delta
        is made absolute with the state of this same observation.

        Raises:
            PolicyError: a required camera is missing, or an image, the state or the prompt is
                not as accepted.

        """
        with self._prefill_lock, self._denoise_lock:
            steps, seed = self._steps_and_seed(denoise_steps, seed)
            return self._infer(obs, seed, steps)

    def prefill(
        self,
        obs: Observation,
        *,
        seed: int | None = None,
        denoise_steps: int | None = None,
        reuse: KVCache | None = None,
        camera_keys: CameraKeys | None = None,
    ) -> Prefilled:
        """First half of an inference: vision and prefill; see `infer` for errors.

        Args:
            obs: see `infer`, as are seed and denoise_steps.
            seed: see there.
            denoise_steps: see there.
            reuse: KV cache of an earlier observation, to be used in place of a new one.
            camera_keys: key of each image, given the model's images; see `Engine.prefill`.

        On an engine with N KV caches (cuda: 1, with overlap 2) a result must be denoised before N
        more are asked for.
        """
        with self._prefill_lock:
            steps, seed = self._steps_and_seed(denoise_steps, seed)
            start = time.perf_counter()
            prompt, inputs = self._open(obs)
            prepared = time.perf_counter()
            cache, timings = reuse, EngineTimings(0.0, 0.0)
            if reuse is None:
                keys = None if camera_keys is None else camera_keys(inputs.images)
                cache = self.engine.prefill(inputs.images, inputs.tokens, camera_keys=keys)
                timings = self.engine.timings
            done = time.perf_counter()
            return Prefilled(
                cache,
                inputs.state,
                prompt,
                seed,
                steps,
                StageTimings(
                    preprocess_ms=1e3 * (prepared - start),
                    vision_ms=timings.vision_ms,
                    prefill_ms=timings.prefill_ms,
                    model_ms=1e3 * (done - prepared),
                ),
                reused=reuse is not None,
            )

    def denoise(
        self,
        prefilled: Prefilled,
        *,
        guidance: Guidance | None = None,
        frozen: torch.Tensor | None = None,
    ) -> ActionChunk:
        """Second half: the flow, and its result in robot units.

        In the timings of the chunk, ``model_ms`` is both halves without the time between them.

        Args:
            prefilled: the first half.
            guidance: pull towards the previous chunk, see `Engine.denoise`.
            frozen: normalized actions ``[d, 32]`` that are kept, see there.

        Raises:
            PolicyError: the policy is closed.
            BackendError: the KV cache has been overwritten by a later observation, or the engine
                cannot continue a chunk in this way.

        """
        with self._denoise_lock:
            self._check_open()
            start = time.perf_counter()
            noise = seeded_noise(prefilled.seed, self._model_horizon, self._action_dim)
            normalized = self.engine.denoise(
                prefilled.cache, noise, steps=prefilled.steps, guidance=guidance, frozen=frozen
            )
            output = normalized.detach().to("cpu", torch.float32).numpy()
            elapsed_ms = 1e3 * (time.perf_counter() - start)
            # An overlapping engine has waited for its work; another one may not have.
            denoise_ms = elapsed_ms if self._overlap else self.engine.timings.denoise_ms
            before = prefilled.timings
            # A device may not have reached the end of prefill when it returned.
            if not self._overlap and not prefilled.reused:
                known = self.engine.timings
                before = dataclasses.replace(
                    before, vision_ms=known.vision_ms, prefill_ms=known.prefill_ms
                )
            timings = dataclasses.replace(
                before, denoise_ms=denoise_ms, model_ms=before.model_ms + elapsed_ms
            )
            return make_chunk(output, prefilled, self.recipe, self.info.horizon, timings)

    def allow_overlap(self) -> None:
        """Let `prefill` of one observation run while the one before is denoised.

        Raises:
            BackendError: the backend cannot do that.

        """
        with self._prefill_lock, self._denoise_lock:
            self.engine = overlapped(self.engine)
            if not self._overlap:
                self._overlap = True
                self._denoise_lock = threading.RLock()

    def with_engine(self, engine: Engine) -> Policy:
        """Same robot, prompt and seeds from here on, with another engine; this one stays as it is.

        Closing either policy closes its own engine only.
        """
        other = copy.copy(self)
        other.engine = engine
        other._overlap = False
        other._prefill_lock = other._denoise_lock = threading.RLock()
        return other

    def reset(self) -> None:
        """Start the seeds of the flow noise over."""
        with self._prefill_lock:
            self._counter = 0

    def warm_up(self, inference: Callable[[Observation], object] | None = None) -> float:
        """Run an inference on a black image per camera; returns its milliseconds.

        Builds what engines build lazily, for overlap in all KV caches.

        Args:
            inference: how observations will be answered, where it is not by `infer`. It must not
                consume seeds.

        """
        obs = black_observation(self.robot, self._prompt)
        start = time.perf_counter()
        with self._prefill_lock, self._denoise_lock:
            if inference is not None:
                self.engine.warm_up(lambda: inference(obs))
            elif self._overlap:
                self.engine.warm_up(lambda: self.denoise(self.prefill(obs, seed=0)))
            else:
                self.engine.warm_up(lambda: self._infer(obs, 0, self.info.denoise_steps))
        return 1e3 * (time.perf_counter() - start)

    def health(self) -> EngineHealth:
        """What the engine's supervision of itself has found; from any thread, without waiting."""
        return EngineHealth() if self._closed else self.engine.health()

    def close(self) -> None:
        """Free the engine's memory; the policy cannot be used afterwards."""
        with self._prefill_lock, self._denoise_lock:
            if not self._closed:
                self._closed = True
                self.engine.close()

    # one inference --------------------------------------------------------------------------

    def _steps_and_seed(self, denoise_steps: int | None, seed: int | None) -> tuple[int, int]:
        """What was asked for, or the defaults; counts the inference."""
        steps = denoise_steps or self.info.denoise_steps
        check_count("denoise_steps", steps, MAX_DENOISE_STEPS)
        if seed is not None:
            check_seed(seed)
            return steps, seed
        seed = (self._seed + self._counter) % (MAX_SEED + 1)
        self._counter += 1
        return steps, seed

    def prompt_of(self, obs: Observation) -> str:
        """Prompt that an observation is answered with, as it was written.

        Raises:
            PolicyError: neither it nor the policy nor the robot has one, or it is not a text.

        """
        return choose_prompt(obs.prompt or self._prompt, self.robot)

    def _check_open(self) -> None:
        if self._closed:
            raise PolicyError("the policy is closed; load it again")

    def _open(self, obs: Observation) -> tuple[str, ModelInputs]:
        """Check an observation: its prompt, and what the model gets."""
        self._check_open()
        prompt = self.prompt_of(obs)
        return clean_prompt(prompt), self._reader.read(obs, prompt)

    def _infer(self, obs: Observation, seed: int, steps: int) -> ActionChunk:
        start = time.perf_counter()
        prompt, inputs = self._open(obs)
        noise = seeded_noise(seed, self._model_horizon, self._action_dim)
        prepared = time.perf_counter()
        normalized = self.engine.sample(inputs.images, inputs.tokens, noise, steps)
        output = normalized.detach().to("cpu", torch.float32).numpy()
        done = time.perf_counter()
        engine = self.engine.timings
        timings = StageTimings(
            1e3 * (prepared - start),
            engine.vision_ms,
            engine.prefill_ms,
            engine.denoise_ms,
            model_ms=1e3 * (done - prepared),
        )
        of = Prefilled(None, inputs.state, prompt, seed, steps, timings)
        return make_chunk(output, of, self.recipe, self.info.horizon, timings)
