"""Prefill of one observation under the denoising of the one before: same chunks, two threads."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pi05_ros.backends import BackendError, Precision
from pi05_ros.backends.create import overlapped
from pi05_ros.backends.cuda.pipeline import Pipeline
from pi05_ros.backends.cuda.scales import EngineScales
from pi05_ros.backends.engine import Capabilities
from pi05_ros.policy import Observation, Policy, PolicyError
from pi05_ros.policy.chunking.continuation import DelayEstimator
from pi05_ros.policy.chunking.continuing import ContinuingPolicy

STEP = 50_000_000
PATIENCE_S = 30


@pytest.fixture(scope="module")
def policy():
    return Policy.load("random:tiny", backend="eager", device="cpu", denoise_steps=2)


def fresh_policy():
    return Policy.load("random:tiny", backend="eager", device="cpu", denoise_steps=2)


def observations(count=8, prompts=("go",)):
    """Every second one looks like the one before it."""
    made = []
    for i in range(count):
        rng = np.random.default_rng(i // 2)
        images = {
            role: rng.integers(0, 255, (56, 56, 3), dtype=np.uint8) for role in ("base", "wrist")
        }
        state = np.random.default_rng(100 + i).uniform(-1, 1, 7)
        prompt = prompts[i * len(prompts) // count]
        made.append(Observation(images, state, prompt, stamp_ns=10**9 + i * STEP))
    return made


class Meeting:
    """Makes a denoise last until the prefill of the next observation has ended.

    So the two halves really run at the same time, and the order of everything else is free.
    """

    def __init__(self, policy, count):
        self.prefilled = [threading.Event() for _ in range(count)]
        self.denoising = [threading.Event() for _ in range(count)]
        self.policy = policy
        self.count = count

    def run(self, observations):
        chunks = []
        handed = threading.Semaphore(0)
        queue = []

        def denoise():
            for n in range(self.count):
                assert handed.acquire(timeout=PATIENCE_S)
                self.denoising[n].set()
                if n + 1 < self.count:
                    assert self.prefilled[n + 1].wait(PATIENCE_S)
                chunks.append(self.policy.denoise(queue[n]))

        thread = threading.Thread(target=denoise)
        thread.start()
        for n, obs in enumerate(observations):
            if n:
                assert self.denoising[n - 1].wait(PATIENCE_S)
            queue.append(self.policy.prefill(obs, seed=50 + n))
            self.prefilled[n].set()
            handed.release()
        thread.join(PATIENCE_S)
        assert len(chunks) == self.count
        return chunks


def same(got, want):
    assert [c.seed for c in got] == [c.seed for c in want]
    assert [c.prompt for c in got] == [c.prompt for c in want]
    assert [c.kv_age for c in got] == [c.kv_age for c in want]
    for n, (a, b) in enumerate(zip(got, want, strict=True)):
        assert np.array_equal(a.actions, b.actions), f"chunk {n} differs"
        assert np.array_equal(a.normalized, b.normalized)


def test_both_halves_give_what_one_call_gives(policy):
    obs = observations(1)[0]
    want = policy.infer(obs, seed=3, denoise_steps=4)
    half = policy.prefill(obs, seed=3, denoise_steps=4)
    got = policy.denoise(half)
    same([got], [want])
    assert got.denoise_steps == 4
    t = got.timings
    parts = (t.preprocess_ms, t.vision_ms, t.prefill_ms, t.denoise_ms, t.postprocess_ms)
    assert all(part > 0 for part in parts)
    assert t.model_ms >= t.vision_ms + t.prefill_ms + t.denoise_ms


def test_a_new_thread_rounds_like_the_others():
    """It has run no torch yet, and others were told how many processors to use."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        policy, obs = fresh_policy(), observations(1)[0]
        want = policy.infer(obs, seed=3)
        halves = []
        first = threading.Thread(target=lambda: halves.append(policy.prefill(obs, seed=3)))
        first.start()
        first.join(PATIENCE_S)
        second = threading.Thread(target=lambda: halves.append(policy.denoise(halves[0])))
        second.start()
        second.join(PATIENCE_S)
        same(halves[1:], [want])
    finally:
        torch.set_num_threads(before)


def test_seeds_are_counted_by_either_way():
    policy = fresh_policy()
    obs = observations(1)[0]
    seeds = [policy.infer(obs).seed, policy.prefill(obs).seed, policy.infer(obs).seed]
    assert seeds == [0, 1, 2]


def test_overlapped_chunks_equal_those_one_after_the_other():
    policy = fresh_policy()
    todo = observations(prompts=("go", "stop"))
    want = [policy.infer(obs, seed=50 + n) for n, obs in enumerate(todo)]
    policy.allow_overlap()
    policy.allow_overlap()  # asking twice does no harm
    got = Meeting(policy, len(todo)).run(todo)
    same(got, want)
    assert all(chunk.timings.denoise_ms > 0 for chunk in got)
    assert policy.warm_up() > 0
    policy.close()
    with pytest.raises(PolicyError, match="closed"):
        policy.prefill(todo[0])


@pytest.mark.parametrize("mode", ["plain", "identity", "vjp", "trained"])
@pytest.mark.parametrize("reuse", ["1", "2", "dynamic"])
@pytest.mark.parametrize("vision", [None, 2.0])
def test_continued_and_reused_chunks_are_the_same_too(monkeypatch, mode, reuse, vision):
    monkeypatch.setattr(DelayEstimator, "steps", lambda self, age_s: 1)  # not the clock's
    todo = observations(prompts=("go", "stop", "go"))
    want = [
        ContinuingPolicy(fresh_policy(), mode, reuse, vision),
        ContinuingPolicy(fresh_policy(), mode, reuse, vision),
    ]
    want[1].policy.allow_overlap()
    one_by_one = [want[0].infer(obs, seed=50 + n) for n, obs in enumerate(todo)]
    got = Meeting(want[1], len(todo)).run(todo)
    same(got, one_by_one)
    if reuse != "1":
        assert any(chunk.kv_age for chunk in got)


