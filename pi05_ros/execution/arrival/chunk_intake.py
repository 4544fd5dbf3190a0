"""Takes chunk messages in: joints at once, poses in slices, so that no control period waits."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from pi05_ros.execution.arrival.pose_solver import PoseSolver
from pi05_ros.execution.arrival.wire import has_poses, read_slowly
from pi05_ros.execution.executor import Executor
from pi05_ros.execution.timed_chunk import ChunkRefusedError, TimedChunk

SLICE_SHARE, LEAST_SLICE_S, MOST_SLICE_S = 0.25, 0.5e-3, 5e-3
"""Of a control period; what begins in a slice ends in it, which takes about half a millisecond."""


@dataclass
class _Work:
    """A chunk of poses that is being solved, or waits for that."""

    message: Any
    forgotten: int  # of the executor when it came
    steps: Generator[None, None, TimedChunk] | None = None


class ChunkIntake:
    """Reads chunk messages and offers them to the executor.

    A chunk of poses costs some tenths of a millisecond per step. While one is solved, the newest
    of those that come waits; the others are refused ("busy"). What the executor is told to forget
    meanwhile, by a stop or a clock that jumps back, is not offered.

    Args:
        core: the executor.
        poses: gives what solves poses, or raises ChunkRefusedError.
        on_taken: called with the message and the chunk when one was accepted.

    """

    def __init__(
        self,
        core: Executor,
        poses: Callable[[], PoseSolver],
        on_taken: Callable[[Any, TimedChunk], None],
    ) -> None:
        self._core, self._poses, self._on_taken = core, poses, on_taken
        slice_s = core.settings.period_s * SLICE_SHARE
        self._slice_s = min(max(slice_s, LEAST_SLICE_S), MOST_SLICE_S)
        self._work: _Work | None = None
        self._next: _Work | None = None

    def take(self, message: Any, now_ns: int) -> bool:
        """Take a message; True if work is left for `go_on`."""
        work = _Work(message, self._core.forgotten)
        if not has_poses(message):
            self._advance(work, now_ns, float("inf"))
        elif self._work is None:
            self._work = work
            return self.go_on(now_ns)
        else:
            if self._next is not None:
                text = "a newer chunk of poses came before this one was solved"
                self._core.refuse(ChunkRefusedError("busy", text))
            self._next = work
        return self._work is not None

    def go_on(self, now_ns: int) -> bool:
        """Solve for a part of a control period; True if work is left."""
        if self._work is not None and self._advance(self._work, now_ns, self._slice_s):
            self._work, self._next = self._next, None
        return self._work is not None

    def _advance(self, work: _Work, now_ns: int, time_s: float) -> bool:
        """Go on with a chunk for a time; True if that is all."""
        core = self._core
        if work.forgotten != core.forgotten and has_poses(work.message):
            return True
        if work.steps is None:
            work.steps = read_slowly(work.message, core.limits, core.measured_at, self._poses)
        until = time.monotonic() + time_s
        try:
            while True:
                next(work.steps)
                if time.monotonic() >= until:
                    return False
        except StopIteration as end:
            chunk: TimedChunk = end.value
        except ChunkRefusedError as error:
            core.refuse(error)
            return True
        try:
            core.offer(chunk, now_ns, work.message.random_weights)
        except ChunkRefusedError:
            return True
        self._on_taken(work.message, chunk)
        return True
