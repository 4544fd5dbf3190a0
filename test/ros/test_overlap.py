"""The node with overlap: prefill of the newest observation under the denoising of the last."""

import itertools
import threading
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from std_msgs.msg import String
from std_srvs.srv import Trigger

from pi05_ros.policy.interface import Observation
from pi05_ros.runtime.policy_loading import load_policy

CONFIGURE, CLEANUP, ACTIVATE, DEACTIVATE = 1, 2, 3, 4
OVERLAP = {"overlap": True, "rate_hz": 50.0, "camera_wait_s": 0.0}


class Halves:
    """Notes which halves of inferences run, and holds them up while told to."""

    def __init__(self, prefill_s=0.02, denoise_s=0.04):
        self.lock = threading.Lock()
        self.sleep_s = {"prefill": prefill_s, "denoise": denoise_s}
        self.hold = {"prefill": threading.Event(), "denoise": threading.Event()}
        self.inside = Counter()
        self.most = Counter()
        self.log = []
        for event in self.hold.values():
            event.set()

    def early(self, number):
        self._half("prefill", number)

    def behave(self, number, actions):
        self._half("denoise", number)

    def _half(self, name, number):
        with self.lock:
            self.inside[name] += 1
            self.most[name] = max(self.most[name], self.inside[name])
            if self.inside["prefill"] and self.inside["denoise"]:
                self.most["both"] += 1
            self.log.append((name, number))
        time.sleep(self.sleep_s[name])
        assert self.hold[name].wait(60)
        with self.lock:
            self.inside[name] -= 1


@pytest.fixture
def overlapping(bench):
    """Factory of an overlapping node and the book of its halves."""
    books = []

    def make(parameters=None, **times):
        book = Halves(**times)
        books.append(book)
        b = bench({**OVERLAP, **(parameters or {})}, early=book.early, behave=book.behave)
        return b, book

    yield make
    for book in books:
        for event in book.hold.values():
            event.set()


def test_halves_overlap_one_of_each_in_order_and_with_the_newest_observation(overlapping):
    b, book = overlapping()
    b.activate()
    chunks = b.chunks(12)
    assert book.most["both"] > 2
    assert (book.most["prefill"], book.most["denoise"]) == (1, 1)
    assert [chunk.chunk_id for chunk in chunks] == list(range(12))
    stamps = [chunk.observation_stamp.sec * 10**9 + chunk.observation_stamp.nanosec
              for chunk in chunks]  # fmt: skip
    assert stamps == sorted(stamps)
    assert len(set(stamps)) == 12
    assert [chunk.seed for chunk in chunks] == list(range(12))
    # Not a backlog: one observation at most waits between the two halves.
    published = [chunk.published_stamp.sec * 10**9 + chunk.published_stamp.nanosec
                 for chunk in chunks]  # fmt: skip
    assert all(stamp >= at for stamp, at in zip(stamps[3:], published, strict=False))
    assert b.client.until(lambda: int(b.client.value("inference", "overlapped") or 0), feed=b.feed)


def test_without_overlap_nothing_runs_at_the_same_time(bench):
    book = Halves()
    b = bench({"rate_hz": 50.0}, early=book.early, behave=book.behave)
    b.activate()
    b.chunks(5)
    assert book.most["both"] == 0
    assert b.client.value("inference", "overlapped") is None


def test_deactivate_lets_both_halves_end_and_publishes_neither(overlapping):
    b, book = overlapping()
    b.activate()
    b.chunks(2)
    book.hold["denoise"].clear()
    assert b.client.until(lambda: book.inside["denoise"] and len(book.log) > 4, feed=b.feed)
    b.client.until(lambda: False, 0.15, b.feed)  # the next prefill is done and waits
    seen = len(b.client.chunks)
    threading.Timer(0.3, book.hold["denoise"].set).start()
    assert b.client.change_state(DEACTIVATE)
    assert not any(book.inside.values())
    b.client.until(lambda: False, 0.3)
    assert len(b.client.chunks) == seen
    denoised = [number for name, number in book.log if name == "denoise"]
    prefilled = [number for name, number in book.log if name == "prefill"]
    assert denoised[-1] == prefilled[-1] - 1  # the one that waited was given up
    assert b.client.change_state(ACTIVATE)
    assert b.chunks(2)[0].chunk_id == 0
    assert b.client.change_state(DEACTIVATE)
    assert b.client.change_state(CLEANUP)
    assert b.policy.closed


@pytest.mark.parametrize("half", ["prefill", "denoise"])
def test_cleanup_is_refused_while_a_half_hangs_and_works_later(overlapping, half):
    b, book = overlapping({"stop_timeout_s": 0.1})
    b.activate()
    b.chunks(1)
    book.hold[half].clear()
    assert b.client.until(lambda: book.inside[half], feed=b.feed)
    assert b.client.change_state(DEACTIVATE)
    assert not b.client.change_state(CLEANUP)
    assert not b.policy.closed
    book.hold[half].set()
    assert b.client.until(lambda: not book.inside["prefill"] and not book.inside["denoise"])
    assert b.client.change_state(CLEANUP)
    assert b.policy.closed
    b.activate()
    b.chunks(2)


def test_reset_drops_both_halves_and_starts_the_seeds_over(overlapping):
    b, book = overlapping({"seed": 7})
    b.activate()
    b.chunks(3)
    book.hold["denoise"].clear()
    assert b.client.until(lambda: book.inside["denoise"], feed=b.feed)
    b.client.until(lambda: False, 0.15, b.feed)
    seen = len(b.client.chunks)
    assert b.client.call(Trigger, "reset", Trigger.Request()).success
    book.hold["denoise"].set()
    assert b.client.until(lambda: len(b.client.chunks) > seen, feed=b.feed)
    assert b.client.chunks[seen].seed == 7
    assert b.client.until(lambda: b.client.value("inference", "dropped_chunks") == "2", 60, b.feed)