def test_a_new_prompt_gets_a_cache_of_its_own():
    policy = ContinuingPolicy(fresh_policy(), reuse="4")
    todo = observations(6, prompts=("go", "stop"))
    ages = [policy.infer(obs, seed=1).kv_age for obs in todo]
    assert ages == [0, 1, 2, 0, 1, 2]
    fresh = fresh_policy().infer(todo[3], seed=1)
    assert np.array_equal(ContinuingPolicy(fresh_policy()).infer(todo[3], seed=1).actions,
                          fresh.actions)  # fmt: skip


def test_a_failed_prefill_leaves_no_cache_to_reuse():
    policy = ContinuingPolicy(fresh_policy(), reuse="2")
    first, second, third, fourth = observations(4)
    policy.infer(first, seed=1)
    policy.infer(second, seed=1)
    with pytest.raises(PolicyError, match="missing"):
        policy.infer(Observation({}, third.state, "go", third.stamp_ns), seed=1)
    answer = policy.infer(fourth, seed=1)
    assert answer.kv_age == 0
    assert np.array_equal(answer.actions, fresh_policy().infer(fourth, seed=1).actions)


def test_a_chunk_that_is_not_finite_is_not_continued(monkeypatch):
    policy = ContinuingPolicy(fresh_policy(), "identity")
    first, second = observations(2)
    denoise = policy.policy.engine.denoise
    monkeypatch.setattr(
        policy.policy.engine, "denoise", lambda *a, **k: denoise(*a, **k) * float("nan")
    )
    assert np.isnan(policy.infer(first, seed=1).actions).all()
    monkeypatch.undo()
    assert np.isfinite(policy.infer(second, seed=1).actions).all()


def test_what_was_begun_before_a_reset_is_not_continued_after_it():
    policy = ContinuingPolicy(fresh_policy(), "identity")
    policy.policy.allow_overlap()
    first, second = observations(2)
    half = policy.prefill(first, seed=1)
    policy.forget()
    new = policy.prefill(second, seed=2)
    policy.denoise(half)
    assert np.array_equal(
        policy.denoise(new).actions, fresh_policy().infer(second, seed=2).actions
    )


def test_a_backend_that_shares_memory_between_stages_is_refused(policy):
    with pytest.raises(BackendError, match=r"'tensorrt' cannot overlap .*cuda, eager, onnx"):
        overlapped(SimpleNamespace(backend="tensorrt", capabilities=Capabilities()))
    assert overlapped(policy.engine) is policy.engine


class FakeCuda:
    """The slots of the cuda engine without a device: refuses a cache that was overwritten."""

    backend = "cuda"
    reason = "asked for"
    precision = Precision()
    device = torch.device("cpu")
    horizon = 10
    capabilities = Capabilities(("identity",), frozen=True)

    def __init__(self, slots=2):
        self.buffers = SimpleNamespace(slots=[None] * slots)
        self.serial = [0] * slots
        self.fail = False
        self.scales = EngineScales(None, None)
        self.scales.first_runs = 3

    def prefill(self, images, tokens, *, camera_keys=None, slot=0):
        self.serial[slot] += 1
        if self.fail:
            raise BackendError("prompt too long")
        self.scales.first_runs = max(0, self.scales.first_runs - 1)
        return SimpleNamespace(slot=slot, serial=self.serial[slot], images=images)

    def denoise(self, cache, noise, *, steps, guidance=None, frozen=None):
        if cache.serial != self.serial[cache.slot]:
            raise BackendError("overwritten")
        return cache.images + noise


def test_pipeline_keeps_the_last_two_caches():
    engine = FakeCuda()
    pipeline = Pipeline(engine)
    assert overlapped(pipeline) is pipeline
    caches = [pipeline.prefill(n, None) for n in (1, 2)]
    assert [c.slot for c in caches] == [0, 1]
    assert [pipeline.denoise(c, 10, steps=1) for c in caches] == [11, 12]
    third = pipeline.prefill(3, None)
    assert third.slot == 0
    assert pipeline.denoise(caches[1], 10, frozen=None) == 12  # a reused one is still there
    with pytest.raises(BackendError, match="overwritten"):
        pipeline.denoise(caches[0], 10)
    assert pipeline.sample(4, None, 10) == 14
    assert pipeline.submit(5, None, 10).result() == 15


def test_a_failed_prefill_does_not_take_the_turn():
    engine = FakeCuda()
    pipeline = Pipeline(engine)
    first = pipeline.prefill(1, None)
    engine.fail = True
    with pytest.raises(BackendError, match="too long"):
        pipeline.prefill(2, None)
    engine.fail = False
    assert pipeline.prefill(3, None).slot == 1
    assert pipeline.denoise(first, 10) == 11


def test_warm_up_fills_both_slots_and_counts_once():
    engine = FakeCuda()
    pipeline = Pipeline(engine)
    slots = []
    pipeline.warm_up(lambda: slots.append(pipeline.prefill(0, None).slot))
    assert slots == [0, 1]
    assert engine.scales.first_runs == 2
    with pytest.raises(BackendError, match="two KV slots"):
        Pipeline(FakeCuda(slots=1))
