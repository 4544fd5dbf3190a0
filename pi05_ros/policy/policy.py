"""`Policy`: a checkpoint on a robot, Observation in, ActionChunk out. No ROS needed."""

from __future__ import annotations

import copy
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pi05_ros.backends import Engine, EngineTimings, Precision
from pi05_ros.backends.create import overlapped
from pi05_ros.backends.engine import EngineHealth, Guidance, KVCache
from pi05_ros.policy.checkpoints.loading import Loaded, load
from pi05_ros.policy.checkpoints.recipe import DEFAULT_DENOISE_STEPS, Recipe
from pi05_ros.policy.errors import PolicyError
from pi05_ros.policy.interface import (
    MAX_DENOISE_STEPS,
    MAX_SEED,
    ActionChunk,
    Observation,
    PolicyInfo,
    StageTimings,
)
from pi05_ros.policy.model_inputs import ModelInputs, ObservationReader
from pi05_ros.policy.prompt.prompt import PromptEncoder, clean_prompt
from pi05_ros.policy.remote.remote_policy import is_remote, load_remote
from pi05_ros.policy.robots.profile import RobotProfile
from pi05_ros.policy.transforms.transforms import actions_from_model

logger = logging.getLogger(__name__)
_WARM_UP_PICTURE = (480, 640)


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
    def load(
        cls,
        checkpoint: str | Path,
        *,
        robot: str | Path | None = None,
        tokenizer: str | Path | None = None,
        backend: str = "auto",
        precision: Precision | Mapping[str, str] | str | None = None,
        denoise_steps: int = 0,
        horizon: int | None = None,
        device: str = "auto",
        seed: int = 0,
        prompt: str | None = None,
        threads: int | None = None,
        camera_roles: Mapping[str, str] | None = None,
        lerobot_era: str = "auto",
        control_hz: float | None = None,
        backend_options: Mapping[str, Any] | None = None,
    ) -> Policy:
        """Load a checkpoint for a robot.

        Args:
            checkpoint: an openpi or LeRobot directory (or its model.safetensors), or
                "random:tiny" / "random:pi05" for seeded random weights ("random:tiny:7" for
                weight seed 7), or the address of a policy server, ``ws://host:port``: then a
                `RemotePolicy` is returned, with the same interface, and ``backend_options`` are
                the fields of `RemoteOptions`.
            robot: shipped profile or YAML file. None: what the checkpoint says, "sim_arm" for
                random weights.
            tokenizer: SentencePiece ``.model``, ``tokenizer.json``, a directory with one, or
                "bytes". None looks beside the checkpoint and in openpi's cache; random weights
                use bytes.
            backend: "auto", "eager", "cuda", "onnx", "tensorrt", "remote".
            precision: per stage ("auto", "fp32", "bf16", ...).
            denoise_steps: Euler steps of the flow; 0 takes those of the checkpoint's config.json
                (num_inference_steps or num_steps), or 10 where it says none.
            horizon: steps kept of each chunk; None keeps all.
            device: "auto" (CUDA if there is one), "cpu", "cuda", "cuda:1".
            seed: of the flow noise; inference number i without a seed of its own uses seed + i.
            prompt: replaces the profile's default prompt.
            threads: CPU threads of torch in this whole process; None leaves torch's choice.
            camera_roles: LeRobot only: role -> image feature.
            lerobot_era: LeRobot only: "auto", "0.4", "0.5".
            control_hz: replaces the profile's rate.
            backend_options: passed to the backend.

        Raises:
            PolicyError, RobotProfileError, CheckpointError, BackendError: one clear line each.

        """
        _check_count("denoise_steps", denoise_steps, MAX_DENOISE_STEPS, least=0)
        _check_seed(seed)
        if is_remote(str(checkpoint)) or backend == "remote":
            remote: Any = load_remote(
                str(checkpoint),
                backend=backend,
                robot=None if robot is None else str(robot),
                seed=seed,
                denoise_steps=denoise_steps,
                prompt=prompt,
                options=backend_options,
            )
            return remote  # type: ignore[no-any-return]
        loaded = load(
            checkpoint,
            robot=robot,
            tokenizer=tokenizer,
            backend=backend,
            precision=precision,
            device=device,
            threads=threads,
            camera_roles=camera_roles,
            lerobot_era=lerobot_era,
            control_hz=control_hz,
            backend_options=backend_options,
        )
        return cls._from_loaded(loaded, str(checkpoint), denoise_steps, horizon, seed, prompt)

    @classmethod
    def _from_loaded(
        cls,
        loaded: Loaded,
        checkpoint: str,
        denoise_steps: int,
        horizon: int | None,
        seed: int,
        prompt: str | None,
    ) -> Policy:
        profile = loaded.recipe.profile
        full = loaded.horizon
        kept = full if horizon is None else _check_count("horizon", horizon, full)
        stated, assumptions = loaded.recipe.denoise_steps, loaded.recipe.assumptions
        if stated is not None and denoise_steps not in (0, stated):
            note = f"denoise_steps {denoise_steps} is used, not {stated} of the checkpoint's files"
            logger.info("assumed: %s", note)
            assumptions = (*assumptions, note)
        info = PolicyInfo(
            checkpoint=checkpoint,
            checkpoint_hash=loaded.checkpoint_hash,
            random_weights=loaded.recipe.family == "random",
            robot=profile.name,
            backend=loaded.engine.backend,
            backend_reason=loaded.engine.reason,
            device=str(loaded.engine.device),
            precision=loaded.engine.precision,
            denoise_steps=denoise_steps or stated or DEFAULT_DENOISE_STEPS,
            horizon=kept,
            step_s=profile.step_s,
            action_names=profile.action_names,
            camera_roles=profile.camera_roles,
            state_names=profile.state_names,
            tokenizer=loaded.tokenizer.name,
            assumptions=assumptions,
            doubts=loaded.recipe.doubts,
        )
        encoder = PromptEncoder(
            loaded.tokenizer,
            profile.discrete_state,
            loaded.recipe.max_prompt_tokens,
            loaded.recipe.prompt_bos,
        )
        return cls(
            loaded.engine,
            loaded.recipe,
            encoder,
            info,
            model_horizon=full,
            image_size=loaded.image_size,
            action_dim=loaded.action_dim,
            seed=seed,
            prompt=prompt,
        )

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
        self._prompt = text if clean_prompt(_text(text)) else None

    def infer(
        self, obs: Observation, *, seed: int | None = None, denoise_steps: int | None = None
    ) -> ActionChunk:
        """Answer one observation.

        Equal observation, seed and steps give equal actions on one machine and backend. A delta
        is made absolute with the state of this same observation.

        Raises:
            PolicyError: a required camera is missing, a picture, the state or the prompt is not
                as accepted.

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

        On an engine with few KV caches (cuda: 1, with overlap 2) a result must be denoised before
        as many further ones are asked for.
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
            if self._closed:
                raise PolicyError("the policy is closed; load it again")
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
            return self._chunk(output, prefilled, timings)

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
        black = np.zeros((*_WARM_UP_PICTURE, 3), dtype=np.uint8)
        obs = Observation(
            images=dict.fromkeys(self.robot.camera_roles, black),
            state=np.zeros(len(self.robot.state_names)),
            prompt=self._prompt or self.robot.default_prompt or "warm up",
        )
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
        _check_count("denoise_steps", steps, MAX_DENOISE_STEPS)
        if seed is not None:
            _check_seed(seed)
            return steps, seed
        seed = (self._seed + self._counter) % (MAX_SEED + 1)
        self._counter += 1
        return steps, seed

    def prompt_of(self, obs: Observation) -> str:
        """Prompt that an observation is answered with, as it was written.

        Raises:
            PolicyError: neither it nor the policy nor the robot has one, or it is not a text.

        """
        prompt = obs.prompt or self._prompt or self.robot.default_prompt
        if prompt is None:
            raise PolicyError(
                f"no prompt: the observation has none and robot {self.robot.name!r} has no "
                "default; set `prompt` (of the node: parameter or topic)"
            )
        return _text(prompt)

    def _open(self, obs: Observation) -> tuple[str, ModelInputs]:
        """Check an observation: its prompt, and what the model gets."""
        if self._closed:
            raise PolicyError("the policy is closed; load it again")
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
            preprocess_ms=1e3 * (prepared - start),
            vision_ms=engine.vision_ms,
            prefill_ms=engine.prefill_ms,
            denoise_ms=engine.denoise_ms,
            model_ms=1e3 * (done - prepared),
        )
        return self._chunk(output, Prefilled(None, inputs.state, prompt, seed, steps, timings))

    def _chunk(
        self, output: np.ndarray, of: Prefilled, timings: StageTimings | None = None
    ) -> ActionChunk:
        """Model output ``[H, 32]`` in robot units, with what it answers."""
        start = time.perf_counter()
        output = output[: self.info.horizon]
        actions = actions_from_model(
            self.robot, self.recipe.normalization.actions.unnormalize(output), of.model_state
        )
        return ActionChunk(
            actions=np.ascontiguousarray(actions, dtype=np.float32),
            normalized=np.ascontiguousarray(output),
            names=self.robot.action_names,
            meanings=self.robot.action_meanings,
            units=self.robot.command_units,
            dt=self.robot.step_s,
            prompt=of.prompt,
            seed=of.seed,
            denoise_steps=of.steps,
            timings=dataclasses.replace(
                timings or of.timings, postprocess_ms=1e3 * (time.perf_counter() - start)
            ),
        )


def seeded_noise(seed: int, horizon: int, action_dim: int) -> torch.Tensor:
    """Flow noise ``[horizon, action_dim]`` float32, drawn on the CPU to be the same anywhere."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    return torch.randn(horizon, action_dim, generator=generator, dtype=torch.float32)


def _check_count(name: str, value: Any, most: int, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise PolicyError(f"{name} is {value!r}; accepted: a whole number from {least} to {most}")
    return value


def _check_seed(value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_SEED:
        raise PolicyError(f"seed is {value!r}; accepted: a whole number from 0 to 2^63 - 1")


def _text(prompt: object) -> str:
    if not isinstance(prompt, str):
        raise PolicyError(f"prompt is {type(prompt).__name__}; accepted: a text")
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:  # half of a surrogate pair: bytes that were no UTF-8
        raise PolicyError(f"prompt {prompt!r:.80} is not Unicode text: {error.reason}") from error
    return prompt
