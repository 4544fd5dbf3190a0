"""Ticks, the worker and the chunk publisher of an active node.

Executor thread: ticks and samples decide when the newest snapshot is handed to the worker.
Worker thread: inference, output checks, publication. A lock and a generation number make sure
that nothing is published after `stop`.

With overlap the worker makes KV caches, and a second one takes them over for denoising, checks
and publication. The first is busy until its cache has been taken over, so one observation at most
waits between the two.
"""

from __future__ import annotations

import contextlib
import threading
import time
import traceback
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from rclpy.node import Node

from pi05_ros.policy.errors import PolicyError
from pi05_ros.policy.interface import MAX_SEED
from pi05_ros.ros import process
from pi05_ros.ros.messages import chunk_message
from pi05_ros.ros.subscriptions import JOINTS, Sources
from pi05_ros.runtime import inference, pacing
from pi05_ros.runtime.edge_log import EdgeLog
from pi05_ros.runtime.inference import BadChunkError, BadSampleError, Job, PolicyLike
from pi05_ros.runtime.observation_buffer import CLOCK_JUMP_NS, Snapshot
from pi05_ros.runtime.parameters import PolicyParameters
from pi05_ros.runtime.statistics import Statistics
from pi05_ros.runtime.worker import Worker


class InferenceLoop:
    """Runs inferences between `start` and `stop`.

    Args:
        node: clock, timers and logger.
        policy, worker, sources: made by configure; the loop does not own them.
        denoiser: second worker, for overlap; None runs inferences one after the other.
        publish: hands a message to the middleware (a muted lifecycle publisher while inactive).
        parameters: returns the current ones.
        statistics, log: shared with diagnostics.

    """

    def __init__(
        self,
        node: Node,
        policy: PolicyLike,
        worker: Worker,
        sources: Sources,
        publish: Callable[[Any], None],
        parameters: Callable[[], PolicyParameters],
        statistics: Statistics,
        log: EdgeLog,
        denoiser: Worker | None = None,
    ) -> None:
        self._node = node
        self._policy = policy
        self._worker = worker
        self._denoiser = denoiser
        self._sources = sources
        self._publish = publish
        self._parameters = parameters
        self._statistics = statistics
        self._log = log
        self._gate = threading.Lock()
        self._generation = 0
        self._worked = -1  # generation of the last job; worker thread only
        self._pacer = pacing.Pacer()
        self._bad_samples: deque[BadSampleError] = deque()
        self._timer: Any = None
        self._wait_timer: Any = None
        self._chunk_id = 0
        self._inferences = 0
        self.policy_id = ""

    @property
    def running(self) -> bool:
        """Whether ticks are served."""
        return self._timer is not None

    def start(self) -> None:
        """New identity, empty buffers, timer on."""
        self.reset()
        self._chunk_id = 0
        self.policy_id = uuid.uuid4().hex
        self._make_timers()

    def stop(self) -> None:
        """Timer off; whatever is in flight will not be published. Does not wait."""
        self._destroy_timers()
        with self._gate:
            self._generation += 1
        self.policy_id = ""
        self._pacer.started()

    def reset(self) -> None:
        """Start over with fresh samples and the first seed; a running inference is dropped."""
        with self._gate:
            self._generation += 1
        self._inferences = 0
        self._pacer.started()
        self._sources.inputs.reset()
        self._statistics.clear_latencies()

    def apply(self, parameters: PolicyParameters) -> None:
        """Take over a changed rate."""
        if self.running and abs(self._period_s - 1.0 / parameters.rate_hz) > 1e-9:
            self._destroy_timers()
            self._make_timers()

    def on_sample(self) -> None:
        """Start the inference that waits for pictures, if it does."""
        if self._pacer.due_since is not None:
            self._try_start()

    def on_worker_idle(self) -> None:
        """Account for what the worker left behind and start what has become due meanwhile."""
        while self._bad_samples:
            bad = self._bad_samples.popleft()
            self._sources.inputs.count_bad_sample(bad.source, bad.error.code, str(bad.error))
            self._statistics.skip("bad_input")
            self._log.report(bad.source, bad.error.code, str(bad.error))
        if self.running:
            self._try_start()

    def _make_timers(self) -> None:
        parameters = self._parameters()
        self._period_s = 1.0 / parameters.rate_hz
        clock = process.tick_clock(self._node)
        self._timer = self._node.create_timer(self._period_s, self._tick, clock=clock)
        self._wait_timer = self._node.create_timer(self._period_s, self._wait_over, clock=clock)
        self._wait_timer.cancel()

    def _destroy_timers(self) -> None:
        for timer in (self._timer, self._wait_timer):
            if timer is not None:
                self._node.destroy_timer(timer)
        self._timer = self._wait_timer = None

    def _tick(self) -> None:
        lost = self._pacer.skipped
        self._pacer.tick(time.monotonic_ns())
        if self._pacer.skipped != lost:
            self._statistics.skip("busy")
            self._log.report("inference", "busy", "slower than rate_hz; ticks are skipped")
        wait_ns = self._wait_ns()
        if not self._try_start() and wait_ns:  # also while the worker is busy: it may end in time
            self._wait_timer.timer_period_ns = wait_ns
            self._wait_timer.reset()

    def _wait_over(self) -> None:
        self._wait_timer.cancel()
        self._try_start(waited=True)

    def _wait_ns(self) -> int:
        parameters = self._parameters()
        return pacing.wait_ns(parameters.camera_wait_s, parameters.rate_hz)

    def _try_start(self, *, waited: bool = False) -> bool:
        """Whether the due inference was started or given up."""
        mono_ns = time.monotonic_ns()
        due_since = self._pacer.due_since
        if due_since is None or self._worker.busy:
            return False
        inputs = self._sources.inputs
        complete = inputs.complete_since(self._sources.camera_names, due_since)
        if not self._pacer.may_start(mono_ns, 0 if waited else self._wait_ns(), complete):
            return False
        self._pacer.started()
        self._wait_timer.cancel()
        taken = inputs.take(self._now_ns(), mono_ns)
        if isinstance(taken, Snapshot):
            self._submit(taken)
            return True
        for code in {problem.code for problem in taken}:
            self._statistics.skip(code)
        for problem in taken:
            if problem.code != "unchanged":
                self._log.report(problem.source, problem.code, problem.text)
        return True

    def _submit(self, snapshot: Snapshot) -> None:
        parameters = self._parameters()
        job = Job(
            generation=self._generation,
            snapshot=snapshot,
            images=self._sources.cameras,
            joints=JOINTS,
            prompt=parameters.prompt,
            seed=(parameters.seed + self._inferences) % (MAX_SEED + 1),
            denoise_steps=parameters.denoise_steps,
            now_ns=self._now_ns,
        )
        self._inferences += 1
        self._worker.submit(lambda: self._work(job))

    def _now_ns(self) -> int:
        return int(self._node.get_clock().now().nanoseconds)

    def _work(self, job: Job) -> None:
        """Worker thread: one inference and its publication, or the first half; never raises."""
        with self._accounted():
            if job.generation != self._worked:
                # Here and not in `reset`: a job of the generation before may just have begun.
                self._worked = job.generation
                forget = getattr(self._policy, "forget", None)
                if forget is not None:  # a policy that continues its chunks
                    forget()
            if self._denoiser is None:
                self._deliver(job, inference.run(self._policy, job))
                return
            overlapped = self._denoiser.busy
            begun = inference.begin(self._policy, job)
            self._denoiser.wait_idle()
            if job.generation != self._generation:
                self._statistics.drop("inactive", "")
                return
            self._denoiser.submit(lambda: self._finish(job, begun, overlapped))

    def _finish(self, job: Job, begun: inference.Begun, overlapped: bool) -> None:
        """Second worker's thread: the other half and its publication; never raises."""
        with self._accounted():
            self._deliver(job, inference.finish(self._policy, begun))
            if overlapped:
                self._statistics.count_overlap()

    @contextlib.contextmanager
    def _accounted(self) -> Iterator[None]:
        """Count and log what goes wrong, raise nothing."""
        try:
            yield
        except BadSampleError as bad:
            self._bad_samples.append(bad)
        except BadChunkError as bad:
            self._statistics.drop("nan", str(bad))
            self._log.report("inference", "nan", f"{bad}; not published")
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            self._statistics.fail(text)
            # A PolicyError says what is wrong with what the policy was given; others are bugs.
            where = "" if isinstance(error, PolicyError) else f"\n{traceback.format_exc()}"
            self._log.report("inference", text, f"failed: {text}{where}")

    def _deliver(self, job: Job, answer: inference.Answer) -> None:
        with self._gate:
            if job.generation != self._generation:
                self._statistics.drop("inactive", "")
                return
            parameters = self._parameters()
            now_ns = self._now_ns()
            age_ns = now_ns - job.snapshot.stamp_ns
            if age_ns < -int(parameters.future_tolerance_s * 1e9) - CLOCK_JUMP_NS:
                self._statistics.drop("clock_jump", "")
                return
            if age_ns > parameters.max_answer_age_s * 1e9:
                text = (
                    f"chunk answers an observation {age_ns / 1e9:.2f} s old (limit "
                    f"{parameters.max_answer_age_s:g} s); dropped"
                )
                self._statistics.drop("late", text)
                self._log.report("inference", "late", text)
                return
            message = chunk_message(
                job,
                answer,
                chunk_id=self._chunk_id,
                policy_id=self.policy_id,
                random_weights=bool(self._policy.info.random_weights),
                published_ns=now_ns,
            )
            total_ms = (time.monotonic_ns() - job.snapshot.received_ns) / 1e6
            message.timings.total_ms = total_ms
            self._publish(message)
            self._chunk_id += 1
        self._statistics.add_latency(total_ms, message.timings.inference_ms)
        # A message that arrives says little: its stamp may be wrong. A chunk made from it does.
        for key in ("inference", *message.input_names):
            self._log.report(key, "")
