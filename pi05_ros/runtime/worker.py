"""A thread that loads the policy and runs its inferences, one at a time.

The executor stays single-threaded and never waits for the model. With overlap a second worker
runs the second halves of inferences.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class Task:
    """A job given to the worker; `result` or `error` is set once `done` is."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self.done = threading.Event()
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        """Do the work, keep what it returned or raised."""
        try:
            self.result = self._work()
        except BaseException as error:
            self.error = error
        finally:
            self.done.set()


class Worker:
    """A daemon thread with room for one job; never a queue.

    A daemon, so that a model that hangs cannot keep the process alive.

    Args:
        on_idle: called in the worker thread each time a job has ended and the next may start.
        name: of the thread.

    """

    def __init__(
        self, on_idle: Callable[[], object] = lambda: None, name: str = "pi05_inference"
    ) -> None:
        self._on_idle = on_idle
        self._condition = threading.Condition()
        self._task: Task | None = None
        self._stop = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether a job is waiting or running."""
        with self._condition:
            return self._task is not None

    def submit(self, work: Callable[[], Any]) -> Task | None:
        """Start a job; None if one is in flight."""
        with self._condition:
            if self._task is not None or self._stop:
                return None
            self._task = Task(work)
            self._condition.notify_all()
            return self._task

    def wait_idle(self, timeout_s: float | None = None) -> bool:
        """Wait until no job is in flight; False if that took longer. None waits for ever."""
        with self._condition:
            return self._condition.wait_for(lambda: self._task is None, timeout_s)

    def stop(self, timeout_s: float) -> bool:
        """Let the job in flight end and join the thread; False if it is still running."""
        with self._condition:
            self._stop = True
            self._condition.notify_all()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._task is not None or self._stop)
                task = self._task
                if task is None:
                    return
            task.run()
            with self._condition:
                self._task = None
                self._condition.notify_all()
            self._on_idle()
