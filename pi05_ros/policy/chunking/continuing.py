"""A `Policy` whose chunks continue each other and may share a KV cache, for the policy node.

Which control step an observation belongs to is told from its stamp, so the wrapper can be used
wherever a policy is: row 0 of a chunk still belongs to the observation it answers.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass

import numpy as np

from pi05_ros.backends.engine import EngineHealth
from pi05_ros.policy.chunking.chunk_generator import (
    ChunkGenerator,
    Continued,
    Finished,
    PendingChunk,
)
from pi05_ros.policy.chunking.continuation import Continuation, DelayEstimator, rows_from
from pi05_ros.policy.chunking.kv_reuse import make_rule
from pi05_ros.policy.interface import ActionChunk, Observation
from pi05_ros.policy.policy import Policy


@dataclass(frozen=True)
class Started:
    """A chunk on its way.

    Attributes:
        chunk: its first half.
        began_s: when that began (`time.perf_counter`).
        age_s: of the observation then, 0 to the length of a chunk.
        delay: see `ContinuingPolicy.infer`.

    """

    chunk: PendingChunk
    began_s: float
    age_s: float
    delay: int | None = None


@dataclass(frozen=True)
class Carried:
    """What a `ContinuingPolicy` without KV reuse knows between two inferences.

    Attributes:
        last: chunk before.
        first_ns, last_ns: stamps of the first observation since it started afresh, and the last.
        delays_s: of the last inferences.

    """

    last: Finished
    first_ns: int
    last_ns: int
    delays_s: tuple[float, ...]


class ContinuingPolicy:
    """Same use as `Policy`; observations need stamps.

    After a pause longer than a chunk, or when stamps go back, it starts afresh. The delay that
    guided chunks are made for, from the stamp to when they can be used, is the age of the
    observation and the longest of the last ten inferences.

    Args:
        policy: is taken over.
        mode: see `ChunkGenerator`.
        reuse: "1", "2", ... or "dynamic".
        vision_change: see `ChunkGenerator`.
        command_delay_s: how much earlier than their times chunks are followed, see the executor.

    Raises:
        ValueError: unknown mode or rule.

    """

    def __init__(
        self,
        policy: Policy,
        mode: str = "plain",
        reuse: str = "1",
        vision_change: float | None = None,
        command_delay_s: float = 0.0,
    ) -> None:
        self.policy = policy
        self.info = policy.info
        self.robot = policy.robot
        self._maker = ChunkGenerator(
            policy, mode, reuse=make_rule(reuse), vision_change=vision_change
        )
        self._step_ns = round(policy.info.step_s * 1e9)
        self._delay = DelayEstimator(policy.info.step_s)
        self._command_delay_s = command_delay_s
        self._afresh = True  # set by any thread, looked at by the next prefill
        self._first_ns = 0
        self._last_ns = 0

    def infer(
        self,
        obs: Observation,
        *,
        seed: int | None = None,
        denoise_steps: int | None = None,
        delay: int | None = None,
    ) -> ActionChunk:
        """Answer one observation, see `Policy.infer`.

        A chunk from a reused KV cache has fewer rows: those before the observation are cut off.

        Args:
            obs: see there, as are seed and denoise_steps.
            seed: see there.
            denoise_steps: see there.
            delay: control steps from the observation until the chunk can be used; None takes the
                age of the observation and the longest of the last inferences.

        """
        started = self.prefill(obs, seed=seed, denoise_steps=denoise_steps)
        return self.denoise(
            started if delay is None else dataclasses.replace(started, delay=delay)
        )

    def prefill(
        self, obs: Observation, *, seed: int | None = None, denoise_steps: int | None = None
    ) -> Started:
        """First half of an inference, see `Policy.prefill` and `ChunkGenerator.start`."""
        began = time.perf_counter()
        stamp = obs.stamp_ns
        pause_ns = self._maker.policy.info.horizon * self._step_ns
        afresh = self._afresh
        if afresh:
            self._afresh = False
        if afresh or not 0 <= stamp - self._last_ns <= pause_ns:
            self._maker.reset()
            self._first_ns = stamp
        self._last_ns = stamp
        step = (stamp - self._first_ns) / self._step_ns
        # A clock that is set, or not that of the stamps, gives ages below 0 or beyond any chunk.
        age_s = min(max(0.0, obs.age_s), pause_ns / 1e9)
        return Started(self._maker.start(obs, step, seed, denoise_steps), began, age_s)

    def denoise(self, started: Started) -> ActionChunk:
        """Second half, in the order of the first halves.

        The previous chunk has been finished when this is called, also with overlap, so what has
        to be continued is known.
        """
        delay = started.delay
        if delay is None:
            delay = self._delay.steps(started.age_s + self._command_delay_s)
        made = self._maker.finish(started.chunk, delay)
        self._delay.record(time.perf_counter() - started.began_s)
        ahead = started.chunk.step - made.anchor
        if not ahead:
            return made.chunk
        return dataclasses.replace(
            made.chunk,
            actions=rows_from(made.chunk.actions, ahead).astype("float32"),
            normalized=rows_from(made.chunk.normalized, ahead).astype("float32"),
        )

    def carried(self) -> Carried | None:
        """What the next inference needs of those before; None if that is nothing."""
        last = self._maker.finished
        if last is None or self._afresh:
            return None
        return Carried(last, self._first_ns, self._last_ns, self._delay.recent)

    def resume(self, carried: Carried) -> None:
        """Go on where another one of the same policy, mode and rule was."""
        self._maker.resume(carried.last)
        self._first_ns, self._last_ns = carried.first_ns, carried.last_ns
        self._afresh = False
        for delay_s in carried.delays_s:
            self._delay.record(delay_s)

    def warm_up(self) -> float:
        """See `Policy.warm_up`; a second time with something to continue, if chunks do that."""
        self._maker.reset()
        took_ms = self._warm_up(None)
        if self._maker.mode != "plain":
            horizon = self.policy.info.horizon
            nothing = np.zeros((horizon, self.policy.action_dim), np.float32)
            took_ms += self._warm_up(Continuation(nothing, left=horizon, delay=1))
        self._maker.reset()
        return took_ms

    def _warm_up(self, rest: Continuation | None) -> float:
        maker, policy = self._maker, self.policy
        continued = Continued() if rest is None else maker.continued(rest)
        keys = None if maker.vision is None else maker.vision.keys

        def inference(obs: Observation) -> None:
            half = policy.prefill(obs, seed=0, camera_keys=keys)
            policy.denoise(half, guidance=continued.guidance, frozen=continued.frozen)

        return policy.warm_up(inference)

    def set_prompt(self, text: str) -> None:
        """See `Policy.set_prompt`."""
        self.policy.set_prompt(text)

    def forget(self) -> None:
        """Continue and reuse nothing at the next inference; callable from any thread."""
        self._afresh = True

    def reset(self) -> None:
        """Forget, and start the seeds over."""
        self.forget()
        self.policy.reset()

    def health(self) -> EngineHealth:
        """See `Policy.health`."""
        return self.policy.health()

    def close(self) -> None:
        """See `Policy.close`."""
        self.policy.close()
