"""Which of the chunks at hand says where to go now."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from pi05_ros.errors import InvalidValueError
from pi05_ros.execution.timed_chunk import TimedChunk

STRATEGIES = ("replace", "ensemble", "rtc")
DEFAULT_REPLACE_AFTER = 8
DEFAULT_ENSEMBLE_DECAY = 0.01
"""m of the weights exp(-m i), i = 0 for the oldest prediction (ACT's value)."""
MAX_ENSEMBLE = 64
MAX_PAST_STEPS = 20
"""How far an ensemble's path reaches back: an arm that was slowed down lags behind the clock."""


class Strategy(Protocol):
    """Small state machine fed with chunks."""

    def add(self, chunk: TimedChunk) -> None:
        """Take over a newer chunk."""

    def target(self, now_ns: int) -> np.ndarray | None:
        """Target ``[n]`` for a time, None if no chunk reaches it."""

    def reaches(self, now_ns: int) -> bool:
        """Whether there is a target for a time."""

    def path(self, now_ns: int) -> TimedChunk | None:
        """Targets from now on as a chunk, the same object while nothing changes; None as above."""

    def shift(self, offset: np.ndarray) -> None:
        """Add an offset ``[n]`` to all chunks: whole turns of continuous joints."""

    def clear(self) -> None:
        """Forget all chunks."""


class ReplaceAfter:
    """Execute at least ``steps`` steps of a chunk before the newest one takes its place.

    A chunk that has run out is replaced at once. With ``steps`` = 0 the newest chunk is always
    taken, which is right for chunks that already continue each other (RTC).
    """

    def __init__(self, steps: int = DEFAULT_REPLACE_AFTER) -> None:
        if steps < 0:
            raise InvalidValueError(f"replace_after is {steps}; accepted: 0 or more steps")
        self.steps = steps
        self._current: TimedChunk | None = None
        self._next: TimedChunk | None = None
        self._since_ns = 0

    def add(self, chunk: TimedChunk) -> None:
        """Take over a newer chunk."""
        self._next = chunk

    def target(self, now_ns: int) -> np.ndarray | None:
        """Target ``[n]`` for a time, None if no chunk reaches it."""
        chunk = self.path(now_ns)
        return None if chunk is None else chunk.at(now_ns)

    def reaches(self, now_ns: int) -> bool:
        """Whether there is a target for a time."""
        return self.path(now_ns) is not None

    def path(self, now_ns: int) -> TimedChunk | None:
        """The chunk that is executed, None if it has run out."""
        if self._next is not None and self._next.end_ns <= now_ns:
            self._next = None
        if self._next is not None and self._may_switch(now_ns):
            self._current, self._next, self._since_ns = self._next, None, now_ns
        if self._current is None or now_ns >= self._current.end_ns:
            return None
        return self._current

    def shift(self, offset: np.ndarray) -> None:
        """Add an offset ``[n]`` to all chunks: whole turns of continuous joints."""
        if offset.any():
            self._current = self._current and self._current.shifted(offset)
            self._next = self._next and self._next.shifted(offset)

    def clear(self) -> None:
        """Forget all chunks."""
        self._current = self._next = None

    def _may_switch(self, now_ns: int) -> bool:
        old, new = self._current, self._next
        if old is None or now_ns >= old.end_ns:
            return True
        if new is not None and new.index(now_ns) < 0:
            return False
        # Half a step of tolerance: control ticks and chunk steps are not in phase.
        return now_ns - self._since_ns >= (self.steps - 0.5) * old.step_ns


class Ensemble:
    """Weighted mean of all chunks that say something about now (ACT's temporal ensembling)."""

    def __init__(self, decay: float = DEFAULT_ENSEMBLE_DECAY) -> None:
        if not (np.isfinite(decay) and decay >= 0):
            raise InvalidValueError(f"ensemble_decay is {decay}; accepted: 0 or more")
        self.decay = decay
        self._chunks: list[TimedChunk] = []
        self._path: TimedChunk | None = None
        self._stack: _Stack | None = None

    def add(self, chunk: TimedChunk) -> None:
        """Take over a newer chunk."""
        self._chunks = [*self._chunks, chunk][-MAX_ENSEMBLE:]
        self._path, self._stack = None, _Stack(self._chunks)  # here is more time than later

    def target(self, now_ns: int) -> np.ndarray | None:
        """Target ``[n]`` for a time, None if no chunk reaches it."""
        self._chunks = [c for c in self._chunks if now_ns < c.end_ns]
        saying = [c.at(now_ns) for c in self._chunks if c.index(now_ns) >= 0]
        if not saying:
            return None
        weights = np.exp(-self.decay * np.arange(len(saying)))
        return np.average(saying, axis=0, weights=weights)

    def reaches(self, now_ns: int) -> bool:
        """Whether there is a target for a time."""
        self._chunks = [c for c in self._chunks if now_ns < c.end_ns]
        return any(c.start_ns <= now_ns for c in self._chunks)

    def path(self, now_ns: int) -> TimedChunk | None:
        """Mean of the chunks from now on, in steps of the shortest; None if none reaches now."""
        if self._path is None or now_ns >= self._path.end_ns:
            self._path = self._mean(now_ns)
        return self._path

    def _mean(self, now_ns: int) -> TimedChunk | None:
        self._chunks = [c for c in self._chunks if now_ns < c.end_ns]
        if not any(c.index(now_ns) >= 0 for c in self._chunks):
            return None
        if self._stack is None or self._stack.count != len(self._chunks):
            self._stack = _Stack(self._chunks)
        stack = self._stack
        step_ns = int(stack.steps.min())
        past = max(0, (now_ns - int(stack.starts.min())) // step_ns)
        begin_ns = now_ns - min(past, MAX_PAST_STEPS) * step_ns  # an arm that lags is there
        horizon = -((begin_ns - int(stack.ends.max())) // step_ns)
        times = begin_ns + step_ns * np.arange(horizon)
        saying = (times >= stack.starts) & (times < stack.ends)  # [chunks, times]
        rank = saying.cumsum(axis=0) - saying  # of a chunk among those that say something
        shares = np.exp(-self.decay * np.arange(len(self._chunks)))
        weights = np.where(saying, shares[rank], 0.0)
        total = weights.sum(axis=0)[:, None]
        sums = np.einsum("ct,ctn->tn", weights, stack.targets(times))
        silent = np.flatnonzero(total[:, 0] == 0)  # times that no chunk covers
        first = int(np.max(silent[times[silent] < now_ns], initial=-1)) + 1
        last = int(np.min(silent[times[silent] > now_ns], initial=horizon))
        mean = sums[first:last] / total[first:last]
        pace = None
        if any(c.pace is not None for c in self._chunks):
            pace = np.array(
                [
                    min(c.pace_at((t - c.start_ns) / 1e9) for c in self._chunks if t < c.end_ns)
                    for t in times[first:last]
                ]
            )
        return TimedChunk(int(times[first]), step_ns, mean, pace=pace)

    def shift(self, offset: np.ndarray) -> None:
        """Add an offset ``[n]`` to all chunks: whole turns of continuous joints."""
        if offset.any():
            self._path = self._stack = None
            self._chunks = [chunk.shifted(offset) for chunk in self._chunks]

    def clear(self) -> None:
        """Forget all chunks."""
        self._chunks, self._path, self._stack = [], None, None


class _Stack:
    """Chunks as arrays, to read all of them at many times.

    Attributes:
        count: how many.
        starts, ends, steps: in ns ``[chunks, 1]``.

    """

    def __init__(self, chunks: list[TimedChunk]) -> None:
        self.count = len(chunks)
        self.starts = np.array([[c.start_ns] for c in chunks])
        self.ends = np.array([[c.end_ns] for c in chunks])
        self.steps = np.array([[c.step_ns] for c in chunks])
        horizons = np.array([[c.horizon] for c in chunks])
        self._rows = np.concatenate([c.positions for c in chunks])
        self._last = horizons - 1
        self._first = np.cumsum(horizons)[:, None] - horizons  # row of each chunk's step 0

    def targets(self, times: np.ndarray) -> np.ndarray:
        """Targets ``[chunks, k, n]`` at times ``[k]``, as `TimedChunk.at`."""
        place = np.minimum(np.maximum((times - self.starts) / self.steps, 0.0), self._last)
        low = place.astype(int)
        part = (place - low)[:, :, None]
        found = self._rows.take(self._first + low, axis=0)
        found *= 1 - part
        after = self._rows.take(self._first + np.minimum(low + 1, self._last), axis=0)
        after *= part
        found += after
        return np.asarray(found)


def make_strategy(
    name: str,
    replace_after: int = DEFAULT_REPLACE_AFTER,
    ensemble_decay: float = DEFAULT_ENSEMBLE_DECAY,
) -> Strategy:
    """Strategy by name: "replace", "ensemble" or "rtc" (newest chunk at once).

    Real-time chunking happens where chunks are made; the executor's part is to switch to each
    new chunk as soon as it is there, at the step that belongs to the present time.
    """
    if name == "replace":
        return ReplaceAfter(replace_after)
    if name == "ensemble":
        return Ensemble(ensemble_decay)
    if name == "rtc":
        return ReplaceAfter(0)
    raise InvalidValueError(f"strategy {name!r}; accepted: {', '.join(STRATEGIES)}")
