"""`RemotePolicy`: used as `Policy`, computed by a policy server on another machine.

Works with `pi05 serve` and with openpi's server and others of its protocol. Nothing is published
from an answer that does not fit the robot: the metadata must agree with the robot profile, and
each answer is checked. While the server is away, slow, or another model, every inference raises
RemoteError with the reason; it recovers by itself.
"""

from __future__ import annotations

import io
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from PIL import Image

from pi05_ros.backends.engine import EngineHealth
from pi05_ros.backends.resize import resize_with_pad_pillow
from pi05_ros.policy.errors import PolicyError
from pi05_ros.policy.interface import MAX_SEED, ActionChunk, Observation, PolicyInfo, StageTimings
from pi05_ros.policy.remote.connection import Connection, DialOptions
from pi05_ros.policy.remote.errors import RemoteError
from pi05_ros.policy.remote.remote_options import RemoteOptions, is_remote
from pi05_ros.policy.remote.server_facts import ServerFacts, read_metadata
from pi05_ros.policy.robots.openpi_keys import OPENPI_KEYS
from pi05_ros.policy.robots.profile import RobotProfile
from pi05_ros.policy.robots.profile_yaml import load_profile
from pi05_ros.policy.transforms.images import to_uint8_hwc

MODEL_SIZE = 224
"""Side of the model's images, pixels, to which `RemoteOptions.resize` shrinks."""
_RECENT = 10


def load_remote(
    url: str,
    *,
    backend: str,
    robot: str | None,
    seed: int,
    denoise_steps: int,
    prompt: str | None,
    options: Mapping[str, Any] | None,
) -> RemotePolicy:
    """`Policy.load` of a policy server.

    Raises:
        PolicyError: the address is none, or an option or backend does not go with it.
        RemoteError: see `RemotePolicy`.

    """
    if not is_remote(url):
        raise PolicyError(
            f"backend remote needs the address of a policy server as checkpoint, "
            f"ws://host:port or wss://host:port; it is {url!r:.200}"
        )
    if backend not in ("auto", "remote"):
        raise PolicyError(
            f"backend {backend!r} cannot be chosen for {url}: the server has its own"
        )
    known = [entry.name for entry in fields(RemoteOptions)]
    for name in options or {}:
        if name not in known:
            raise PolicyError(f"backend remote has no option {name!r}; it has {', '.join(known)}")
    return RemotePolicy(
        url,
        robot=robot,
        options=RemoteOptions(**(options or {})),
        seed=seed,
        denoise_steps=denoise_steps,
        prompt=prompt,
    )


