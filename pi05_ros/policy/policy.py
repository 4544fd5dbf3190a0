"""`Policy`: a checkpoint on a robot, Observation in, ActionChunk out. No ROS needed."""

from __future__ import annotations

import difflib
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pi05_ros.backends import Engine, Precision
from pi05_ros.policy.chunk import ActionChunk, StageTimings
from pi05_ros.policy.errors import PolicyError
from pi05_ros.policy.images import lerobot_image, to_hwc, to_uint8_hwc
from pi05_ros.policy.loading import Loaded, load
from pi05_ros.policy.observation import Observation
from pi05_ros.policy.profile import RobotProfile
from pi05_ros.policy.prompt import PromptEncoder, clean_prompt
from pi05_ros.policy.recipe import Recipe
from pi05_ros.policy.transforms import actions_from_model, pad_to, state_to_model

MAX_DENOISE_STEPS = 1000
_WARM_UP_PICTURE = (480, 640)


@dataclass(frozen=True)
class PolicyInfo:
    """What is loaded, for status messages and logs.

    Attributes:
        checkpoint: as given to `Policy.load`.
        checkpoint_hash: "sha256:<hex>" of the weight file, or "random:<preset>:<seed>".
        random_weights: True if the actions mean nothing; such a policy must not move a real arm.
        robot: profile name.
        backend, backend_reason: engine, and why this one.
        device: e.g. "cpu", "cuda:0".
        precision: of each stage, resolved.
        denoise_steps: Euler steps of the flow unless an inference asks for others.
        horizon: steps kept of each chunk.
        step_s: seconds per step.
        action_names, camera_roles, state_names: as in the profile.
        tokenizer: file, or "bytes".
        assumptions: facts that no file told, in words.

    """

    checkpoint: str
    checkpoint_hash: str
    random_weights: bool
    robot: str
    backend: str
    backend_reason: str
    device: str
    precision: Precision
    denoise_steps: int
    horizon: int
    step_s: float
    action_names: tuple[str, ...]
    camera_roles: tuple[str, ...]
    state_names: tuple[str, ...]
    tokenizer: str
    assumptions: tuple[str, ...] = ()


