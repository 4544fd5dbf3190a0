"""Decides which chunks are taken: order, age, length, one policy at a time."""

from __future__ import annotations

from collections import Counter, deque

import numpy as np

from pi05_ros.execution.executor_settings import ExecutorSettings
from pi05_ros.execution.timed_chunk import ChunkRefusedError, TimedChunk

CLOCK_TOLERANCE_NS = 50_000_000
"""A clock may be slewed back a little; more than this is a jump (a bag that starts over)."""
REFUSAL_TOLD_S = 10.0
"""How long a refused chunk is given as a reason, unless one is accepted before."""
MAX_REFUSAL_CHARACTERS = 300
_REPLACED_KEPT = 16


class ChunkGate:
    """Checks chunks on arrival and remembers what was refused.

    Attributes:
        accepted: chunks that were taken.
        refused: the others by reason.
        last_refusal, last_refusal_ns: why and when the last one was refused.
        cut: why the chunk that was taken last ends early, else empty; `shortened` counts them.

    """

    def __init__(self, settings: ExecutorSettings, joints: int) -> None:
        self._settings = settings
        self._joints = joints
        self.accepted = 0
        self.refused: Counter[str] = Counter()
        self.cut = ""
        self.shortened = 0
        self.last_refusal = ""
        self.last_refusal_ns: int | None = None
        self.policy_id: str | None = None
        self.chunk_id = -1
        self._end_ns = 0  # of the chunk accepted last
        self._replaced: deque[str] = deque(maxlen=_REPLACED_KEPT)  # policies followed before
        self._accepted_since_refusal = False
        self._jumped = False
        self._wary_until_ns: int | None = None  # after a jump back: chunks from before may come

    def forget(self) -> None:
        """The clock jumped back: numbers start again, and chunks from before may still come."""
        self.policy_id, self.chunk_id = None, -1
        self._replaced.clear()
        self.last_refusal_ns = self._wary_until_ns = None
        self._jumped = True

    def take(self, chunk: TimedChunk, now_ns: int, random_weights: bool) -> bool:
        """Accept a chunk; True if it is of another policy than the one before.

        Raises:
            ChunkRefusedError: "random weights", "not finite", "duration", "order", "two policies",
                "stale", "future"; counted in `refused`.

        """
        try:
            self._check(chunk, now_ns, random_weights)
        except ChunkRefusedError as error:
            self.refuse(error, now_ns)
            raise
        changed = chunk.policy_id != self.policy_id
        if changed:
            if self.policy_id is not None:
                self._replaced.append(self.policy_id)
            if chunk.policy_id in self._replaced:
                self._replaced.remove(chunk.policy_id)  # it is back after the newer fell silent
        self.policy_id, self.chunk_id = chunk.policy_id, chunk.chunk_id
        self._end_ns = chunk.end_ns
        self.cut, self.shortened = chunk.cut, self.shortened + bool(chunk.cut)
        self.accepted += 1
        self._accepted_since_refusal = True
        return changed

    def refuse(self, error: ChunkRefusedError, now_ns: int | None) -> None:
        """Count a chunk that was refused, here or before it got here."""
        self.refused[error.reason] += 1
        self.last_refusal = str(error)[:MAX_REFUSAL_CHARACTERS]
        self.last_refusal_ns = now_ns
        self._accepted_since_refusal = False

    def refusal(self, now_ns: int | None) -> str:
        """Why the last chunk was refused, as long as that may be why nothing is followed."""
        if not self.last_refusal or self._accepted_since_refusal:
            return ""
        if now_ns is None or self.last_refusal_ns is None:
            return self.last_refusal
        old = now_ns - self.last_refusal_ns > REFUSAL_TOLD_S * 1e9
        return "" if old else self.last_refusal

    def explanation(self, now_ns: int | None) -> str:
        """What chunks have to do with the arm not following, to be added to the reason."""
        cut = f"; the last chunk ends early: {self.cut}" if self.cut else ""
        refusal = self.refusal(now_ns)
        return f"{cut}; last refused: {refusal}" if refusal else cut

    def _check(self, chunk: TimedChunk, now_ns: int, random_weights: bool) -> None:
        settings = self._settings
        if random_weights and not settings.random_weights_allowed:
            raise ChunkRefusedError(
                "random weights",
                "chunk of random weights, which must not move a robot",
            )
        if chunk.positions.shape[1] != self._joints or not np.isfinite(chunk.positions).all():
            raise ChunkRefusedError("not finite", "chunk positions do not fit or are not finite")
        length_s = chunk.horizon * chunk.step_ns / 1e9
        if length_s > settings.max_chunk_s:
            raise ChunkRefusedError(
                "duration",
                f"chunk lasts {length_s:.1f} s ({chunk.horizon} steps of "
                f"{chunk.step_ns / 1e9:g} s); accepted: up to {settings.max_chunk_s:g} s",
            )
        if chunk.policy_id == self.policy_id and chunk.chunk_id <= self.chunk_id:
            raise ChunkRefusedError(
                "order", f"chunk {chunk.chunk_id} came after {self.chunk_id} of the same policy"
            )
        if chunk.policy_id in self._replaced and now_ns < self._end_ns:
            raise ChunkRefusedError(
                "two policies",
                f"policy {chunk.policy_id} was replaced by {self.policy_id}, which is still "
                "followed; end one of the two",
            )
        age_s = (now_ns - chunk.start_ns) / 1e9
        if age_s > settings.max_chunk_age_s or now_ns >= chunk.end_ns:
            raise ChunkRefusedError("stale", f"chunk is {age_s:.2f} s old")
        if -age_s > settings.max_future_s:
            raise ChunkRefusedError("future", f"chunk starts {-age_s:.2f} s in the future")
        if self._jumped and self._wary_until_ns is None:
            self._wary_until_ns = now_ns + int(settings.max_chunk_age_s * 1e9)
        ahead_ns = max(chunk.start_ns, chunk.published_ns) - now_ns
        wary = self._wary_until_ns is not None and now_ns < self._wary_until_ns
        if wary and ahead_ns > CLOCK_TOLERANCE_NS:
            raise ChunkRefusedError(
                "future",
                f"chunk is {ahead_ns / 1e9:.2f} s ahead: it was made before the clock jumped back",
            )
