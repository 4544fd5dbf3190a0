"""The policy that continues its own chunks, told the time by stamps."""

from __future__ import annotations

import numpy as np
import pytest

from pi05_ros.backends.engine import EngineHealth
from pi05_ros.policy import Observation, Policy
from pi05_ros.policy.continuing import ContinuingPolicy
from pi05_ros.policy.execution.continuation import rows_from

STEP = 50_000_000


@pytest.fixture
def policy():
    return Policy.load("random:tiny", backend="eager", device="cpu", denoise_steps=2)


def observation(stamp_steps, seed=0):
    rng = np.random.default_rng(seed)
    images = {
        role: rng.integers(0, 255, (56, 56, 3), dtype=np.uint8) for role in ("base", "wrist")
    }
    stamp = 10**9 + round(stamp_steps * STEP)
    return Observation(images=images, state=rng.uniform(-1, 1, 7), prompt="go", stamp_ns=stamp)


def test_a_reused_cache_gives_the_rows_from_now_on(policy):
    continuing = ContinuingPolicy(policy, reuse="2")
    first = continuing.infer(observation(0), seed=1)
    second = continuing.infer(observation(2.5, 1), seed=1)
    third = continuing.infer(observation(4, 1), seed=1)
    assert (first.kv_age, second.kv_age, third.kv_age) == (0, 1, 0)
    assert second.horizon == first.horizon - 3 == len(second.normalized)
    want = (first.actions[2] + first.actions[3]) / 2
    assert second.actions[0] == pytest.approx(want, abs=1e-5)
    assert third.horizon == first.horizon


def test_chunks_continue_by_stamps_and_a_pause_or_a_jump_back_starts_afresh(policy):
    plain = policy.infer(observation(40, 1), seed=2).actions
    continuing = ContinuingPolicy(policy, "identity")
    continuing.infer(observation(0), seed=1)
    bound = continuing.infer(observation(3, 1), seed=2).actions
    assert not np.allclose(bound, plain)
    afresh = continuing.infer(observation(40, 1), seed=2).actions
    assert np.array_equal(afresh, plain)
    assert np.array_equal(continuing.infer(observation(1, 1), seed=2).actions, plain)
    continuing.forget()
    assert np.array_equal(continuing.infer(observation(2, 1), seed=2).actions, plain)


def test_it_stands_in_for_a_policy(policy):
    continuing = ContinuingPolicy(policy, "trained")
    assert continuing.info is policy.info
    assert continuing.warm_up() > 0
    continuing.set_prompt("lift")
    with pytest.raises(ValueError, match="plain, vjp"):
        ContinuingPolicy(policy, "wild")
    with pytest.raises(ValueError, match="dynamic"):
        ContinuingPolicy(policy, reuse="x")
    continuing.close()


def test_a_policy_that_keeps_few_rows_is_continued_too():
    short = Policy.load("random:tiny", backend="eager", device="cpu", denoise_steps=2, horizon=6)
    for mode in ("identity", "trained"):
        continuing = ContinuingPolicy(short, mode)
        first = continuing.infer(observation(0), seed=1)
        assert continuing.infer(observation(2, 1), seed=2).actions.shape == first.actions.shape


def test_warm_up_runs_the_steered_flow_too(policy):
    continuing = ContinuingPolicy(policy, "identity")
    seen = []
    denoise = policy.engine.engine.denoise

    def watched(*args, **options):
        seen.append(options.get("guidance"))
        return denoise(*args, **options)

    policy.engine.engine.denoise = watched
    continuing.warm_up()
    assert [guidance is None for guidance in seen] == [True, False]
    continuing.infer(observation(0), seed=1)
    assert seen[-1] is None


def test_health_is_the_engine_s(policy):
    continuing = ContinuingPolicy(policy, reuse="2")
    assert continuing.health() == EngineHealth()
    policy.engine.engine.health = lambda: EngineHealth({"a": "1"}, "look")
    assert continuing.health().warning == "look"
    continuing.close()
    assert continuing.health() == EngineHealth()


def test_rows_from_a_place_between_rows():
    actions = np.arange(8.0).reshape(4, 2)
    assert rows_from(actions, 0).tolist() == actions.tolist()
    assert rows_from(actions, 2.5).tolist() == [[5.0, 6.0]]
    assert len(rows_from(actions, 9)) == 0
    assert rows_from(actions, -1).tolist() == actions.tolist()
