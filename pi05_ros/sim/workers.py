"""Jobs over several processes, none of which outlives the one that started them."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")
AHEAD = 4
"""Jobs per process that are handed out at a time: enough to keep it busy."""


def as_done(
    work: Callable[[T], R],
    jobs: Iterable[T],
    workers: int,
    setup: Callable[..., None] | None = None,
    arguments: tuple[Any, ...] = (),
) -> Iterator[R]:
    """Results of ``work``, in the order in which they come.

    Args:
        work: called in the processes; an exception ends everything and is raised here.
        jobs: its arguments.
        workers: processes.
        setup: called with ``arguments`` once in each of them; it must not raise.
        arguments: see ``setup``.

    Raises:
        ChildProcessError: a process died. (multiprocessing.Pool would wait for it for ever.)

    """
    context = multiprocessing.get_context("spawn")
    todo, running = iter(jobs), set[Future[R]]()
    pool = ProcessPoolExecutor(workers, context, _prepare, (setup, arguments))
    with contextlib.ExitStack() as stack:
        stack.callback(pool.shutdown, cancel_futures=True)
        try:
            while True:
                for job in itertools.islice(todo, AHEAD * workers - len(running)):
                    running.add(pool.submit(work, job))
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "a worker process died, perhaps for lack of memory; try fewer --workers"
            ) from error


def _prepare(setup: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if setup is not None:
        setup(*arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
