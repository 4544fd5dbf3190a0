"""The policy that continues its own chunks, told the time by stamps."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import yaml

from pi05_ros.backends.engine import EngineHealth
from pi05_ros.policy import Observation, Policy
from pi05_ros.policy.chunking.continuation import DelayEstimator, rows_from
from pi05_ros.policy.chunking.continuing import ContinuingPolicy
from pi05_ros.policy.errors import PolicyError
from pi05_ros.policy.transforms.aloha import JOINT_SIGNS
from pi05_ros.resources import config_dir

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


@pytest.mark.parametrize(
    ("age_s", "further"),
    [(0.1, 1), (0.05, 0.5), (0.2, 2), (-1.0, 0), (float("nan"), 0), (1e9, 99), (1e300, 99)],
)
@pytest.mark.parametrize("command_delay_s", [0.0, 0.3])
def test_the_age_of_the_observation_is_part_of_the_delay(
    tmp_path, monkeypatch, age_s, further, command_delay_s
):
    """At 10 Hz an observation of age 0.1 s is one step old when the inference begins.

    So are commands that take so long to the joints.
    """
    data = yaml.safe_load((config_dir() / "robots" / "sim_arm.yaml").read_text())
    file = tmp_path / "slow.yaml"
    file.write_text(yaml.safe_dump({**data, "control_hz": 10}))
    policy = Policy.load("random:tiny", robot=file, device="cpu", denoise_steps=2)
    continuing = ContinuingPolicy(policy, "trained", command_delay_s=command_delay_s)
    late = round(10 * command_delay_s)
    seen = []
    denoise = policy.engine.denoise

    def watched(*args, **options):
        seen.append(0 if options["frozen"] is None else len(options["frozen"]))
        return denoise(*args, **options)

    policy.engine.denoise = watched
    monkeypatch.setattr(continuing._delay, "record", lambda latency_s: None)
    continuing._delay._recent.append(0.15)  # an inference takes one and a half steps
    for stamp, age in ((0, 0.0), (4, 0.0), (8, age_s)):
        continuing.infer(dataclasses.replace(observation(stamp), age_s=age), seed=1)
    margin, left = 1, policy.info.horizon - 2
    assert seen == [0, 2 + margin + late, min(2 + margin + late + int(further), left)]


@pytest.mark.parametrize("robot", ["aloha", "ur5e", "droid"])
def test_a_chunk_is_continued_in_the_model_s_own_numbers(tmp_path, robot):
    """Joint signs and gripper conventions of the robot must not reach the guidance."""
    data = yaml.safe_load((config_dir() / "robots" / f"{robot}.yaml").read_text())
    if robot == "ur5e":
        data["grippers"][0].update(open=0.085, closed=0.0)
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(data))
    policy = Policy.load("random:tiny", robot=file, device="cpu", denoise_steps=2)
    engine, seen = policy.engine, []
    denoise = engine.denoise

    def watched(*args, **options):
        seen.append(options["guidance"])
        return denoise(*args, **options)

    engine.denoise = watched
    continuing = ContinuingPolicy(policy, "identity")
    rng = np.random.default_rng(0)
    columns = len(policy.robot.action_names)
    mask = np.zeros(columns, bool)
    mask[: len(policy.robot.delta_mask)] = policy.robot.delta_mask
    states = rng.uniform(0.1, 0.9, (2, len(policy.robot.state_names)))
    images = {"base": np.zeros((56, 56, 3), np.uint8)}
    step_ns = round(policy.info.step_s * 1e9)
    chunks = [
        continuing.infer(Observation(images, state, "go", 10**9 + 3 * i * step_ns), seed=i)
        for i, state in enumerate(states)
    ]
    target = seen[1].target.numpy()[:, :columns]
    old = chunks[0].normalized[3:, :columns]
    signs = JOINT_SIGNS if robot == "aloha" else np.ones(columns)
    wanted = np.where(mask, old + (signs * (states[0] - states[1]))[:columns], old)
    assert target[: len(old)] == pytest.approx(wanted, abs=1e-5)
    assert not target[len(old) :].any()


def test_a_dynamic_rule_takes_every_picture_that_a_policy_takes(policy):
    continuing = ContinuingPolicy(policy, reuse="dynamic:slow=0:share=1:max_age=9")
    dark, bright = np.zeros((40, 56, 3), np.uint8), np.full((40, 56, 3), 255, np.uint8)

    def age(picture, stamp):
        obs = Observation({"base": picture}, np.zeros(7), "go", 10**9 + stamp * STEP)
        return continuing.infer(obs).kv_age

    ages = [age(dark, 0), age(dark.transpose(2, 0, 1), 1), age(bright / 255.0, 2)]
    assert ages == [0, 1, 0]
    for wrong in (dark[0], dark[:, :, :2], None):
        with pytest.raises(PolicyError, match="camera 'base'"):
            age(wrong, 3)


def test_a_reused_cache_keeps_the_state_it_was_made_with(policy):
    continuing = ContinuingPolicy(policy, reuse="2")
    state = np.full(7, 0.25)  # one buffer, overwritten by each joint state
    obs = observation(0)
    first = continuing.infer(dataclasses.replace(obs, state=state), seed=1)
    state[:] = 0.75
    again = continuing.infer(dataclasses.replace(obs, state=state), seed=1)
    assert again.kv_age == 1
    assert np.array_equal(first.actions, again.actions)


def test_warm_up_runs_the_steered_flow_too(policy):
    continuing = ContinuingPolicy(policy, "identity")
    seen = []
    denoise = policy.engine.denoise

    def watched(*args, **options):
        seen.append(options["guidance"])
        return denoise(*args, **options)

    policy.engine.denoise = watched
    continuing.warm_up()
    assert [guidance is None for guidance in seen] == [True, False]
    continuing.infer(observation(0), seed=1)
    assert seen[-1] is None


def test_policies_that_continue_in_other_ways_share_an_engine(policy, monkeypatch):
    """What a call does is in its arguments: nothing is left behind in policy or engine."""
    monkeypatch.setattr(DelayEstimator, "steps", lambda self, age_s: 1)  # not the clock's
    engine = policy.engine
    alone = {}
    for mode in ("plain", "identity", "trained"):
        one = ContinuingPolicy(policy, mode, reuse="2")
        alone[mode] = [one.infer(observation(n, n), seed=n).normalized for n in range(4)]
    assert policy.engine is engine
    mixed = {mode: ContinuingPolicy(policy, mode, reuse="2") for mode in alone}
    for n in range(4):
        for mode, one in mixed.items():
            found = one.infer(observation(n, n), seed=n).normalized
            assert np.array_equal(found, alone[mode][n]), (mode, n)


def test_health_is_the_engine_s(policy):
    continuing = ContinuingPolicy(policy, reuse="2")
    assert continuing.health() == EngineHealth()
    policy.engine.health = lambda: EngineHealth({"a": "1"}, "look")
    assert continuing.health().warning == "look"
    continuing.close()
    assert continuing.health() == EngineHealth()


def test_rows_from_a_place_between_rows():
    actions = np.arange(8.0).reshape(4, 2)
    assert rows_from(actions, 0).tolist() == actions.tolist()
    assert rows_from(actions, 2.5).tolist() == [[5.0, 6.0]]
    assert len(rows_from(actions, 9)) == 0
    assert rows_from(actions, -1).tolist() == actions.tolist()
