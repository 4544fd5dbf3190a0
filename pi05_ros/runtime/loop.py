"""The inference loop of the node and of offline replay: tick, take, infer, deliver.

It knows no ROS and no threads of its own. Its driver calls `tick` at the asked rate and
`try_start` after each message; a `Runner` runs the jobs, in a worker thread or at once; `deliver`
gets the chunks that may be used. A lock and a generation number make sure that nothing is
delivered after `stop` or `reset`.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from pi05_ros.policy.interface import MAX_SEED, PolicyLike
from pi05_ros.runtime import inference, pacing
from pi05_ros.runtime.inference import (
    BadChunkError,
    BadSampleError,
    InferenceResult,
    Job,
    PendingInference,
    PreparedJob,
)
from pi05_ros.runtime.inputs.observation_buffer import NS, Inputs, Problem, Snapshot
from pi05_ros.runtime.inputs.sources import JOINTS
from pi05_ros.runtime.parameters import PolicyParameters


class Clocks(Protocol):
    """The two clocks of the loop, in nanoseconds."""

    def now_ns(self) -> int:
        """The clock that header stamps are compared with; may be simulated time."""

    def mono_ns(self) -> int:
        """A steady clock."""


class Runner(Protocol):
    """Runs jobs, one at a time, or the first part of one while the part before it runs."""

    @property
    def busy(self) -> bool:
        """Whether a job cannot be started now."""

    @property
    def free_ns(self) -> int | None:
        """Monotonic time at which a busy runner takes the next job; None: when a job has ended."""

    def submit(self, job: Job) -> None:
        """Run `InferenceLoop.infer` of a job, or its parts."""


class Outcomes(Protocol):
    """Told what became of ticks and jobs, for counters and logs.

    `dropped_chunk` and `failed` come from the thread that runs the job, the others from the thread
    that drives the loop.
    """

    def lost_tick(self, computing: bool) -> None:
        """A tick found the one before it still waiting, for an inference to end or for frames."""

    def started(self, job: Job) -> None:
        """A tick led to an inference."""

    def refused(self, problems: Sequence[Problem]) -> None:
        """A tick led to no inference."""

    def bad_sample(self, bad: BadSampleError) -> None:
        """A sample of a job did not convert."""

    def dropped_chunk(self, reason: str, text: str) -> None:
        """A chunk was made, or would have come too late, and is not delivered."""

    def failed(self, error: Exception) -> None:
        """The policy raised."""


Deliver = Callable[[Job, InferenceResult, int, int], None]
"""Called with job, result, chunk id and the time (ns) of delivery."""


class InferenceLoop:
    """One inference per tick from the newest fresh samples.

    Args:
        policy: answers observations.
        inputs: newest sample of each source.
        cameras: role -> (source name, converter of its messages).
        parameters: returns the current ones.
        prompt: returns the prompt in use.
        clocks: see `Clocks`.
        outcomes: see `Outcomes`.
        deliver: gets each chunk that may be used, in the thread that ran the job.
        ages: whether observations age while they are worked on; False for offline replay,
            where an inference takes no time.

    Attributes:
        runner: set by the owner before the first tick.

    """

    def __init__(
        self,
        policy: PolicyLike,
        inputs: Inputs,
        cameras: Mapping[str, tuple[str, Callable[[Any], np.ndarray]]],
        parameters: Callable[[], PolicyParameters],
        prompt: Callable[[], str],
        clocks: Clocks,
        outcomes: Outcomes,
        deliver: Deliver,
        *,
        ages: bool = True,
    ) -> None:
        self.runner: Runner = InlineRunner(self)
        self._policy = policy
        self._inputs = inputs
        self._cameras = cameras
        self._camera_names = tuple(name for name, _ in cameras.values())
        self._parameters = parameters
        self._prompt = prompt
        self._clocks = clocks
        self._outcomes = outcomes
        self._deliver = deliver
        self._ages = ages
        self._gate = threading.Lock()
        self._generation = 0
        self._worked = -1  # generation of the last job; thread of the jobs only
        self._pacer = pacing.Pacer()
        self._bad_samples: deque[BadSampleError] = deque()
        self._inferences = 0
        self._chunk_id = 0

    # -- thread that drives the loop --------------------------------------------------------

    def start(self) -> None:
        """Start over, with chunk id 0."""
        self.reset()
        self._chunk_id = 0

    def stop(self) -> None:
        """Deliver nothing any more; whatever runs is dropped. Does not wait."""
        with self._gate:
            self._generation += 1
        self._pacer.started()

    def reset(self) -> None:
        """Start over with fresh samples and the first seed; a running inference is dropped."""
        self.stop()
        self._inferences = 0
        self._inputs.reset()

    @property
    def due_since_ns(self) -> int | None:
        """Monotonic time of the tick that waits for its inference, None if there is none."""
        return self._pacer.due_since

    @property
    def wants_idle(self) -> bool:
        """Whether `account` or `try_start` has something to do when a job has ended."""
        return bool(self._bad_samples) or self._pacer.due_since is not None

    @property
    def wait_ns(self) -> int:
        """Longest wait of a due inference for the next frame of every camera."""
        parameters = self._parameters()
        return pacing.wait_ns(parameters.camera_wait_s, parameters.rate_hz)

    def tick(self) -> None:
        """Make an inference due."""
        lost = self._pacer.skipped
        self._pacer.tick(self._clocks.mono_ns())
        if self._pacer.skipped != lost:
            self._outcomes.lost_tick(self.runner.busy)

    def give_up(self) -> None:
        """Forget the tick that waits for its inference, as after a jump of the clock."""
        self._pacer.started()

    def try_start(self, *, waited: bool = False) -> bool:
        """Start the inference that is due, if it may start now.

        Args:
            waited: the wait for camera frames is over, whatever the clock says.

        Returns:
            Whether it was started or given up for lack of input.

        """
        mono_ns = self._clocks.mono_ns()
        due_since = self._pacer.due_since
        if due_since is None or self.runner.busy:
            return False
        complete = self._inputs.complete_since(self._camera_names, due_since)
        if not self._pacer.may_start(mono_ns, 0 if waited else self.wait_ns, complete):
            return False
        self._pacer.started()
        taken = self._inputs.take(self._clocks.now_ns(), mono_ns)
        if isinstance(taken, Snapshot):
            self._begin(taken)
        else:
            self._outcomes.refused(taken)
        return True

    def account(self) -> None:
        """Report what jobs left behind; to be called when a job has ended."""
        while self._bad_samples:
            self._outcomes.bad_sample(self._bad_samples.popleft())

    def _begin(self, snapshot: Snapshot) -> None:
        parameters = self._parameters()
        job = Job(
            generation=self._generation,
            snapshot=snapshot,
            images=self._cameras,
            joints=JOINTS,
            prompt=self._prompt(),
            seed=(parameters.seed + self._inferences) % (MAX_SEED + 1),
            denoise_steps=parameters.denoise_steps or None,
            clock_jumps=self._inputs.clock_jumps,
            now_ns=self._clocks.now_ns if self._ages else None,
        )
        self._inferences += 1
        if self._too_late(snapshot, self._clocks.now_ns()):
            return  # it would be later still when it is ready
        self._outcomes.started(job)
        self.runner.submit(job)

    # -- thread that runs the job -----------------------------------------------------------

    def infer(self, job: Job) -> None:
        """Run a whole job and deliver its chunk; never raises."""
        with self._accounted(job):
            self._finish(job, inference.run(self._policy, job))

    def prepare(self, job: Job) -> PreparedJob | None:
        """First part of `infer`, in any thread; None if a sample does not convert."""
        with self._accounted():
            return inference.prepare(job)
        return None

    def infer_prepared(self, job: Job, prepared: PreparedJob) -> None:
        """The rest of `infer` after `prepare`."""
        with self._accounted(job):
            self._finish(job, inference.infer(self._policy, job, prepared))

    def prefill(self, job: Job) -> PendingInference | None:
        """First half of `infer`; None if there is nothing to go on with."""
        with self._accounted(job):
            return inference.begin(self._policy, job)
        return None

    def denoise(self, job: Job, pending: PendingInference) -> None:
        """Second half of `infer`."""
        with self._accounted():
            self._finish(job, inference.finish(self._policy, pending))

    def is_current(self, job: Job) -> bool:
        """Whether the chunk of a job would still be delivered; counted as dropped if not."""
        if job.generation != self._generation:
            self._outcomes.dropped_chunk("inactive", "")
            return False
        return True

    @contextlib.contextmanager
    def _accounted(self, begins: Job | None = None) -> Iterator[None]:
        """Report what goes wrong, raise nothing; `begins` is the job if it is its first half."""
        try:
            if begins is not None and begins.generation != self._worked:
                # Here and not in `reset`: a job of the generation before may just have begun.
                self._worked = begins.generation
                forget = getattr(self._policy, "forget", None)
                if forget is not None:  # a policy that continues its chunks
                    forget()
            yield
        except BadSampleError as bad:
            self._bad_samples.append(bad)
        except BadChunkError as bad:
            self._outcomes.dropped_chunk("nan", str(bad))
        except Exception as error:
            self._outcomes.failed(error)

    def _finish(self, job: Job, result: InferenceResult) -> None:
        """Deliver a chunk unless the loop was stopped, the clock jumped or it is too late."""
        with self._gate:
            if not self.is_current(job):
                return
            now_ns = self._clocks.now_ns()
            if job.clock_jumps != self._inputs.clock_jumps or self._inputs.went_back(now_ns):
                self._outcomes.dropped_chunk("clock_jump", "")
                return
            if self._too_late(job.snapshot, now_ns):
                return
            self._deliver(job, result, self._chunk_id, now_ns)
            self._chunk_id += 1

    def _too_late(self, snapshot: Snapshot, now_ns: int) -> bool:
        age_ns = now_ns - snapshot.stamp_ns
        limit_s = self._parameters().max_answer_age_s
        if age_ns <= limit_s * NS:
            return False
        self._outcomes.dropped_chunk(
            "late",
            f"chunk answers an observation {age_ns / NS:.2f} s old (limit {limit_s:g} s); dropped",
        )
        return True


class InlineRunner:
    """Runs each job where it is submitted; an error that is no outcome of a job is raised."""

    busy = False
    free_ns: int | None = None

    def __init__(self, loop: InferenceLoop) -> None:
        self._loop = loop

    def submit(self, job: Job) -> None:
        """Run the job."""
        self._loop.infer(job)
        self._loop.account()
