"""Offline replay: deterministic, and honest about broken recordings."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
import pytest
from bags import (
    START_NS,
    delay,
    drop,
    edit_bag,
    late_prompt,
    nan_joints,
    split_joints,
    swap_joints,
    write_bag,
)

from pi05_ros import resources
from pi05_ros.bags.bag import Bag, BagError
from pi05_ros.bags.cdr_messages import NS
from pi05_ros.policy import Policy, PolicyError
from pi05_ros.replay.compare import compare
from pi05_ros.replay.offline import OfflineReplay
from pi05_ros.replay.recompute import policy_for, verify
from pi05_ros.replay.run import Outcome, choose, robot_of, run_offline
from pi05_ros.runtime.parameters import ParameterError, PolicyParameters

FIRST, LAST = START_NS + 300_000_000, START_NS + 700_000_000


def replay(
    path: Path, policy: Policy, parameters: PolicyParameters, out: Path, loops: int = 1
) -> Outcome:
    with Bag(path) as bag:
        chosen = choose(bag, policy.robot, {})
    return run_offline(path, chosen, parameters, out, "auto", loops, policy)


@pytest.fixture(scope="session")
def golden(
    bag: Path,
    policy: Policy,
    parameters: PolicyParameters,
    tmp_path_factory: pytest.TempPathFactory,
) -> Outcome:
    return replay(bag, policy, parameters, tmp_path_factory.mktemp("golden"))


def test_bit_equal_from_run_to_run(
    golden: Outcome, bag: Path, parameters: PolicyParameters, tmp_path: Path
) -> None:
    fresh = Policy.load("random:tiny", threads=1)
    again = replay(bag, fresh, parameters, tmp_path)
    assert compare(again.chunks, golden.chunks).equal
    first, second = (next(run.bag.glob("*.mcap")).read_bytes() for run in (golden, again))
    assert first == second


@pytest.mark.parametrize("mode", ["identity", "trained"])
def test_continued_chunks_do_not_depend_on_how_long_they_took(
    bag: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    values = {"checkpoint": "random:tiny", "threads": 1, "denoise_steps": 1, "chunk_mode": mode}
    parameters = PolicyParameters.from_values(values)
    with Bag(bag) as opened:
        chosen = choose(opened, robot_of(parameters), {})
    quick = run_offline(bag, chosen, parameters, tmp_path / "quick", "auto", 1)
    now = time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: 100 * now())
    slow = run_offline(bag, chosen, parameters, tmp_path / "slow", "auto", 1)
    assert compare(slow.chunks, quick.chunks).equal
    with Bag(bag) as opened:
        policy = policy_for(parameters, quick.chunks)
        assert verify(opened, chosen.sources, policy, quick.chunks).equal
        reused = dataclasses.replace(quick.chunks[1], kv_age=1)
        with pytest.raises(BagError, match="1 of 2 recorded chunks reuse"):
            policy_for(parameters, [quick.chunks[0], reused])


def test_what_a_chunk_says(golden: Outcome) -> None:
    assert [chunk.chunk_id for chunk in golden.chunks] == list(range(len(golden.chunks)))
    assert [chunk.seed for chunk in golden.chunks] == list(range(len(golden.chunks)))
    chunk = golden.chunks[2]
    assert set(chunk.inputs) == {"base_camera", "wrist_camera", "joint_states"}
    assert chunk.observation_ns == min(chunk.inputs.values())
    assert chunk.prompt == "push the block"
    assert chunk.random_weights
    assert chunk.data.shape == (10, 7)
    assert chunk.steps_past == 1  # the joint state is up to 10 ms older than the last frame
    assert golden.summary.rate_kept(0.9)


def test_newest_frames_are_used(golden: Outcome) -> None:
    for chunk in golden.chunks:
        assert chunk.received_ns - chunk.inputs["base_camera"] <= NS // 30
        assert chunk.received_ns - chunk.inputs["joint_states"] <= NS // 100


def test_dropped_camera_is_skipped_and_comes_back(
    bag: Path, policy: Policy, tmp_path: Path
) -> None:
    strict = PolicyParameters.from_values({"checkpoint": "random:tiny", "max_age_s": 0.15})
    cut = edit_bag(bag, tmp_path / "cut", drop("/wrist_camera/image_raw", FIRST, LAST))
    run = replay(cut, policy, strict, tmp_path / "out")
    assert run.summary.skipped.get("wrist_camera stale", 0) >= 2
    assert any(chunk.observation_ns > LAST for chunk in run.chunks)
    assert not run.summary.rate_kept(0.9)


def test_delayed_camera_is_refused_for_its_skew(
    bag: Path, policy: Policy, parameters: PolicyParameters, tmp_path: Path
) -> None:
    late = edit_bag(bag, tmp_path / "late", delay("/base_camera/image_raw", 300_000_000))
    run = replay(late, policy, parameters, tmp_path / "out")
    assert run.summary.skipped.get("base_camera skew", 0) > 0
    assert all(
        max(chunk.inputs.values()) - min(chunk.inputs.values()) <= 250_000_000
        for chunk in run.chunks
    )


def test_joint_order_does_not_matter(
    golden: Outcome, bag: Path, policy: Policy, parameters: PolicyParameters, tmp_path: Path
) -> None:
    swapped = edit_bag(bag, tmp_path / "swapped", swap_joints)
    assert compare(replay(swapped, policy, parameters, tmp_path).chunks, golden.chunks).equal


def test_joint_states_in_parts_give_the_same_chunks(
    golden: Outcome, bag: Path, policy: Policy, parameters: PolicyParameters, tmp_path: Path
) -> None:
    parts = edit_bag(bag, tmp_path / "parts", split_joints())
    run = replay(parts, policy, parameters, tmp_path)
    assert compare(run.chunks, golden.chunks).equal
    assert not any("dropped" in note for note in run.summary.notes)


def test_the_oldest_joint_gives_the_age_and_chunks_are_recomputed(
    bag: Path, policy: Policy, parameters: PolicyParameters, tmp_path: Path
) -> None:
    parts = edit_bag(bag, tmp_path / "parts", split_joints(4_000_000, every=5))
    run = replay(parts, policy, parameters, tmp_path / "out")
    assert run.chunks
    for chunk in run.chunks:
        assert chunk.inputs["joint_states"] % 10_000_000 == 6_000_000
    with Bag(parts) as opened:
        sources = choose(opened, policy.robot, {}).sources
        assert verify(opened, sources, policy, run.chunks).equal


@pytest.fixture(scope="module")
def promptless(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    text = (resources.robots_dir() / "sim_arm.yaml").read_text()
    profile = tmp_path_factory.mktemp("robot") / "promptless.yaml"
    lines = [line for line in text.splitlines() if not line.strip().startswith("default:")]
    profile.write_text("\n".join(lines))
    policy = Policy.load("random:tiny", robot=profile, threads=1)
    assert not policy.robot.default_prompt
    return policy


def test_ticks_before_the_first_prompt_are_skipped(
    bag: Path, promptless: Policy, parameters: PolicyParameters, tmp_path: Path
) -> None:
    late = edit_bag(bag, tmp_path / "late", late_prompt(START_NS + 450_000_000))
    run = replay(late, promptless, parameters, tmp_path / "out")
    assert run.summary.skipped["no prompt"] == 4
    assert [chunk.prompt for chunk in run.chunks] == ["push the block"] * len(run.chunks)
    assert [chunk.seed for chunk in run.chunks] == list(range(4, 4 + len(run.chunks)))  # as live


def test_a_bag_without_any_prompt_is_an_error(
    bag: Path, promptless: Policy, parameters: PolicyParameters, tmp_path: Path
) -> None:
    silent = edit_bag(bag, tmp_path / "silent", drop("/prompt", 0, LAST * 10))
    with pytest.raises(PolicyError, match="no prompt"):
        replay(silent, promptless, parameters, tmp_path / "out")


def test_assumptions_and_doubts_are_shown(golden: Outcome, policy: Policy) -> None:
    summary = golden.summary
    assert summary.assumptions == policy.info.assumptions
    assert any("weights are random" in line for line in summary.lines())
    doubted = dataclasses.replace(summary, doubts=("q99 of joint1 is 90",))
    assert doubted.lines()[-1] == "doubt           q99 of joint1 is 90"


def test_a_gripper_published_on_change_does_not_stop_the_chunks(
    bag: Path, policy: Policy, parameters: PolicyParameters, tmp_path: Path
) -> None:
    once = edit_bag(bag, tmp_path / "once", split_joints(every=1000))
    strict = dataclasses.replace(parameters, max_joint_age_s=0.2)
    run = replay(once, policy, strict, tmp_path / "strict")
    assert run.summary.skipped["joint_states stale"]
    told = dataclasses.replace(strict, on_change_joints=("gripper",))
    run = replay(once, policy, told, tmp_path / "told")
    assert "joint_states stale" not in run.summary.skipped
    with Bag(once) as opened:
        sources = choose(opened, policy.robot, {}).sources
        assert verify(opened, sources, policy, run.chunks, on_change=["gripper"]).equal
    with pytest.raises(ParameterError, match="no such joint: grip; joints are joint1"):
        replay(once, policy, dataclasses.replace(told, on_change_joints=("grip",)), tmp_path)


def test_nan_is_never_used(
    bag: Path, policy: Policy, parameters: PolicyParameters, tmp_path: Path
) -> None:
    sick = edit_bag(bag, tmp_path / "sick", nan_joints(FIRST, LAST))
    run = replay(sick, policy, parameters, tmp_path / "out")
    assert all(np.isfinite(chunk.data).all() for chunk in run.chunks)
    assert all(not FIRST <= chunk.inputs["joint_states"] < LAST for chunk in run.chunks)
    assert any("joint_not_finite" in note for note in run.summary.notes)


def test_looped_bag_starts_over(
    golden: Outcome, bag: Path, policy: Policy, parameters: PolicyParameters, tmp_path: Path
) -> None:
    run = replay(bag, policy, parameters, tmp_path, loops=2)
    assert len(run.chunks) == 2 * len(golden.chunks)
    half = len(golden.chunks)
    assert [c.inputs for c in run.chunks[:half]] == [c.inputs for c in run.chunks[half:]]
    assert compare(run.chunks[:half], golden.chunks).equal
    assert any("went back 1 times" in note for note in run.summary.notes)


def test_compressed_images_and_missing_optional_camera(
    policy: Policy, parameters: PolicyParameters, tmp_path: Path
) -> None:
    path = write_bag(tmp_path / "bag", 0.4, compressed=True, cameras=("base_camera",))
    run = replay(path, policy, parameters, tmp_path / "out")
    assert run.chunks
    assert set(run.chunks[0].inputs) == {"base_camera", "joint_states"}


def test_recorded_chunks_are_recomputed_from_their_stamps(
    golden: Outcome, bag: Path, policy: Policy, tmp_path: Path
) -> None:
    with Bag(bag) as opened:
        sources = choose(opened, policy.robot, {}).sources
        assert verify(opened, sources, policy, golden.chunks).equal
        other = Policy.load("random:tiny:1", threads=1)
        assert not verify(opened, sources, other, golden.chunks, 1e-3).equal


def test_rate_of_the_parameters_is_kept(bag: Path, policy: Policy) -> None:
    parameters = PolicyParameters.from_values({"checkpoint": "random:tiny", "rate_hz": 5.0})
    with Bag(bag) as opened:
        chosen = choose(opened, policy.robot, {})
        offline = OfflineReplay(opened, chosen.sources, policy, parameters, chosen.roles)
        assert len(list(offline)) == 4


def test_chunks_that_the_node_would_drop_as_late_are_left_out(
    bag: Path, policy: Policy, tmp_path: Path
) -> None:
    late = edit_bag(bag, tmp_path / "late", delay("/wrist_camera/image_raw", 100_000_000))
    for limit_s, kept in ((0.09, False), (0.2, True)):
        values = {"checkpoint": "random:tiny", "max_answer_age_s": limit_s}
        run = replay(late, policy, PolicyParameters.from_values(values), tmp_path / "out")
        assert bool(run.chunks) == kept
        assert ("chunk late" in run.summary.skipped) != kept
