"""`RemotePolicy`: used as `Policy`, computed by a policy server on another machine.

Works with `pi05 serve` and with openpi's server and others of its protocol. Nothing is published
from an answer that does not fit the robot: the metadata must agree with the robot profile, and
each answer is checked. While the server is away, slow, or another model, every inference raises
RemoteError with the reason; it recovers by itself.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from pi05_ros.backends.engine import EngineHealth
from pi05_ros.policy.argument_checks import check_count
from pi05_ros.policy.chunking.continuation import DelayEstimator
from pi05_ros.policy.errors import PolicyError
from pi05_ros.policy.interface import MAX_SEED, ActionChunk, Observation, PolicyInfo, StageTimings
from pi05_ros.policy.remote.connection import Connection, DialOptions
from pi05_ros.policy.remote.errors import RemoteError
from pi05_ros.policy.remote.outgoing import MODEL_SIZE, openpi_request, own_request
from pi05_ros.policy.remote.remote_options import RemoteOptions
from pi05_ros.policy.remote.server_facts import MAX_HORIZON, ServerFacts, read_metadata
from pi05_ros.policy.robots.profile import RobotProfile
from pi05_ros.policy.robots.profile_yaml import load_profile

WARM_UP_S = 30.0
"""Least time that an answer of `RemotePolicy.warm_up` may take."""


class RemotePolicy:
    """A policy server as a policy.

    Args:
        url: ``ws://host:port`` or ``wss://host:port``.
        robot: shipped profile or YAML file; None takes what the server says it serves.
        options: see `RemoteOptions`.
        seed: inference number i without a seed of its own uses seed + i.
        denoise_steps: 0 leaves them to the server.
        prompt: of observations that bring none.
        horizon: steps kept of each chunk; None keeps all.
        control_hz: replaces the profile's rate; the server's must be the same.

    Raises:
        RemoteError: the server cannot be reached, serves another robot, or cannot continue chunks
            as asked.
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
        horizon: int | None = None,
        control_hz: float | None = None,
    ) -> None:
        self._options = options or RemoteOptions()
        self._profile = None if robot is None else load_profile(robot)
        self._control_hz = control_hz
        self._rows = (
            MAX_HORIZON if horizon is None else check_count("horizon", horizon, MAX_HORIZON)
        )
        self._lock = threading.Lock()
        self._facts: ServerFacts | None = None
        self._seed, self._count = seed, 0
        self._steps = denoise_steps
        self._prompt = prompt or None
        self._afresh = False  # the server shall continue nothing; set by any thread
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
        said = facts.info(url)
        self.info: PolicyInfo = dataclasses.replace(said, horizon=min(said.horizon, self._rows))
        self._delay: DelayEstimator = DelayEstimator(self.robot.step_s)

    def _accept_metadata(self, metadata: Mapping[Any, Any]) -> None:
        """Check a new connection's metadata; a server must not change into another model."""
        facts = read_metadata(metadata, self._profile, self._control_hz)
        if self._options.continuing:
            facts.require_continuation(self._options.chunk_mode, self._options.kv_reuse)
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
            if seed is None:
                seed = (self._seed + self._count) % (MAX_SEED + 1)
                self._count += 1
            chunk, took_s = self._ask(
                obs, seed, denoise_steps or self._steps or None, self._options.deadline_s
            )
            self._delay.record(took_s)
            return chunk

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
        """Forget, and start the seeds over."""
        self.forget()
        with self._lock:
            self._count = 0

    def forget(self) -> None:
        """Continue and reuse nothing at the next inference; callable from any thread."""
        self._afresh = True

    def warm_up(self) -> float:
        """One inference on black images, a second that continues it if chunks do that; ms of both.

        The server may compile what continues a chunk at the first one, so it gets more time.
        """
        black = np.zeros((MODEL_SIZE, MODEL_SIZE, 3), np.uint8)
        obs = Observation(
            dict.fromkeys(self.robot.camera_roles, black),
            np.zeros(len(self.robot.state_names)),
            self._prompt or self.robot.default_prompt or "warm up",
        )
        stamps = [0]
        if self._options.chunk_mode != "plain":
            stamps = [1, 1 + round(1e9 * self.robot.step_s)]
        deadline_s = max(WARM_UP_S, self._options.deadline_s)
        whole_s = 0.0
        with self._lock:
            self.forget()
            for stamp in stamps:
                moment = dataclasses.replace(obs, stamp_ns=stamp)
                whole_s += self._ask(moment, 0, self._steps or None, deadline_s)[1]
            self.forget()
        return 1e3 * whole_s

    def health(self) -> EngineHealth:
        """Connection and times of the last call, for diagnostics."""
        problem = self._connection.problem
        values = {name: f"{value:.2f}" for name, value in self._last.items()}
        return EngineHealth(values, f"policy server away: {problem}" if problem else "")

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    # one answer ------------------------------------------------------------------------------

    def _ask(
        self, obs: Observation, seed: int, steps: int | None, deadline_s: float
    ) -> tuple[ActionChunk, float]:
        """Chunk for an observation, and the seconds that it took."""
        facts = self._facts
        assert facts is not None
        prompt = obs.prompt or self._prompt or self.robot.default_prompt
        if not prompt:
            raise PolicyError(
                f"no prompt: the observation has none and robot {self.robot.name!r} has no "
                "default; set `prompt` (of the node: parameter or topic)"
            )
        began = time.perf_counter()
        afresh, self._afresh = self._afresh, False  # what is forgotten from now on comes next
        if facts.own:
            request = own_request(self._options, obs, prompt, seed, steps) | {
                "deadline_ms": 1e3 * deadline_s
            }
            if self._options.continuing:
                request |= self._continuation(obs, afresh)
        else:
            request = openpi_request(self._options, obs, prompt, facts)
        prepared = time.perf_counter()
        try:
            answer = self._connection.ask(request, deadline_s)
            done = time.perf_counter()
            actions = self._checked(facts, answer)
        except RemoteError:
            self._afresh |= afresh  # the server may not have seen it
            raise
        times = (began, prepared, done)
        return self._chunk(answer, actions[: self._rows], prompt, seed, steps, times), done - began

    def _checked(self, facts: ServerFacts, answer: Any) -> np.ndarray:
        """Actions of an answer; one that does not fit ends the connection."""
        try:
            return facts.actions(answer)
        except RemoteError as error:
            self._connection.drop(str(error))
            raise

    def _continuation(self, obs: Observation, afresh: bool) -> dict[str, Any]:
        """What a request has to say where chunks continue each other."""
        whole_s = self.info.horizon * self.robot.step_s
        age_s = min(max(0.0, obs.age_s), whole_s)  # as for a policy in this process
        return {
            "chunk_mode": self._options.chunk_mode,
            "kv_reuse": self._options.kv_reuse,
            "delay_steps": self._delay.steps(age_s + self._options.command_delay_s),
            "reset": afresh,
        }

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
        timing = answer.get("server_timing")
        server_ms = _milliseconds(timing, "total_ms") or _milliseconds(timing, "infer_ms") or 0.0
        trip_ms = 1e3 * (done - prepared)
        self._last = {
            "round_trip_ms": trip_ms,
            "server_ms": server_ms,
            "network_ms": max(0.0, trip_ms - server_ms),
        }
        parts = answer.get("timings")
        return ActionChunk(
            actions=actions,
            normalized=np.zeros((len(actions), 0), np.float32),
            names=self.robot.action_names,
            meanings=self.robot.action_meanings,
            units=self.robot.command_units,
            dt=self.robot.step_s,
            prompt=prompt,
            seed=seed,
            denoise_steps=_count(answer, "denoise_steps") or steps or self.info.denoise_steps,
            timings=StageTimings(
                preprocess_ms=1e3 * (prepared - began),
                vision_ms=_milliseconds(parts, "vision_ms") or float("nan"),
                prefill_ms=_milliseconds(parts, "prefill_ms") or float("nan"),
                denoise_ms=_milliseconds(parts, "denoise_ms") or float("nan"),
                model_ms=trip_ms,
                postprocess_ms=0.0,
            ),
            kv_age=_count(answer, "kv_age"),
            pose_groups=self.robot.pose_groups,
        )


def _count(answer: Mapping[str, Any], name: str) -> int:
    """A small whole number of an answer; 0 where it has none."""
    value = answer.get(name)
    return value if type(value) is int and 0 <= value < 2**31 else 0


def _milliseconds(timing: Any, name: str) -> float | None:
    value = timing.get(name) if isinstance(timing, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        return None
    return float(value) if np.isfinite(value) else None