class RemotePolicy:
    """A policy server as a policy.

    Args:
        url: ``ws://host:port`` or ``wss://host:port``.
        robot: shipped profile or YAML file; None takes what the server says it serves.
        options: see `RemoteOptions`.
        seed: inference number i without a seed of its own uses seed + i.
        denoise_steps: 0 leaves them to the server.
        prompt: of observations that bring none.

    Raises:
        RemoteError: the server cannot be reached or serves another robot.
        PolicyError, RobotProfileError: an option or the profile is not as accepted.

    """

    def __init__(
        self,
        url: str,
        *,
        robot: str | None = None,
        options: RemoteOptions | None = None,
        seed: int = 0,
        denoise_steps: int = 0,
        prompt: str | None = None,
    ) -> None:
        self._options = options or RemoteOptions()
        self._profile = None if robot is None else load_profile(robot)
        self._lock = threading.Lock()
        self._facts: ServerFacts | None = None
        self._seed, self._count = seed, 0
        self._steps = denoise_steps
        self._prompt = prompt or None
        self._network_s: deque[float] = deque(maxlen=_RECENT)
        self._last: dict[str, float] = {}
        self._connection = Connection(
            DialOptions(url, self._options.api_key), self._accept_metadata
        )
        limit_s = 20.0 + 10.0 * self._options.connect_attempts
        if not self._connection.wait(self._options.connect_attempts, limit_s):
            problem = self._connection.problem
            self._connection.close()
            raise RemoteError(f"cannot use policy server {problem}")
        facts = self._facts
        assert facts is not None
        self.robot: RobotProfile = facts.robot
        self.info: PolicyInfo = facts.info(url)

    def _accept_metadata(self, metadata: Mapping[Any, Any]) -> None:
        """Check a new connection's metadata; a server must not change into another model."""
        facts = read_metadata(metadata, self._profile)
        before = self._facts
        if before is not None and before.identity != facts.identity:
            raise RemoteError(
                f"the server now serves another model ({facts.identity}, was "
                f"{before.identity}); configure again to use it"
            )
        self._facts = facts

    # the interface of `Policy` --------------------------------------------------------------

    def set_prompt(self, text: str) -> None:
        """Prompt of observations that bring none; empty text means the profile's default."""
        self._prompt = (text.strip() and text) or None

    def infer(
        self, obs: Observation, *, seed: int | None = None, denoise_steps: int | None = None
    ) -> ActionChunk:
        """Answer one observation.

        Raises:
            RemoteError: no usable answer; the text says why.
            PolicyError: the observation is not as accepted.

        """
        with self._lock:
            facts = self._facts
            assert facts is not None
            if seed is None:
                seed = (self._seed + self._count) % (MAX_SEED + 1)
                self._count += 1
            prompt = obs.prompt or self._prompt or self.robot.default_prompt
            if not prompt:
                raise PolicyError(
                    f"no prompt: the observation has none and robot {self.robot.name!r} has no "
                    "default; set `prompt` (of the node: parameter or topic)"
                )
            steps = denoise_steps or self._steps or None
            began = time.perf_counter()
            request = (
                self._own_request(obs, prompt, seed, steps)
                if facts.own
                else self._openpi_request(obs, prompt, facts)
            )
            prepared = time.perf_counter()
            answer = self._connection.ask(request, self._options.deadline_s)
            done = time.perf_counter()
            try:
                actions = facts.actions(answer)
            except RemoteError as error:
                self._connection.drop(str(error))
                raise
            return self._chunk(answer, actions, prompt, seed, steps, (began, prepared, done))

    def prefill(
        self, obs: Observation, *, seed: int | None = None, denoise_steps: int | None = None
    ) -> ActionChunk:
        """The whole inference: the server does not offer the halves apart."""
        return self.infer(obs, seed=seed, denoise_steps=denoise_steps)

    def denoise(self, prefilled: ActionChunk) -> ActionChunk:
        """What `prefill` has computed."""
        return prefilled

    def allow_overlap(self) -> None:
        """Refused: the halves of an inference run on the server; raises PolicyError."""
        raise PolicyError("overlap is not for a remote policy; the server runs both halves")

    def reset(self) -> None:
        """Start the seeds over."""
        with self._lock:
            self._count = 0

    def warm_up(self) -> float:
        """One inference on black images; returns its milliseconds."""
        black = np.zeros((MODEL_SIZE, MODEL_SIZE, 3), np.uint8)
        obs = Observation(
            dict.fromkeys(self.robot.camera_roles, black),
            np.zeros(len(self.robot.state_names)),
            self._prompt or self.robot.default_prompt or "warm up",
        )
        start = time.perf_counter()
        self.infer(obs, seed=0)
        return 1e3 * (time.perf_counter() - start)

    def health(self) -> EngineHealth:
        """Connection and times of the last call, for diagnostics."""
        problem = self._connection.problem
        values = {name: f"{value:.2f}" for name, value in self._last.items()}
        return EngineHealth(values, f"policy server away: {problem}" if problem else "")

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    # one request ----------------------------------------------------------------------------

    def _own_request(
        self, obs: Observation, prompt: str, seed: int, steps: int | None
    ) -> dict[str, Any]:
        network_s = max(self._network_s, default=0.0)
        request: dict[str, Any] = {
            "images": {role: self._image(image, role) for role, image in obs.images.items()},
            "state": np.asarray(obs.state),
            "prompt": prompt,
            "seed": seed,
            # What chunks that continue each other are late by: the way here and back as well.
            "age_s": min(3600.0, max(0.0, obs.age_s) + network_s),
            "deadline_ms": 1e3 * self._options.deadline_s,
        }
        if obs.stamp_ns > 0:
            request["stamp_ns"] = obs.stamp_ns
        if steps:
            request["denoise_steps"] = steps
        return request

    def _openpi_request(self, obs: Observation, prompt: str, facts: ServerFacts) -> dict[str, Any]:
        keys = OPENPI_KEYS[self.robot.name]
        request: dict[str, Any] = {"prompt": prompt}
        for role, image in obs.images.items():
            folder, _, name = keys.images[role].rpartition("/")
            if folder == "images":  # ALOHA: a map of channel-first images
                pixels = np.ascontiguousarray(self._pixels(image, role).transpose(2, 0, 1))
                request.setdefault("images", {})[name] = pixels
            else:
                request[keys.images[role]] = self._pixels(image, role)
        state = facts.state_as_trained(np.asarray(obs.state, np.float64))
        sizes = {"observation/joint_position": 7, "joints": 6}
        at = 0
        for key in keys.state:
            size = sizes.get(key, len(state) - at)
            request[key] = state[at : at + size]
            at += size
        return request

    def _pixels(self, image: np.ndarray, role: str) -> np.ndarray:
        pixels = to_uint8_hwc(np.asarray(image), role)
        if self._options.resize:
            pixels = resize_with_pad_pillow(pixels, MODEL_SIZE)
        return np.ascontiguousarray(pixels)

    def _image(self, image: np.ndarray, role: str) -> np.ndarray | dict[str, bytes]:
        pixels = self._pixels(image, role)
        if not self._options.jpeg_quality:
            return pixels
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "JPEG", quality=self._options.jpeg_quality)
        return {"jpeg": out.getvalue()}

    def _chunk(
        self,
        answer: Mapping[str, Any],
        actions: np.ndarray,
        prompt: str,
        seed: int,
        steps: int | None,
        times: tuple[float, float, float],
    ) -> ActionChunk:
        began, prepared, done = times
        timing = answer.get("server_timing") or {}
        server_ms = _milliseconds(timing, "total_ms") or _milliseconds(timing, "infer_ms") or 0.0
        trip_ms = 1e3 * (done - prepared)
        self._network_s.append(max(0.0, trip_ms - server_ms) / 1e3)
        self._last = {
            "round_trip_ms": trip_ms,
            "server_ms": server_ms,
            "network_ms": 1e3 * self._network_s[-1],
        }
        parts = answer.get("timings") or {}
        return ActionChunk(
            actions=actions,
            normalized=np.zeros((len(actions), 0), np.float32),
            names=self.robot.action_names,
            meanings=self.robot.action_meanings,
            units=self.robot.command_units,
            dt=self.robot.step_s,
            prompt=prompt,
            seed=seed,
            denoise_steps=int(answer.get("denoise_steps") or steps or self.info.denoise_steps),
            timings=StageTimings(
                preprocess_ms=1e3 * (prepared - began),
                vision_ms=_milliseconds(parts, "vision_ms") or float("nan"),
                prefill_ms=_milliseconds(parts, "prefill_ms") or float("nan"),
                denoise_ms=_milliseconds(parts, "denoise_ms") or float("nan"),
                model_ms=trip_ms,
                postprocess_ms=0.0,
            ),
            kv_age=int(answer.get("kv_age") or 0),
        )


def _milliseconds(timing: Any, name: str) -> float | None:
    value = timing.get(name) if isinstance(timing, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        return None
    return float(value) if np.isfinite(value) else None
