"""Preparing the next observation while an inference runs: when, in which order, and when not."""

import threading
import time
from types import SimpleNamespace

import pytest
from node_client import BASE, ns

from pi05_ros.ros.policy_parts.policy_host import PolicyHost
from pi05_ros.ros.policy_parts.runners import REMEMBERED, WORTH_NS, WorkerRunner
from pi05_ros.runtime.parameters import PolicyParameters
from pi05_ros.runtime.statistics import Statistics
from pi05_ros.runtime.worker import Worker

PATIENCE_S = 60.0
ACTIVATE, DEACTIVATE = 3, 4


class Stages:
    """A loop whose jobs take the times they are told and note what was done with them."""

    def __init__(self, prepare_s=0.0):
        self.log = []
        self.prepare_s = prepare_s
        self.spoiled = set()
        self.current = True
        self.go = threading.Event()
        self.go.set()

    def prepare(self, job):
        time.sleep(self.prepare_s)
        self.log.append(("prepare", job))
        return None if job in self.spoiled else job

    def infer_prepared(self, job, prepared):
        self.log.append(("begin", prepared))
        time.sleep(0.002)
        assert self.go.wait(PATIENCE_S)
        self.log.append(("end", job))

    def is_current(self, job):
        return self.current


def until(condition):
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.fixture
def running():
    """Factory of a runner whose medians are known, with its loop and the jobs so far."""
    workers, loops = [], []

    def make(prepare_s, *, ahead=True):
        loop = Stages(prepare_s)
        preparer, worker = Worker(), Worker()
        loops.append(loop)
        workers.extend((preparer, worker))
        runner = WorkerRunner(loop, preparer if ahead else None, worker)
        for job in range(REMEMBERED):
            until(lambda: not (preparer.busy or worker.busy))
            runner.submit(job)
        until(lambda: not (preparer.busy or worker.busy))
        loop.log.clear()
        return SimpleNamespace(runner=runner, loop=loop, idle=lambda: not (
            preparer.busy or worker.busy))  # fmt: skip

    yield make
    for loop in loops:
        loop.go.set()
    for worker in workers:
        worker.stop(PATIENCE_S)


SLOW_S = 4 * WORTH_NS / 1e9


def test_what_takes_long_is_prepared_while_the_inference_before_it_runs(running):
    made = running(SLOW_S)
    made.loop.go.clear()
    made.runner.submit("a")
    until(lambda: ("begin", "a") in made.loop.log)
    until(lambda: not made.runner.busy)  # long before the inference ends
    made.runner.submit("b")
    assert made.runner.busy  # one at most is prepared ahead
    until(lambda: ("prepare", "b") in made.loop.log)
    assert ("end", "a") not in made.loop.log
    assert made.runner.busy
    made.loop.go.set()
    until(made.idle)
    assert [step for step in made.loop.log if step[0] != "prepare"] == [
        ("begin", "a"), ("end", "a"), ("begin", "b"), ("end", "b"),
    ]  # fmt: skip


@pytest.mark.parametrize("ahead", [True, False])
def test_what_takes_no_time_waits_for_the_end_of_the_inference(running, ahead, monkeypatch):
    monkeypatch.setattr("pi05_ros.ros.policy_parts.runners.WORTH_NS", int(PATIENCE_S * 1e9))
    made = running(SLOW_S, ahead=ahead)
    made.loop.go.clear()
    made.runner.submit("a")
    until(lambda: ("begin", "a") in made.loop.log)
    assert made.runner.free_ns is None
    assert made.runner.busy
    made.loop.go.set()
    until(made.idle)
    assert not made.runner.busy


def test_a_spoiled_or_outdated_observation_ends_after_preparing(running):
    made = running(SLOW_S)
    made.loop.spoiled.add("a")
    made.runner.submit("a")
    until(made.idle)
    made.loop.current = False
    made.runner.submit("b")
    until(made.idle)
    assert made.loop.log == [("prepare", "a"), ("prepare", "b")]
    made.loop.current = True
    made.runner.submit("c")
    until(made.idle)
    assert made.loop.log[-1] == ("end", "c")


def test_chunks_of_large_jpegs_come_in_order_and_start_over(bench, messages):
    b = bench(
        {
            "camera_transport.base": "compressed",
            "rate_hz": 50.0,
            "seed": 7,
            "max_age_s": 60.0,
            "max_skew_s": 60.0,
            "max_answer_age_s": 60.0,
        },
        behave=lambda number, actions: time.sleep(0.02),
    )
    picture = messages.jpeg(1280, 720)

    def feed():
        b.client.send(f"{BASE}/compressed", picture)
        b.feed(base=None)

    b.activate()
    for _ in range(2):
        chunks = b.chunks(12, feed=feed)
        # One of before may still have been under way.
        chunks = [chunk for chunk in chunks if chunk.policy_id == chunks[-1].policy_id]
        assert len(chunks) >= 10
        assert [chunk.chunk_id for chunk in chunks] == list(range(len(chunks)))
        assert [chunk.seed - 7 for chunk in chunks] == list(range(len(chunks)))
        stamps = [ns(chunk.observation_stamp) for chunk in chunks]
        assert stamps == sorted(set(stamps))
        for chunk in chunks:
            spent = (chunk.timings.queue_ms, chunk.timings.convert_ms, chunk.timings.inference_ms)
            assert min(spent) >= 0
            assert sum(spent) <= chunk.timings.total_ms + 0.01
        assert b.client.change_state(DEACTIVATE)
        b.client.chunks.clear()
        assert b.client.change_state(ACTIVATE)


def test_the_executor_is_woken_only_where_the_loop_has_something_to_do():
    """Each of its turns takes Python's lock from the next inference."""
    woken = []
    guard = SimpleNamespace(trigger=lambda: woken.append(True))
    node = SimpleNamespace(
        create_guard_condition=lambda callback: guard,
        destroy_guard_condition=lambda destroyed: None,
    )
    policy = SimpleNamespace(warm_up=lambda: 0.0, close=lambda: None)
    host = PolicyHost(
        node, lambda parameters: policy, threading.Event(), lambda: None, lambda: None,
        Statistics(),
    )  # fmt: skip
    host.configure(PolicyParameters())
    try:
        loop = Stages()
        runner = host.runner(loop, ahead=True)
        for wants, job in ((False, "a"), (True, "b"), (False, "c")):
            woken.clear()
            loop.wants_idle = wants
            runner.submit(job)
            until(lambda job=job: ("end", job) in loop.log)
            assert host.wait_idle(PATIENCE_S)
            if wants:
                until(lambda: woken)
        host.cleanup()  # ends the threads: nothing is triggered any more
        assert not woken
    finally:
        host.cleanup()