def test_a_prompt_holds_from_the_next_prefill_on(overlapping):
    b, _ = overlapping()
    b.activate()
    b.chunks(2)
    b.client.prompt.publish(String(data="fold the towel"))
    assert b.client.until(lambda: b.client.chunks[-1].prompt == "fold the towel", feed=b.feed)
    prompts = [obs.prompt or "default" for obs in b.policy.observations]
    for chunk in b.client.chunks:
        assert chunk.prompt == prompts[chunk.seed]  # seed n belongs to observation n


def test_errors_in_either_half_and_bad_chunks_are_counted(overlapping):
    b, _ = overlapping(prefill_s=0.0, denoise_s=0.0)
    fail = {"prefill": 0, "denoise": 0, "nan": 0}

    def early(number):
        if fail["prefill"]:
            fail["prefill"] -= 1
            raise RuntimeError("no context")

    def behave(number, actions):
        if fail["denoise"]:
            fail["denoise"] -= 1
            raise RuntimeError("no flow")
        if fail["nan"]:
            fail["nan"] -= 1
            actions[0, 0] = np.nan

    b.activate()
    b.policy.behave_early, b.policy.behave = early, behave
    for kind in ("prefill", "denoise", "nan"):
        fail[kind] = 2
        assert b.client.until(lambda kind=kind: not fail[kind], feed=b.feed)
        b.chunks(2)
    assert b.client.until(lambda: b.client.value("inference", "nan_chunks") == "2", feed=b.feed)
    assert b.client.value("inference", "errors") == "4"
    assert b.client.latest("inference").level < DiagnosticStatus.ERROR


def test_a_backend_that_cannot_overlap_fails_configure_with_one_line(bench, monkeypatch):
    from pi05_ros.backends.eager import EagerEngine
    from pi05_ros.backends.engine import Capabilities

    able = EagerEngine.capabilities.fget
    unable = property(lambda engine: replace(able(engine), overlap=False))
    monkeypatch.setattr(EagerEngine, "capabilities", unable)
    monkeypatch.setattr(EagerEngine, "backend", "tensorrt")
    monkeypatch.setattr(EagerEngine, "capabilities", Capabilities())
    b = bench({"checkpoint": "random:tiny", "overlap": True}, factory=load_policy)
    assert not b.client.change_state(CONFIGURE)
    assert b.client.until(lambda: b.client.statuses[-1].message)
    message = b.client.statuses[-1].message
    assert "'tensorrt' cannot overlap" in message
    assert "cuda, eager, onnx" in message
    assert "\n" not in message


def test_overlapping_chunks_are_those_of_the_policy_alone(bench, messages):
    """The real policy: what the node publishes is what `Policy.infer` gives for the same."""
    b = bench({"checkpoint": "random:tiny", "seed": 3, "denoise_steps": 2, "threads": 1, **OVERLAP,
               "max_answer_age_s": 5.0, "max_age_s": 5.0}, factory=load_policy)  # fmt: skip
    assert b.client.change_state(CONFIGURE)
    policy = b.node._host.policy
    names = policy.robot.state_names
    seen = {}
    prefill = policy.prefill

    def record(obs, **kwargs):
        seen[kwargs["seed"]] = obs
        return prefill(obs, **kwargs)

    policy.prefill = record
    assert b.client.change_state(ACTIVATE)
    rng = np.random.default_rng(0)

    def feed():
        b.feed(base=messages.picture(value=int(rng.integers(256))),
               wrist=messages.picture(value=int(rng.integers(256))),
               joints=messages.joints(names, rng.uniform(-0.01, 0.01, len(names))))  # fmt: skip

    chunks = b.chunks(8, 30, feed)
    assert b.client.change_state(DEACTIVATE)
    for chunk in chunks:
        obs = seen[chunk.seed]
        assert isinstance(obs, Observation)
        stamp = chunk.observation_stamp
        assert obs.stamp_ns == stamp.sec * 10**9 + stamp.nanosec
        want = policy.infer(obs, seed=chunk.seed, denoise_steps=2).actions
        assert np.array_equal(np.reshape(chunk.data, want.shape), want)
        t = chunk.timings
        assert min(t.vision_ms, t.prefill_ms, t.denoise_ms) > 0
        assert t.model_ms <= t.inference_ms <= t.total_ms


def test_kv_age_and_stamps_with_reused_caches(bench, messages):
    b = bench(
        {
            "checkpoint": "random:tiny",
            "denoise_steps": 1,
            "threads": 1,
            "kv_reuse": "2",
            "max_answer_age_s": 5.0,
            "max_age_s": 5.0,
            **OVERLAP,
        },
        factory=load_policy,
    )
    assert b.client.change_state(CONFIGURE)
    names = b.node._host.policy.robot.state_names
    assert b.client.change_state(ACTIVATE)
    chunks = b.chunks(9, 30, lambda: b.feed(joints=messages.joints(names)))
    ages = [chunk.kv_age for chunk in chunks]
    assert ages[0] == 0
    assert set(ages) == {0, 1}
    for before, after in itertools.pairwise(chunks):
        stamps = [c.header.stamp.sec * 10**9 + c.header.stamp.nanosec for c in (before, after)]
        assert stamps[0] < stamps[1]
        if after.kv_age:  # its first row belongs to its own stamp, so earlier rows are gone
            assert before.kv_age == 0
            assert after.horizon < before.horizon
            assert after.timings.prefill_ms == 0
        assert len(after.data) == after.horizon * len(names)
