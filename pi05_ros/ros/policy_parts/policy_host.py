"""The policy of a configured node, and the threads that load it and run its inferences."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
from collections.abc import Callable
from typing import Any

from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node

from pi05_ros.backends.engine import EngineHealth
from pi05_ros.phases import phase
from pi05_ros.ros.policy_parts.managed import ManagedPart
from pi05_ros.ros.policy_parts.runners import OverlapRunner, WorkerRunner
from pi05_ros.runtime.inference import PolicyLike
from pi05_ros.runtime.isolation.isolated_policy import IsolatedPolicy
from pi05_ros.runtime.loop import InferenceLoop
from pi05_ros.runtime.parameters import PolicyParameters
from pi05_ros.runtime.statistics import Statistics
from pi05_ros.runtime.worker import Worker

LOAD_POLL_S = 0.05


class PolicyHost(ManagedPart):
    """Loads the policy, lends it to the loop, frees it.

    Args:
        node: makes the guard condition by which the worker wakes the executor.
        make: makes the policy from the parameters, in the worker thread.
        stop: set when the process has been asked to end; configure gives up then.
        meanwhile: called in the executor thread again and again while the policy loads.
        on_idle: called in the executor thread when an inference, or what prepared one, has ended
            and the loop has something to do then, and when `problem` has changed.
        statistics: shared with diagnostics.

    """

    def __init__(
        self,
        node: Node,
        make: Callable[[PolicyParameters], PolicyLike],
        stop: threading.Event,
        meanwhile: Callable[[], None],
        on_idle: Callable[[], None],
        statistics: Statistics,
    ) -> None:
        self._node = node
        self._make = make
        self._stop = stop
        self._meanwhile = meanwhile
        self._on_idle = on_idle
        self._statistics = statistics
        self._policy: PolicyLike | None = None
        # In the order in which a job passes them.
        self._workers: list[Worker] = []
        self._loader: Worker | None = None  # the one whose thread loads and closes the policy
        self._guard: Any = None
        self._loop: InferenceLoop | None = None

    @property
    def policy(self) -> PolicyLike:
        """The policy of a configured node."""
        if self._policy is None:
            raise RuntimeError("no policy is loaded")
        return self._policy

    @property
    def info(self) -> Any | None:
        """`PolicyInfo` while a policy is loaded."""
        return None if self._policy is None else self._policy.info

    @property
    def default_prompt(self) -> str:
        """Prompt of the robot profile, empty without one."""
        return "" if self._policy is None else self._policy.robot.default_prompt or ""

    @property
    def released(self) -> bool:
        """Whether no thread is left that may still compute."""
        return not self._workers

    @property
    def problem(self) -> str:
        """Why an engine in a process of its own cannot answer now, empty if it can."""
        return self._policy.problem if isinstance(self._policy, IsolatedPolicy) else ""

    def health(self) -> EngineHealth:
        """What the engine's supervision of itself has found."""
        ask: Callable[[], EngineHealth] = getattr(self._policy, "health", EngineHealth)
        return ask()

    def runner(self, loop: InferenceLoop, *, ahead: bool) -> WorkerRunner | OverlapRunner:
        """What runs the jobs of a loop in this host's threads.

        Args:
            loop: whose jobs are run.
            ahead: observations may be prepared while the inference before them runs.

        """
        self._loop = loop
        first, last = self._workers
        if self._loader is first:
            return OverlapRunner(loop, first, last, self._statistics)
        return WorkerRunner(loop, first if ahead else None, last)

    def configure(self, parameters: PolicyParameters) -> None:
        """Load and warm up in the worker thread, so that signals are served meanwhile."""
        self._guard = self._node.create_guard_condition(self._on_idle)
        worker = self._loader = Worker(self._ended)
        self._workers = (
            [worker, Worker(name="pi05_denoise")]
            if parameters.overlap
            else [Worker(self._ended, name="pi05_prepare"), worker]
        )

        def load() -> PolicyLike:
            policy = self._make(parameters)
            with phase("warm-up"):
                policy.warm_up()
            return policy

        task = worker.submit(load)
        assert task is not None
        while not task.done.wait(LOAD_POLL_S):
            if self._stop.is_set():
                raise InterruptedError("the process was asked to end while the policy was loading")
            self._meanwhile()
        if task.error is not None:
            raise task.error
        self._policy = task.result
        if isinstance(self._policy, IsolatedPolicy):
            self._policy.on_change(self._wake)
        gc.collect()
        gc.freeze()  # looking through what is loaded would hold up an inference now and then

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until nothing computes; False if that took longer than all together may.

        Loading that the end of the process interrupts is not waited for.
        """
        if self._policy is None and self._stop.is_set():
            timeout_s = 0.0
        end = time.monotonic() + timeout_s
        # In this order: the first hands its work to the second.
        return all(worker.wait_idle(max(0.0, end - time.monotonic())) for worker in self._workers)

    def cleanup(self) -> None:
        """Close the policy in its thread, end the threads; only while nothing computes."""
        policy, self._policy = self._policy, None
        gc.unfreeze()
        if policy is not None and self._loader is not None:
            task = self._loader.submit(policy.close)
            if task is not None:
                task.done.wait(1.0)
        while self._workers:
            self._workers.pop().stop(1.0)
        self._loader = self._loop = None
        if self._guard is not None:
            guard, self._guard = self._guard, None
            self._node.destroy_guard_condition(guard)

    def _ended(self) -> None:
        """Worker thread: a job has ended.

        A turn of the executor takes 0.4 ms with Python's lock, which the next inference may need.
        """
        loop = self._loop
        if loop is None or loop.wants_idle:
            self._wake()

    def _wake(self) -> None:
        """Worker thread: have `on_idle` called by the executor."""
        guard = self._guard
        if guard is not None:
            with contextlib.suppress(rclpy_implementation.InvalidHandle):
                guard.trigger()
