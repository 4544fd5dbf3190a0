"""One connection's inferences: its seeds, its continued chunks, and its answers as maps.

A session computes nothing by itself: `Session.answer` is called in the inference thread. What
its chunks continue (the chunk before, the KV cache) belongs to it alone and ends with it.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any, Protocol

import numpy as np

from pi05_ros.policy import Policy
from pi05_ros.policy.chunking.chunk_generator import Finished, supported_modes
from pi05_ros.policy.chunking.continuing import Carried, ContinuingPolicy
from pi05_ros.policy.interface import MAX_SEED, ActionChunk, Observation, PolicyInfo
from pi05_ros.policy.remote.array_codec import pack, unpack
from pi05_ros.policy.remote.errors import WireError
from pi05_ros.policy.robots.profile import RobotProfile
from pi05_ros.serving.chunk_rules import NO_CONTINUATION, ChunkRules
from pi05_ros.serving.errors import ServingError
from pi05_ros.serving.openpi_units import OpenpiUnits
from pi05_ros.serving.requests import Request


class ServedPolicy(Protocol):
    """What the server needs of a policy (`pi05_ros.policy.Policy`) whose chunks stand alone."""

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
        policy: shared by all sessions; a `Policy` where chunks continue each other.
        seed: of the flow noise; request i without a seed of its own uses seed + i.
        openpi: conversions for requests in openpi's keys; None passes numbers unchanged.
        rules: of requests that name none.

    """

    def __init__(
        self,
        policy: ServedPolicy,
        seed: int = 0,
        openpi: OpenpiUnits | None = None,
        rules: ChunkRules | None = None,
    ) -> None:
        self._policy = policy
        self._seed = seed
        self._count = 0
        self._openpi = openpi
        self._rules = rules or ChunkRules()
        self._used = ChunkRules()
        self._continuing: ContinuingPolicy | None = None
        self._described: tuple[object, dict[str, Any]] = (None, {})
        self._stamp_ns: int | None = None  # of the observation of the last continued answer

    def answer(self, request: Request) -> dict[str, Any]:
        """Compute one request.

        Returns:
            ``actions`` float32 ``[H, A]`` and ``server_timing`` (milliseconds) as openpi's server
            does; for our own form also what `ActionChunk` says of them. For a reset without an
            observation ``{"reset": True}``.

        Raises:
            PolicyError: the observation is not as accepted.
            WireError: chunks shall continue each other and the request does not tell the time.
            ServingError: the policy's answer is not finite.

        """
        if request.reset:
            self._count = 0
            self._forget()
        if request.observation is None:
            return {"reset": True}
        seed = request.seed
        if seed is None:
            seed = (self._seed + self._count) % (MAX_SEED + 1)
            self._count += 1
        began = time.perf_counter()
        obs, openpi = request.observation, self._openpi if request.openpi else None
        chunk = self._infer(request, obs if openpi is None else openpi.observation(obs), seed)
        infer_ms = 1e3 * (time.perf_counter() - began)
        actions = np.ascontiguousarray(chunk.actions, np.float32)
        if not np.isfinite(actions).all():
            self._forget()
            raise ServingError("the policy's answer holds values that are not finite; not sent")
        if request.openpi:
            if openpi is not None:
                actions = np.ascontiguousarray(openpi.actions(chunk, obs), np.float32)
            answer: dict[str, Any] = {"actions": actions}
        else:
            answer = {"actions": actions, **self._columns(chunk), **_description(chunk)}
        answer["server_timing"] = {"infer_ms": infer_ms}
        return answer

    # between two processes --------------------------------------------------------------------

    def carried(self) -> bytes:
        """What the next answer needs of this one, packed; empty if that is nothing."""
        state = None if self._continuing is None else self._continuing.carried()
        if state is None or self._used.reuse != "1":
            return b""
        return pack(
            {
                "mode": self._used.mode,
                "checkpoint_hash": self._policy.info.checkpoint_hash,
                "stamp_ns": self._stamp_ns,
                "normalized": state.last.normalized,
                "anchor": state.last.anchor,
                "model_state": state.last.model_state,
                "first_ns": state.first_ns,
                "last_ns": state.last_ns,
                "delays_s": list(state.delays_s),
            }
        )

    def resume(self, carried: bytes) -> None:
        """Go on where a session of another process was; afresh if that had another checkpoint."""
        state = unpack(carried).value
        if state["checkpoint_hash"] != self._policy.info.checkpoint_hash:
            return
        self._continue_with(ChunkRules(state["mode"])).resume(
            Carried(
                Finished(state["normalized"], state["anchor"], state["model_state"]),
                state["first_ns"],
                state["last_ns"],
                tuple(state["delays_s"]),
            )
        )
        self._stamp_ns = state["stamp_ns"]

    def _continue_with(self, rules: ChunkRules) -> ContinuingPolicy:
        """The one for these rules; raises for a mode that the engine does not have."""
        if not isinstance(self._policy, Policy):
            raise WireError(NO_CONTINUATION)
        if self._continuing is None:
            self._continuing = ContinuingPolicy(self._policy, rules.mode, rules.reuse)
            self._used = rules
        return self._continuing

    # one answer -------------------------------------------------------------------------------

    def _columns(self, chunk: ActionChunk) -> dict[str, Any]:
        """What the columns of an answer are; the same for nearly all of a session."""
        of = (chunk.names, chunk.meanings, chunk.units)
        if of != self._described[0]:
            self._described = (of, {
                "names": list(chunk.names),
                "meanings": [meaning.name.lower() for meaning in chunk.meanings],
                "units": [unit.name.lower() for unit in chunk.units],
            })  # fmt: skip
        return self._described[1]

    def _forget(self) -> None:
        """Let the next chunk continue nothing."""
        self._stamp_ns = None
        if self._continuing is not None:
            self._continuing.forget()

    def _infer(self, request: Request, obs: Observation, seed: int) -> ActionChunk:
        rules = ChunkRules(
            request.chunk_mode or self._rules.mode, request.kv_reuse or self._rules.reuse
        )
        if rules != self._used:
            self._continuing, self._stamp_ns, self._used = None, None, ChunkRules()
        steps = request.denoise_steps
        if not rules.continuing:
            return self._policy.infer(obs, seed=seed, denoise_steps=steps)
        if request.openpi and rules.reuse != "1":
            raise WireError(
                "kv_reuse is not for requests in openpi's keys; send our own form (images, state)"
            )
        continuing = self._continue_with(rules)
        stamp_ns = self._time(request, obs)
        chunk = continuing.infer(
            dataclasses.replace(obs, stamp_ns=stamp_ns),
            seed=seed,
            denoise_steps=steps,
            delay=request.delay_steps,
        )
        self._stamp_ns = stamp_ns
        return chunk

    def _time(self, request: Request, obs: Observation) -> int:
        """Stamp of the observation, nanoseconds of the client's clock or counted from steps."""
        before, since = self._stamp_ns, request.steps_since
        if obs.stamp_ns and since is not None:
            raise WireError("stamp_ns and steps_since both tell the time; send one of them")
        if obs.stamp_ns:
            return obs.stamp_ns
        if before is None:
            return 1
        if since is None:
            raise WireError(
                f"a chunk that continues the one before ({self._used.mode}, kv_reuse "
                f"{self._used.reuse}) needs steps_since or stamp_ns"
            )
        return before + round(since * self._policy.info.step_s * 1e9)


def offered_modes(policy: ServedPolicy) -> tuple[str, ...]:
    """Values of ``chunk_mode`` that sessions of a policy accept; empty if chunks stand alone."""
    return supported_modes(policy.engine) if isinstance(policy, Policy) else ()


def _description(chunk: ActionChunk) -> dict[str, Any]:
    timings = {
        name: value
        for name in ("preprocess_ms", "vision_ms", "prefill_ms", "denoise_ms", "model_ms")
        if np.isfinite(value := getattr(chunk.timings, name))
    }
    return {
        "step_s": float(chunk.dt),
        "prompt": chunk.prompt,
        "seed": int(chunk.seed),
        "denoise_steps": int(chunk.denoise_steps),
        "kv_age": int(chunk.kv_age),
        "timings": timings,
    }
