"""One GPU for many sessions: a fair queue in front of the inference thread.

Every session has at most one waiting request: a newer one replaces it, since an answer to an old
observation is worth nothing to a robot. Sessions are served in turn. A request whose deadline has
passed when its turn comes is given up before any work is done for it. Memory is bounded by one
request per session.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Generic, TypeVar

from pi05_ros.serving.errors import ServingError

T = TypeVar("T")


class ReplacedError(ServingError):
    """A newer request of the same session came before this one was begun."""


class DeadlineError(ServingError):
    """The deadline had passed before the request could be begun."""


class DrainingError(ServingError):
    """The server is shutting down."""


@dataclass
class _Waiting(Generic[T]):
    work: Callable[[], T]
    deadline_s: float | None
    future: Future[T] = field(default_factory=Future)
    queued_s: float = field(default_factory=time.monotonic)


def _give_up(entry: _Waiting[object], error: ServingError) -> None:
    """Answer work that never began; nobody may be waiting any more."""
    if entry.future.set_running_or_notify_cancel():
        entry.future.set_exception(error)


class InferenceQueue:
    """Runs work, sessions in turn, one piece of each session at a time.

    Args:
        workers: threads; more than one only where the work is done elsewhere (a fleet).
        observe_wait: called with the seconds that each begun piece of work has waited.

    """

    def __init__(
        self,
        observe_wait: Callable[[float], None] = lambda seconds: None,
        workers: int = 1,
    ) -> None:
        self._observe_wait = observe_wait
        self._lock = threading.Lock()
        self._wake: SimpleQueue[None] = SimpleQueue()  # one for each reason to look for work
        self._waiting: OrderedDict[Hashable, _Waiting[object]] = OrderedDict()
        self._closed = False
        self._busy: set[Hashable] = set()
        self._threads = [
            threading.Thread(target=self._serve, name=f"pi05_inference_{n}", daemon=True)
            for n in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def length(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    def submit(
        self, session: Hashable, work: Callable[[], T], deadline_s: float | None = None
    ) -> Future[T]:
        """Queue work of a session; its older waiting work is replaced.

        Args:
            session: whose turn it takes.
            work: is called in the inference thread.
            deadline_s: `time.monotonic` after which it must not begin.

        Returns:
            Future with what ``work`` returns or raises; ReplacedError, DeadlineError or
            DrainingError if it never began.

        """
        entry: _Waiting[T] = _Waiting(work, deadline_s)
        with self._lock:
            if self._closed:
                entry.future.set_exception(DrainingError("the server is shutting down"))
                return entry.future
            old = self._waiting.get(session)
            # The turn of the session is kept: replacing must not send it to the end.
            self._waiting[session] = entry  # type: ignore[assignment]
        self._wake.put(None)
        if old is not None:
            _give_up(
                old,
                ReplacedError("replaced by a newer request of this session before it was begun"),
            )
        return entry.future

    def forget(self, session: Hashable) -> None:
        """Drop what a session has waiting."""
        with self._lock:
            old = self._waiting.pop(session, None)
        if old is not None:
            _give_up(old, ReplacedError("the session has ended"))

    def drain(self, timeout_s: float) -> bool:
        """Take nothing new, finish what waits; False if that took longer than ``timeout_s``."""
        end = time.monotonic() + timeout_s
        with self._lock:
            self._closed = True
        self._wake.put(None)
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        with self._lock:
            left = list(self._waiting.values())
            self._waiting.clear()
        for entry in left:
            _give_up(entry, DrainingError("the server is shutting down"))
        return not any(thread.is_alive() for thread in self._threads)

    def _serve(self) -> None:
        while True:
            self._wake.get()
            with self._lock:
                session = self._next()
                if session is None:
                    if self._closed and not self._waiting:
                        self._wake.put(None)  # the other threads end too
                        return
                    continue
                entry = self._waiting.pop(session)
                self._busy.add(session)
            try:
                self._run(entry)
            finally:
                with self._lock:
                    self._busy.discard(session)
                if self._waiting or self._closed:  # perhaps of this session
                    self._wake.put(None)

    def _next(self) -> Hashable | None:
        """The session whose turn it is; None if none waits that is not busy."""
        return next((session for session in self._waiting if session not in self._busy), None)

    def _run(self, entry: _Waiting[object]) -> None:
        now = time.monotonic()
        if entry.deadline_s is not None and now >= entry.deadline_s:
            late_ms = 1e3 * (now - entry.deadline_s)
            _give_up(
                entry,
                DeadlineError(f"the deadline passed {late_ms:.0f} ms before it could be begun"),
            )
            return
        if not entry.future.set_running_or_notify_cancel():
            return
        self._observe_wait(now - entry.queued_s)
        try:
            result = entry.work()
        except BaseException as error:  # the future's owner decides
            entry.future.set_exception(error)
        else:
            entry.future.set_result(result)
