"""When the KV cache is kept, and what chunk it leads to."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pi05_ros.backends import BackendError
from pi05_ros.backends.engine import Capabilities
from pi05_ros.policy import Observation, Policy
from pi05_ros.policy.chunking.chunk_generator import ChunkGenerator, require_mode
from pi05_ros.policy.chunking.kv_reuse import (
    UNKNOWN_MOTION,
    EveryN,
    OnChange,
    RemainingMotion,
    change,
    make_rule,
    thumbnail,
)
from pi05_ros.policy.chunking.vision_cache import VisionCache

GRAY = np.full((96, 128, 3), 100, np.uint8)


def with_patch(value):
    return {"base": np.full_like(GRAY, value), "wrist": GRAY}


def test_every_n():
    rule = EveryN(3)
    assert [rule.fresh({}) for _ in range(7)] == [True, False, False] * 2 + [True]
    rule.reset()
    assert rule.fresh({})


def test_change_is_seen_followed_to_its_end_and_age_is_limited():
    rule = OnChange(high=10, low=3, max_age=5)
    assert rule.fresh(with_patch(100))
    assert not rule.fresh(with_patch(105))
    assert rule.fresh(with_patch(130))
    assert rule.fresh(with_patch(136))  # still moving, though below high
    assert not rule.fresh(with_patch(137))
    rule.reset()
    answers = [rule.fresh(with_patch(100)) for _ in range(8)]
    assert answers == [True, *[False] * 5, True, False]


def test_slow_drift_does_not_go_unseen():
    rule = OnChange(high=10, low=3, max_age=1000)
    answers = [rule.fresh(with_patch(100 + k)) for k in range(40)]
    assert sum(answers) >= 3


def test_cameras_that_come_go_or_resize_count_as_change():
    blocks = thumbnail(GRAY)
    assert blocks.shape == (32, 32)
    assert thumbnail(np.zeros((5, 7, 3), np.uint8)).shape == (5, 7)
    assert change({}, {"a": blocks}) == float("inf")
    assert change({"a": blocks}, {"a": blocks[:4]}) == float("inf")
    assert change({"a": blocks}, {"a": blocks}) == 0


def test_rules_by_name():
    assert isinstance(make_rule("dynamic"), OnChange)
    assert make_rule("2").n == 2
    for bad in ("0", "often", "-1", "", "²", "٣", "1" * 5000):
        with pytest.raises(ValueError, match="dynamic"):
            make_rule(bad)


@pytest.fixture(scope="module")
def policy():
    return Policy.load("random:tiny", backend="eager", device="cpu")


def observation(seed):
    rng = np.random.default_rng(seed)
    images = {
        role: rng.integers(0, 255, (56, 56, 3), dtype=np.uint8) for role in ("base", "wrist")
    }
    return Observation(images=images, state=rng.uniform(-1, 1, 7), prompt="go")


def test_a_reused_cache_gives_the_chunk_of_its_own_observation(policy):
    maker = ChunkGenerator(policy, reuse=EveryN(2))
    first = maker.make(observation(0), step=0, seed=1)
    second = maker.make(observation(1), step=2, seed=1)
    third = maker.make(observation(1), step=4, seed=1)
    assert (second.anchor, second.chunk.kv_age) == (0, 1)
    assert np.array_equal(first.chunk.actions, second.chunk.actions)
    assert (third.anchor, third.chunk.kv_age) == (4, 0)
    assert not np.allclose(first.chunk.actions, third.chunk.actions)
    assert maker.fresh_caches == 2


def test_a_cache_older_than_half_a_chunk_is_not_used(policy):
    maker = ChunkGenerator(policy, reuse=EveryN(100))
    maker.make(observation(0), step=0)
    assert maker.make(observation(1), step=policy.info.horizon // 2 + 1).chunk.kv_age == 0


@pytest.mark.parametrize(("mode", "tolerance"), [("trained", 1e-4), ("identity", 0.5)])
def test_the_overlap_continues_the_previous_chunk(policy, mode, tolerance):
    plain = ChunkGenerator(policy)
    old = plain.make(observation(0), step=0, seed=1).chunk
    free = plain.make(observation(1), step=3, seed=2).chunk
    maker = ChunkGenerator(policy, mode)
    maker.make(observation(0), step=0, seed=1)
    bound = maker.make(observation(1), step=3, delay=2, seed=2).chunk
    jump = np.abs(bound.actions[:2] - old.actions[3:5]).max()
    assert jump <= tolerance * np.abs(free.actions[:2] - old.actions[3:5]).max()
    maker.reset()
    assert np.array_equal(maker.make(observation(1), step=3, seed=2).chunk.actions, free.actions)


def test_modes_are_checked(policy):
    with pytest.raises(ValueError, match="plain, vjp, vjp-scaled, identity, trained"):
        ChunkGenerator(policy, "guess")


def engine_with(*guidance, frozen=False):
    return SimpleNamespace(backend="deaf", capabilities=Capabilities(guidance, frozen))


def test_a_mode_that_the_engine_lacks_is_refused_with_its_alternatives():
    with pytest.raises(
        BackendError, match="'vjp' cannot run on backend 'deaf': it has plain, ide"
    ):
        require_mode(engine_with("identity", frozen=True), "vjp")
    with pytest.raises(BackendError, match="plain only; backend 'eager' has all modes"):
        require_mode(engine_with(), "identity")
    with pytest.raises(BackendError, match="needs backend eager or cuda, not 'deaf'"):
        VisionCache(engine_with(), 1.0)
    require_mode(engine_with(), "plain")


@pytest.mark.parametrize("mode", ["plain", "identity", "trained"])
def test_times_of_a_chunk_are_its_own(policy, mode):
    maker = ChunkGenerator(policy, mode, reuse=EveryN(2))
    first = maker.make(observation(0), step=0).chunk.timings
    second = maker.make(observation(1), step=2, delay=1).chunk.timings
    assert first.vision_ms > 0
    assert first.prefill_ms > 0
    assert (second.vision_ms, second.prefill_ms) == (0, 0)
    for times in (first, second):
        assert 0 < times.denoise_ms <= times.model_ms


def test_the_vision_cache_measures_float_pictures_in_levels(policy):
    cache = VisionCache(policy.engine, 2.0)
    pixels = torch.zeros(2, 3, 56, 56)
    keys = cache.keys(pixels)
    assert cache.keys(pixels + 0.01) == keys
    assert (cache.computed, cache.reused) == (2, 2)
    assert not set(cache.keys(pixels + 0.1)) & set(keys)
    assert cache.computed == 4


def test_two_vision_caches_of_one_engine_do_not_meet(policy):
    tokens = torch.arange(3, 9)
    first, second = (VisionCache(policy.engine, 2.0) for _ in range(2))
    engine, black = policy.engine, torch.zeros(1, 3, 56, 56)
    engine.prefill(black, tokens, camera_keys=first.keys(black))
    pixels = torch.rand(1, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    noise = torch.zeros(policy.info.horizon, 32)
    cache = engine.prefill(pixels, tokens, camera_keys=second.keys(pixels))
    kept = engine.denoise(cache, noise, steps=2)
    assert torch.equal(kept, engine.denoise(engine.prefill(pixels, tokens), noise, steps=2))


def test_vision_cache_runs_the_tower_only_for_cameras_that_changed(policy):
    plain = ChunkGenerator(policy)
    obs = observation(0)
    want = plain.make(obs, step=0, seed=1).chunk.actions
    maker = ChunkGenerator(policy, vision_change=2.0)
    cache = maker.vision
    assert maker.make(obs, step=0, seed=1).chunk.actions == pytest.approx(want, abs=1e-5)
    images = {"base": obs.images["base"], "wrist": 255 - obs.images["wrist"]}
    moved = Observation(images=images, state=obs.state, prompt="go")
    got = maker.make(moved, step=2, seed=1).chunk.actions
    assert (cache.computed, cache.reused) == (3, 1)
    maker.reset()
    maker.make(moved, step=0)
    assert cache.computed == 5
    assert got == pytest.approx(
        ChunkGenerator(policy).make(moved, 2, seed=1).chunk.actions, abs=1e-5
    )
    with pytest.raises(ValueError, match="0 or more"):
        ChunkGenerator(policy, vision_change=-1.0)


@pytest.mark.parametrize("n", range(1, 25))
def test_half_a_share_is_never_more_than_every_second(n):
    rng = np.random.default_rng(n)
    for _ in range(20):
        rule, every = make_rule("dynamic"), EveryN(2)
        moves = [
            RemainingMotion(motion)
            for motion in rng.choice([0.0, 1.0], n, p=rng.dirichlet([1, 1]))
        ]
        pictures = [with_patch(int(value)) for value in rng.integers(0, 255, n)]
        asked = [rule.fresh(p, m) for p, m in zip(pictures, moves, strict=True)]
        assert sum(asked) <= sum(every.fresh(p) for p in pictures)


def test_what_was_saved_is_spent_where_the_arm_slows_down():
    rule = OnChange(high=50, low=25, max_age=9, slow=0.3, share=0.5, save=2.0)
    motions = [1.0, 1.0, 1.0, 1.0, 1.0, 0.1, 0.1, 0.1, 0.1, 1.0]
    answers = [rule.fresh(with_patch(100), RemainingMotion(motion)) for motion in motions]
    assert answers == [True, *[False] * 4, True, True, True, False, False]
    assert rule.fresh(with_patch(100), RemainingMotion(1.0, old=True))  # whatever has been saved


def test_numbers_of_a_dynamic_rule_can_be_given():
    rule = make_rule("dynamic:slow=0.1:share=1:max_age=5")
    assert (rule.slow, rule.share, rule.max_age) == (0.1, 1.0, 5)
    assert rule.high == make_rule("dynamic").high
    for bad in ("dynamic:speed=1", "dynamic:slow=x", "dynamic:share=0", "dynamic:save=0.5"):
        with pytest.raises(ValueError, match=bad.split(":")[1].split("=")[0]):
            make_rule(bad)


def test_the_rule_hears_what_the_last_chunk_plans(policy):
    heard = []

    class Listener(EveryN):
        def fresh(self, images, plan=UNKNOWN_MOTION):
            heard.append(plan)
            return super().fresh(images, plan)

    maker = ChunkGenerator(policy, reuse=Listener(1))
    chunk = maker.make(observation(0), step=0, seed=1).chunk
    maker.make(observation(1), step=3, seed=2)
    rows = chunk.normalized[3 : 3 + policy.info.horizon // 4 + 1, :6]
    assert heard[0] == RemainingMotion()
    assert heard[1].motion == pytest.approx(np.abs(rows[-1] - rows[0]).max())
    maker.reset()
    maker.make(observation(1), step=0, seed=2)
    assert heard[2] == RemainingMotion()