class Policy:
    """A loaded checkpoint with its robot's conventions; use `Policy.load`.

    `infer` may be called from any one thread at a time (calls are serialised); `set_prompt`
    from any thread.
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
        self._encoder = encoder
        self._model_horizon = model_horizon
        self._image_size = image_size
        self._action_dim = action_dim
        self._seed = seed
        self._counter = 0
        self._prompt: str | None = None
        self._lock = threading.Lock()
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
        denoise_steps: int = 10,
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
                weight seed 7).
            robot: shipped profile or YAML file. None: what the checkpoint says, "sim_arm" for
                random weights.
            tokenizer: SentencePiece ``.model``, ``tokenizer.json``, a directory with one, or
                "bytes". None looks beside the checkpoint and in openpi's cache; random weights
                use bytes.
            backend: "auto", "eager", "cuda", "onnx", "tensorrt".
            precision: per stage ("auto", "fp32", "bf16", ...).
            denoise_steps: Euler steps of the flow.
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
        _check_count("denoise_steps", denoise_steps, MAX_DENOISE_STEPS)
        _check_seed(seed)
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
        info = PolicyInfo(
            checkpoint=checkpoint,
            checkpoint_hash=loaded.checkpoint_hash,
            random_weights=loaded.recipe.family == "random",
            robot=profile.name,
            backend=loaded.engine.backend,
            backend_reason=loaded.engine.reason,
            device=str(loaded.engine.device),
            precision=loaded.engine.precision,
            denoise_steps=denoise_steps,
            horizon=kept,
            step_s=profile.step_s,
            action_names=profile.action_names,
            camera_roles=profile.camera_roles,
            state_names=profile.state_names,
            tokenizer=loaded.tokenizer.name,
            assumptions=loaded.recipe.assumptions,
        )
        encoder = PromptEncoder(
            loaded.tokenizer, profile.discrete_state, loaded.recipe.max_prompt_tokens
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

    def set_prompt(self, text: str) -> None:
        """Prompt of observations that bring none; empty text means the profile's default."""
        self._prompt = text if clean_prompt(text) else None

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
        steps = self.info.denoise_steps if denoise_steps is None else denoise_steps
        _check_count("denoise_steps", steps, MAX_DENOISE_STEPS)
        if seed is not None:
            _check_seed(seed)
        with self._lock:
            if seed is None:
                seed = self._seed + self._counter
                self._counter += 1
            return self._infer(obs, seed, steps)

    def reset(self) -> None:
        """Start the seeds of the flow noise over."""
        with self._lock:
            self._counter = 0

    def warm_up(self) -> float:
        """Run one inference on a black picture per camera; returns its milliseconds.

        Builds what engines build lazily. Seeds are not consumed.
        """
        black = np.zeros((*_WARM_UP_PICTURE, 3), dtype=np.uint8)
        obs = Observation(
            images=dict.fromkeys(self.robot.camera_roles, black),
            state=np.zeros(len(self.robot.state_names)),
            prompt=self._prompt or self.robot.default_prompt or "warm up",
        )
        start = time.perf_counter()
        with self._lock:
            self._infer(obs, 0, self.info.denoise_steps)
        return 1e3 * (time.perf_counter() - start)

    def close(self) -> None:
        """Free the engine's memory; the policy cannot be used afterwards."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self.engine.close()

    # one inference --------------------------------------------------------------------------

    def _infer(self, obs: Observation, seed: int, steps: int) -> ActionChunk:
        start = time.perf_counter()
        if self._closed:
            raise PolicyError("the policy is closed; load it again")
        prompt = obs.prompt or self._prompt or self.robot.default_prompt
        if prompt is None:
            raise PolicyError(
                f"no prompt: the observation has none and robot {self.robot.name!r} has no default"
            )
        state = self._check_state(obs.state)
        model_state = state_to_model(self.robot, state)
        tokens = torch.from_numpy(self._encoder.encode(prompt, self._prompt_state(model_state)))
        images = self._pictures(obs.images)
        noise = seeded_noise(seed, self._model_horizon, self._action_dim)
        prepared = time.perf_counter()
        normalized = self.engine.sample(images, tokens, noise, steps)
        output = normalized.detach().to("cpu", torch.float32).numpy()[: self.info.horizon]
        done = time.perf_counter()
        actions = actions_from_model(
            self.robot, self.recipe.normalization.actions.unnormalize(output), model_state
        )
        timings = self.engine.timings
        return ActionChunk(
            actions=np.ascontiguousarray(actions, dtype=np.float32),
            normalized=np.ascontiguousarray(output),
            names=self.robot.action_names,
            meanings=self.robot.action_meanings,
            units=self.robot.action_units,
            dt=self.robot.step_s,
            prompt=clean_prompt(prompt),
            seed=seed,
            denoise_steps=steps,
            timings=StageTimings(
                preprocess_ms=1e3 * (prepared - start),
                vision_ms=timings.vision_ms,
                prefill_ms=timings.prefill_ms,
                denoise_ms=timings.denoise_ms,
                model_ms=1e3 * (done - prepared),
                postprocess_ms=1e3 * (time.perf_counter() - done),
            ),
        )

    def _prompt_state(self, model_state: np.ndarray) -> np.ndarray:
        normalized = self.recipe.normalization.state.normalize(model_state)
        size = self.recipe.prompt_state_size
        return normalized if size is None else pad_to(normalized, size)

    def _check_state(self, state: np.ndarray) -> np.ndarray:
        names = self.robot.state_names
        values = np.asarray(state)
        if values.shape != (len(names),) or values.dtype.kind not in "fiu":
            raise PolicyError(
                f"state is {values.dtype} {list(values.shape)}; accepted: {len(names)} numbers "
                f"({', '.join(names)})"
            )
        bad = [names[i] for i in np.flatnonzero(~np.isfinite(values))]
        if bad:
            raise PolicyError(f"state has NaN or infinite values: {', '.join(bad)}")
        return values if values.dtype.kind == "f" else values.astype(np.float64)

    def _pictures(self, images: Mapping[str, np.ndarray]) -> list[torch.Tensor]:
        """Pictures of the cameras that are there, in the model's order; the rest is masked."""
        roles = self.robot.camera_roles
        for role in images:
            if role not in roles:
                close = difflib.get_close_matches(str(role), roles, n=1)
                hint = f" (did you mean {close[0]!r}?)" if close else ""
                raise PolicyError(
                    f"camera {role!r} is not of robot {self.robot.name!r}{hint}; "
                    f"accepted: {', '.join(roles)}"
                )
        pictures = []
        for camera in self.robot.cameras:
            image = images.get(camera.role)
            if image is None:
                if camera.required:
                    raise PolicyError(
                        f"camera {camera.role!r} is missing; robot {self.robot.name!r} needs "
                        f"{', '.join(self.robot.required_roles)}"
                    )
                continue
            pad = self.recipe.lerobot_pad
            picture = (to_uint8_hwc if pad is None else to_hwc)(image, camera.role)
            if camera.rotate_180:
                picture = np.ascontiguousarray(picture[::-1, ::-1])
            if not picture.flags.writeable:
                picture = picture.copy()
            if pad is None:
                pictures.append(torch.from_numpy(picture))
            else:
                pictures.append(lerobot_image(picture, self._image_size, pad))
        return pictures


def seeded_noise(seed: int, horizon: int, action_dim: int) -> torch.Tensor:
    """Flow noise ``[horizon, action_dim]`` float32, drawn on the CPU to be the same anywhere."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    return torch.randn(horizon, action_dim, generator=generator, dtype=torch.float32)


def _check_count(name: str, value: Any, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise PolicyError(f"{name} is {value!r}; accepted: a whole number from 1 to {most}")
    return value


def _check_seed(value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**62:
        raise PolicyError(f"seed is {value!r}; accepted: a whole number from 0 to 2^62 - 1")
