"""A `Policy` whose chunks continue each other and may share a KV cache, for the policy node.

Which control step an observation belongs to is told from its stamp, so the wrapper can be used
wherever a policy is: row 0 of a chunk still belongs to the observation it answers.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from pi05_ros.policy.chunk import ActionChunk
from pi05_ros.policy.execution.chunk_maker import ChunkMaker
from pi05_ros.policy.execution.continuation import DelayEstimator, rows_from
from pi05_ros.policy.kv_reuse import make_rule
from pi05_ros.policy.observation import Observation
from pi05_ros.policy.policy import Policy


class ContinuingPolicy:
    """Same use as `Policy`; observations need stamps.

    After a pause longer than a chunk, or when stamps go back, it starts afresh. The delay that
    guided chunks are made for is the longest of the last ten inferences.

    Args:
        policy: is taken over.
        mode: see `ChunkMaker`.
        reuse: "1", "2", ... or "dynamic".
        vision_change: see `ChunkMaker`.

    Raises:
        ValueError: unknown mode or rule.

    """

    def __init__(
        self,
        policy: Policy,
        mode: str = "plain",
        reuse: str = "1",
        vision_change: float | None = None,
    ) -> None:
        self.policy = policy
        self.info = policy.info
        self.robot = policy.robot
        self._maker = ChunkMaker(policy, mode, reuse=make_rule(reuse), vision_change=vision_change)
        self._step_ns = round(policy.info.step_s * 1e9)
        self._delay = DelayEstimator(policy.info.step_s)
        self._first_ns: int | None = None
        self._last_ns = 0

    def infer(
        self, obs: Observation, *, seed: int | None = None, denoise_steps: int | None = None
    ) -> ActionChunk:
        """Answer one observation, see `Policy.infer`.

        A chunk from a reused KV cache has fewer rows: those before the observation are cut off.
        """
        stamp = obs.stamp_ns
        pause_ns = self._maker.policy.info.horizon * self._step_ns
        if self._first_ns is None or not 0 <= stamp - self._last_ns <= pause_ns:
            self._maker.reset()
            self._first_ns = stamp
        self._last_ns = stamp
        step = (stamp - self._first_ns) / self._step_ns
        began = time.perf_counter()
        made = self._maker.make(obs, step, self._delay.steps, seed, denoise_steps)
        self._delay.record(time.perf_counter() - began)
        if made.anchor == step:
            return made.chunk
        ahead = step - made.anchor
        return dataclasses.replace(
            made.chunk,
            actions=rows_from(made.chunk.actions, ahead).astype("float32"),
            normalized=made.chunk.normalized[int(ahead) :],
        )

    def warm_up(self) -> Any:
        """See `Policy.warm_up`."""
        self._maker.reset()
        return self.policy.warm_up()

    def set_prompt(self, text: str) -> None:
        """See `Policy.set_prompt`."""
        self.policy.set_prompt(text)

    def forget(self) -> None:
        """Continue and reuse nothing at the next inference; callable from any thread."""
        self._first_ns = None

    def reset(self) -> None:
        """Forget, and start the seeds over."""
        self.forget()
        self.policy.reset()

    def close(self) -> None:
        """See `Policy.close`."""
        self.policy.close()
