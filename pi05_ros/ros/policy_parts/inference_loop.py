"""The inference loop on ROS timers: ticks, counters, log lines and chunk messages.

`pi05_ros.runtime.loop` decides; here are its clocks, and what people see of it.
"""

from __future__ import annotations

import time
import traceback
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from rclpy.impl.rcutils_logger import RcutilsLogger
from rclpy.logging import LoggingSeverity
from rclpy.node import Node
from rclpy.timer import Timer

from pi05_ros.errors import Pi05Error
from pi05_ros.ros import process
from pi05_ros.ros.messages import chunk_message
from pi05_ros.ros.policy_parts.managed import ManagedPart
from pi05_ros.ros.policy_parts.policy_host import PolicyHost
from pi05_ros.ros.policy_parts.subscriptions import Subscriptions
from pi05_ros.runtime.edge_log import EdgeLog
from pi05_ros.runtime.inference import BadSampleError, InferenceResult, Job
from pi05_ros.runtime.inputs.observation_buffer import Inputs, Problem
from pi05_ros.runtime.loop import InferenceLoop
from pi05_ros.runtime.parameters import PolicyParameters
from pi05_ros.runtime.statistics import Statistics
from pi05_ros.runtime.text import printable


class NodeClocks:
    """The node's clock, and the monotonic one."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def now_ns(self) -> int:
        """ROS time."""
        return int(self._node.get_clock().now().nanoseconds)

    def mono_ns(self) -> int:
        """Monotonic time of this process."""
        return time.monotonic_ns()


class NodeOutcomes:
    """Counts and logs what becomes of ticks and jobs."""

    def __init__(
        self, statistics: Statistics, log: EdgeLog, inputs: Inputs, logger: RcutilsLogger
    ) -> None:
        self._statistics = statistics
        self._log = log
        self._inputs = inputs
        self._logger = logger

    def lost_tick(self, computing: bool) -> None:
        """Count and name it: the node is asked for more than it can do."""
        if computing:
            self._statistics.skip("busy")
            self._log.report("inference", "busy", "slower than rate_hz; ticks are skipped")
        else:
            self._statistics.skip("waiting")
            self._log.report(
                "inference", "waiting", "ticks are skipped: messages keep this process busy"
            )

    def started(self, job: Job) -> None:
        """Show at debug level which samples an inference starts with."""
        if self._logger.is_enabled_for(LoggingSeverity.DEBUG):
            stamps = (f"{name} {s.stamp_ns}" for name, s in job.snapshot.samples.items())
            self._logger.debug(f"tick: inference with seed {job.seed} from {', '.join(stamps)}")

    def refused(self, problems: Sequence[Problem]) -> None:
        """Count and name why there is no inference."""
        for code in {problem.code for problem in problems}:
            self._statistics.skip(code)
        for problem in problems:
            if problem.code != "unchanged":
                self._log.report(problem.source, problem.code, problem.text)
        if self._logger.is_enabled_for(LoggingSeverity.DEBUG):
            texts = (f"{problem.source}: {problem.text}" for problem in problems)
            self._logger.debug(printable(f"tick: no inference, {'; '.join(texts)}"))

    def bad_sample(self, bad: BadSampleError) -> None:
        """Count and name a sample that did not convert."""
        self._inputs.count_bad_sample(bad.source, bad.error.code, str(bad.error))
        self._statistics.skip("bad_input")
        self._log.report(bad.source, bad.error.code, str(bad.error))

    def dropped_chunk(self, reason: str, text: str) -> None:
        """Count and name a chunk that is not published."""
        self._statistics.drop(reason, text)
        if reason == "nan":
            self._log.report("inference", reason, f"{text}; not published")
        elif text:
            self._log.report("inference", reason, text)

    def failed(self, error: Exception) -> None:
        """Count and name an inference that raised."""
        text = f"{type(error).__name__}: {error}"
        self._statistics.fail(text)
        # A Pi05Error says what is wrong; others are bugs.
        where = "" if isinstance(error, Pi05Error) else f"\n{traceback.format_exc()}"
        self._log.report("inference", text, f"failed: {text}{where}")


class TimedLoop(ManagedPart):
    """Drives the inference loop of an active node from timers, samples and the worker.

    Args:
        node: clock and timers.
        host, subscriptions: parts that are configured before this one.
        publish: hands a chunk message to the middleware.
        parameters, prompt: return the current ones.
        statistics, log: shared with diagnostics.

    Attributes:
        policy_id: identity of this activation, empty while not active.

    """

    def __init__(
        self,
        node: Node,
        host: PolicyHost,
        subscriptions: Subscriptions,
        publish: Callable[[Any], None],
        parameters: Callable[[], PolicyParameters],
        prompt: Callable[[], str],
        statistics: Statistics,
        log: EdgeLog,
    ) -> None:
        self._node = node
        self._host = host
        self._subscriptions = subscriptions
        self._publish = publish
        self._parameters = parameters
        self._prompt = prompt
        self._statistics = statistics
        self._log = log
        self._loop: InferenceLoop | None = None
        self._timers: tuple[Timer, Timer] | None = None  # of ticks, and of the wait for frames
        self._period_s = 0.0
        self.policy_id = ""

    def configure(self, parameters: PolicyParameters) -> None:
        """Connect policy, buffers and publisher."""
        inputs = self._subscriptions.inputs
        self._loop = InferenceLoop(
            self._host.policy,
            inputs,
            self._subscriptions.cameras,
            self._parameters,
            self._prompt,
            NodeClocks(self._node),
            NodeOutcomes(self._statistics, self._log, inputs, self._node.get_logger()),
            self._deliver,
        )
        self._loop.runner = self._host.runner(self._loop, ahead=self._subscriptions.on_demand)

    def activate(self) -> None:
        """New identity, empty buffers, timers on."""
        self._log.clear()
        self.reset()
        if self._loop is not None:
            self._loop.start()
        self.policy_id = uuid.uuid4().hex
        self._start_timers()

    def deactivate(self) -> None:
        """Timers off; whatever is in flight will not be published. Does not wait."""
        self._stop_timers()
        if self._loop is not None:
            self._loop.stop()
        self.policy_id = ""

    def cleanup(self) -> None:
        """Disconnect."""
        self.deactivate()
        self._loop = None

    def apply(self, parameters: PolicyParameters) -> None:
        """Take over a changed rate."""
        if self._timers is not None and abs(self._period_s - 1.0 / parameters.rate_hz) > 1e-9:
            self._stop_timers()
            self._start_timers()

    def reset(self) -> None:
        """Start over with fresh samples and the first seed; a running inference is dropped."""
        self._subscriptions.take()  # what came before must not be found afterwards
        if self._loop is not None:
            self._loop.reset()
        self._statistics.clear_latencies()

    def on_sample(self) -> None:
        """Start the inference that waits for images, if one does."""
        if self._subscriptions.on_demand or self._loop is None:
            return  # `_look` does, when all sources have been asked
        if self._loop.due_since_ns is not None:
            self._try_start()

    def on_worker_idle(self) -> None:
        """Account for what the worker left behind and start what has become due meanwhile."""
        if self._loop is not None:
            self._loop.account()
        if self._subscriptions.on_demand:
            self._look()
        else:
            self._try_start()

    def _start_timers(self) -> None:
        self._period_s = 1.0 / self._parameters().rate_hz
        clock = process.tick_clock(self._node)
        tick = self._node.create_timer(self._period_s, self._tick, clock=clock)
        wait = self._node.create_timer(self._period_s, self._wait_over, clock=clock)
        wait.cancel()
        self._timers = (tick, wait)

    def _stop_timers(self) -> None:
        for timer in self._timers or ():
            self._node.destroy_timer(timer)
        self._timers = None

    def _tick(self) -> None:
        if self._loop is None or self._timers is None:
            return
        self._loop.tick()
        if self._subscriptions.on_demand:
            self._look()
            return
        wait_ns = self._loop.wait_ns
        if not self._try_start() and wait_ns:  # also while the worker is busy: it may end in time
            self._wake_in(wait_ns)

    def _look(self) -> None:
        """Take messages and start the due inference, or look again when frames are expected.

        Frames are taken while an inference runs, too, so that the next one need not wait for it;
        what is newer when that has ended is taken then.
        """
        loop = self._loop
        if loop is None or self._timers is None or loop.due_since_ns is None:
            return
        over_ns = loop.due_since_ns + loop.wait_ns
        again_ns = self._subscriptions.take_since(loop.due_since_ns, over_ns)
        if again_ns is not None:
            self._wake_in(max(again_ns - time.monotonic_ns(), 1))
        elif not loop.runner.busy:
            self._try_start(waited=True)
        elif (free_ns := loop.runner.free_ns) is not None:  # its end looks again in any case
            self._wake_in(max(free_ns - time.monotonic_ns(), 1))

    def _wake_in(self, time_ns: int) -> None:
        if self._timers is not None:
            wait = self._timers[1]
            wait.timer_period_ns = time_ns
            wait.reset()

    def _wait_over(self) -> None:
        if self._timers is None:
            return
        self._timers[1].cancel()
        if self._subscriptions.on_demand:
            self._look()
        else:
            self._try_start(waited=True)

    def _try_start(self, *, waited: bool = False) -> bool:
        if self._loop is None or self._timers is None:
            return False
        started = self._loop.try_start(waited=waited)
        if started:
            self._timers[1].cancel()
        return started

    def _deliver(self, job: Job, result: InferenceResult, chunk_id: int, now_ns: int) -> None:
        """Worker thread: publish a chunk."""
        message = chunk_message(
            job,
            result,
            chunk_id=chunk_id,
            policy_id=self.policy_id,
            random_weights=bool(self._host.policy.info.random_weights),
            published_ns=now_ns,
        )
        total_ms = (time.monotonic_ns() - job.snapshot.received_ns) / 1e6
        message.timings.total_ms = total_ms
        self._publish(message)
        self._statistics.add_latency(total_ms, message.timings.inference_ms)
        # A message that arrives says little: its stamp may be wrong. A chunk made from it does.
        for key in ("inference", *message.input_names):
            self._log.report(key, "")
