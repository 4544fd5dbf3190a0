"""One connection's inferences: its seeds, its continued chunks, and its answers as maps.

A session computes nothing by itself: `Session.answer` is called in the inference thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from pi05_ros.policy.interface import MAX_SEED, ActionChunk, Observation, PolicyInfo
from pi05_ros.policy.robots.profile import RobotProfile
from pi05_ros.serving.errors import ServingError
from pi05_ros.serving.openpi_units import OpenpiUnits
from pi05_ros.serving.requests import Request


class ServedPolicy(Protocol):
    """What the server needs of a policy (`pi05_ros.policy.Policy`, `ContinuingPolicy`)."""

    info: PolicyInfo
    robot: RobotProfile

    def infer(
        self, obs: Observation, *, seed: int | None = None, denoise_steps: int | None = None
    ) -> ActionChunk:
        """Actions for one observation."""

    def warm_up(self) -> Any:
        """Run once so that the first real inference is not slow."""

    def close(self) -> None:
        """Free the model."""


class Answering(Protocol):
    """State of one connection as the server sees it."""

    def answer(self, request: Request) -> dict[str, Any]:
        """Answer one request, see `Session.answer`."""


class Session:
    """State of one connection.

    Args:
        policy: of this session alone where chunks continue each other, else shared.
        forget: makes ``policy`` continue nothing; None if it continues nothing anyway.
        seed: of the flow noise; request i without a seed of its own uses seed + i.
        openpi: conversions for requests in openpi's keys; None passes numbers unchanged.

    """

    def __init__(
        self,
        policy: ServedPolicy,
        forget: Callable[[], None] | None = None,
        seed: int = 0,
        openpi: OpenpiUnits | None = None,
    ) -> None:
        self._policy = policy
        self._forget = forget
        self._seed = seed
        self._count = 0
        self._openpi = openpi

    def answer(self, request: Request) -> dict[str, Any]:
        """Compute one request.

        Returns:
            ``actions`` float32 ``[H, A]`` and ``server_timing`` (milliseconds) as openpi's server
            does; for our own form also what `ActionChunk` says of them. For a reset without an
            observation ``{"reset": True}``.

        Raises:
            PolicyError: the observation is not as accepted.
            ServingError: the policy's answer is not finite.

        """
        if request.reset:
            self._count = 0
            if self._forget is not None:
                self._forget()
        if request.observation is None:
            return {"reset": True}
        seed = request.seed
        if seed is None:
            seed = (self._seed + self._count) % (MAX_SEED + 1)
            self._count += 1
        began = time.perf_counter()
        obs, openpi = request.observation, self._openpi if request.openpi else None
        chunk = self._policy.infer(
            obs if openpi is None else openpi.observation(obs),
            seed=seed,
            denoise_steps=request.denoise_steps,
        )
        infer_ms = 1e3 * (time.perf_counter() - began)
        actions = np.ascontiguousarray(chunk.actions, np.float32)
        if not np.isfinite(actions).all():
            raise ServingError("the policy's answer holds values that are not finite; not sent")
        if request.openpi:
            if openpi is not None:
                actions = np.ascontiguousarray(openpi.actions(chunk, obs), np.float32)
            answer: dict[str, Any] = {"actions": actions}
        else:
            answer = {"actions": actions, **_description(chunk)}
        answer["server_timing"] = {"infer_ms": infer_ms}
        return answer


def _description(chunk: ActionChunk) -> dict[str, Any]:
    timings = {
        name: value
        for name in ("preprocess_ms", "vision_ms", "prefill_ms", "denoise_ms", "model_ms")
        if np.isfinite(value := getattr(chunk.timings, name))
    }
    return {
        "names": list(chunk.names),
        "meanings": [meaning.name.lower() for meaning in chunk.meanings],
        "units": [unit.name.lower() for unit in chunk.units],
        "step_s": float(chunk.dt),
        "prompt": chunk.prompt,
        "seed": int(chunk.seed),
        "denoise_steps": int(chunk.denoise_steps),
        "kv_age": int(chunk.kv_age),
        "timings": timings,
    }
