"""Sessions in turn, the newest request wins, late work is not begun."""

import threading
import time

import pytest

from pi05_ros.serving.queue import (
    DeadlineError,
    DrainingError,
    InferenceQueue,
    ReplacedError,
)


@pytest.fixture
def held():
    """A queue whose thread is busy until the event is set."""
    queue, begun, go = InferenceQueue(), threading.Event(), threading.Event()

    def hold():
        begun.set()
        return go.wait(20)

    first = queue.submit("holder", hold)
    assert begun.wait(20)
    yield queue, go, first
    go.set()
    queue.drain(20)


def test_sessions_take_turns_whatever_each_asks(held):
    queue, go, _ = held
    order = []
    work = [queue.submit(s, lambda s=s: order.append(s)) for s in ("a", "b", "c")]
    for _ in range(5):
        work.append(queue.submit("a", lambda: order.append("a")))
    assert queue.length == 3
    go.set()
    for future in (work[1], work[2], work[-1]):
        future.result(20)
    assert order == ["a", "b", "c"]
    for future in (work[0], *work[3:-1]):
        with pytest.raises(ReplacedError, match="newer request"):
            future.result(0)


def test_late_work_is_not_begun(held):
    queue, go, _ = held
    begun = []
    late = queue.submit("a", lambda: begun.append(1), time.monotonic() - 0.01)
    go.set()
    with pytest.raises(DeadlineError, match="deadline passed"):
        late.result(20)
    assert not begun


def test_errors_and_cancelled_work_leave_the_thread_alive(held):
    queue, go, _ = held
    cancelled = queue.submit("a", lambda: 1)
    assert cancelled.cancel()
    go.set()
    with pytest.raises(ZeroDivisionError):
        queue.submit("b", lambda: 1 // 0).result(20)
    assert queue.submit("c", lambda: 5).result(20) == 5


def test_draining_finishes_what_waits_and_takes_nothing_new(held):
    queue, go, first = held
    waiting = queue.submit("a", lambda: 2)
    threading.Timer(0.05, go.set).start()
    assert queue.drain(20)
    assert first.result(0)
    assert waiting.result(0) == 2
    with pytest.raises(DrainingError):
        queue.submit("b", lambda: 3).result(0)


def test_drain_gives_up_what_does_not_end(held):
    queue, _, _ = held
    waiting = queue.submit("a", lambda: 2)
    assert not queue.drain(0.05)
    with pytest.raises(DrainingError):
        waiting.result(0)
