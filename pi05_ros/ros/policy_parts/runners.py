"""How the jobs of the loop are run in the threads of the policy's host.

Preparing an observation (decoding and converting its images) needs no GPU, an inference nearly no
CPU. Where preparing takes long, that of the next observation runs while the inference before it
computes, and is timed to end with it: the frames are then the newest that can be used, and none
is decoded for nothing.
"""

from __future__ import annotations

import time
from collections import deque

from pi05_ros.runtime.inference import Job, PreparedJob
from pi05_ros.runtime.loop import InferenceLoop
from pi05_ros.runtime.statistics import Statistics
from pi05_ros.runtime.worker import Worker

WORTH_NS = 1_000_000
"""Preparing that takes less is done by the thread of the inference: it is handed over sooner."""
EARLY_NS = 1_000_000
"""Prepared so much sooner than the inference before is expected to end."""
REMEMBERED = 8


class Durations:
    """The newest durations of one kind of work, ns; 0 while there are none."""

    def __init__(self) -> None:
        self._newest: deque[int] = deque(maxlen=REMEMBERED)

    def add(self, took_ns: int) -> None:
        """Note one."""
        self._newest.append(took_ns)

    @property
    def median_ns(self) -> int:
        """The middle one."""
        ordered = sorted(self._newest)
        return ordered[len(ordered) // 2] if ordered else 0


class WorkerRunner:
    """Runs inferences in one thread, and where that helps prepares the next in another.

    Args:
        loop: whose jobs are run.
        preparer: worker that prepares ahead; None prepares in the thread of the inferences.
        worker: of the inferences.

    """

    def __init__(self, loop: InferenceLoop, preparer: Worker | None, worker: Worker) -> None:
        self._loop = loop
        self._preparer = preparer
        self._worker = worker
        self._prepare, self._infer = Durations(), Durations()
        self._began_ns = 0  # of the running inference, without what prepared it

    @property
    def busy(self) -> bool:
        """Whether a job cannot be started now."""
        if self._preparer is not None and self._preparer.busy:
            return True
        if not self._worker.busy:
            return False
        free_ns = self.free_ns
        return free_ns is None or time.monotonic_ns() < free_ns

    @property
    def free_ns(self) -> int | None:
        """Monotonic time at which preparing may begin although an inference runs then.

        None: at its end.
        """
        prepare_ns, infer_ns, began_ns = (
            self._prepare.median_ns, self._infer.median_ns, self._began_ns,
        )  # fmt: skip
        preparer = self._preparer
        if (
            preparer is None
            or preparer.busy
            or prepare_ns < WORTH_NS
            or not (infer_ns and began_ns)
        ):
            return None
        return began_ns + infer_ns - prepare_ns - EARLY_NS

    def submit(self, job: Job) -> None:
        """Start an inference, or to prepare one."""
        if self._preparer is None or self._prepare.median_ns < WORTH_NS:
            self._worker.submit(lambda: self._run(job))
        else:
            self._preparer.submit(lambda: self._run_ahead(job))

    def _run(self, job: Job) -> None:
        prepared = self._prepared(job)
        if prepared is not None:
            self._finish(job, prepared)

    def _run_ahead(self, job: Job) -> None:
        prepared = self._prepared(job)
        if prepared is None:
            return
        self._worker.wait_idle()
        if self._loop.is_current(job):
            self._worker.submit(lambda: self._finish(job, prepared))

    def _prepared(self, job: Job) -> PreparedJob | None:
        began_ns = time.monotonic_ns()
        prepared = self._loop.prepare(job)
        self._prepare.add(time.monotonic_ns() - began_ns)
        return prepared

    def _finish(self, job: Job, prepared: PreparedJob) -> None:
        self._began_ns = time.monotonic_ns()
        self._loop.infer_prepared(job, prepared)
        self._infer.add(time.monotonic_ns() - self._began_ns)
        self._began_ns = 0


class OverlapRunner:
    """Makes KV caches in one thread, denoises, checks and delivers in a second one.

    The first is busy until its cache has been taken over, so one observation at most waits
    between the two.
    """

    def __init__(
        self, loop: InferenceLoop, prefiller: Worker, denoiser: Worker, statistics: Statistics
    ) -> None:
        self._loop = loop
        self._prefiller = prefiller
        self._denoiser = denoiser
        self._statistics = statistics

    @property
    def busy(self) -> bool:
        """Whether a prefill is in flight, or its cache waits to be denoised."""
        return self._prefiller.busy

    @property
    def free_ns(self) -> int | None:
        """None: free at the end of what makes it busy, and at no time that is known before."""
        return None

    def submit(self, job: Job) -> None:
        """Start an inference."""
        self._prefiller.submit(lambda: self._prefill(job))

    def _prefill(self, job: Job) -> None:
        overlapped = self._denoiser.busy
        pending = self._loop.prefill(job)
        if pending is None:
            return
        self._denoiser.wait_idle()
        if not self._loop.is_current(job):
            return
        if overlapped:
            self._statistics.count_overlap()
        self._denoiser.submit(lambda: self._loop.denoise(job, pending))
