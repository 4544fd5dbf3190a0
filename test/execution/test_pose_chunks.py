"""Chunks of end-effector poses become joints: conventions, limits, reach, refusals."""

import builtins
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pose_chunks import STEP_NS, group, message, poses_of, written
from urdf_chains import chain_urdf, robot_urdf

from pi05_ros.execution.arrival.pose_solver import PoseSolver
from pi05_ros.execution.arrival.wire import read_chunk
from pi05_ros.execution.executor import FOLLOWING, HOLDING, Executor, ExecutorSettings
from pi05_ros.execution.kinematics.pose_ik import PoseSettings
from pi05_ros.execution.kinematics.robot_model import KinematicsError
from pi05_ros.execution.limits import limits_from_urdf
from pi05_ros.execution.strategies import make_strategy
from pi05_ros.execution.timed_chunk import ChunkRefusedError
from pi05_ros.policy.interface import ActionMeaning, ActionUnit
from pi05_ros.policy.pose_groups import ROTATION_COLUMNS

pytest.importorskip("pinocchio")
SEVEN = ["revolute", "revolute", "continuous", "revolute", "revolute", "continuous", "revolute"]
POSE, DELTA, START = (
    ActionMeaning.TASK_POSE,
    ActionMeaning.TASK_DELTA,
    ActionMeaning.TASK_FROM_START,
)


class Arm:
    """A made-up robot, its limits and what reads its chunks."""

    def __init__(self, text: str, **settings) -> None:
        self.limits = limits_from_urdf(text)
        self.solver = PoseSolver(self.limits, text, PoseSettings(**settings))
        self.model = self.solver.model

    def read(self, chunk, start):
        return read_chunk(chunk, self.limits, lambda _: start, lambda: self.solver)

    def read_or_why(self, chunk, start):
        try:
            return self.read(chunk, start)
        except ChunkRefusedError as error:
            return error

    def within(self, positions):
        assert (positions >= self.limits.lower - 1e-9).all()
        assert (positions <= self.limits.upper + 1e-9).all()


def seven(seed=0, kinds=None, **settings) -> Arm:
    rng = np.random.default_rng(seed)
    return Arm(robot_urdf(chain_urdf(rng, kinds or SEVEN, shuffled=True)), **settings)


def smooth(rng, start, steps=12, size=0.04):
    """Joints of a smooth motion ``[steps, n]`` that begins at a posture."""
    rates = rng.uniform(-size, size, len(start))
    return start + np.arange(1, steps + 1)[:, None] * rates


@pytest.mark.parametrize("rotation", [r for r in ROTATION_COLUMNS if r != "none"])
def test_every_convention_leads_to_the_poses_that_were_meant(rotation):
    arm = seven(3)
    rng = np.random.default_rng(1)
    start = rng.uniform(-0.8, 0.8, 7)
    path = smooth(rng, start)
    wanted = poses_of(arm.model, path, "link6")
    for meaning, axes in ((POSE, ""), (DELTA, "base"), (DELTA, "tool"), (START, "tool")):
        table = written(arm.model.pose(start, "link6"), wanted, rotation, meaning, axes)
        chunk = arm.read(message([group(rotation=rotation, axes=axes)], [table], meaning), start)
        assert chunk.cut == ""
        assert chunk.positions.shape == (12, 7)
        for row, pose in zip(chunk.positions, wanted, strict=True):
            found = arm.model.pose(row, "link6")
            np.testing.assert_allclose(found.position, pose.position, atol=2e-5)
            np.testing.assert_allclose(found.rotation, pose.rotation, atol=1e-4)
        steps = np.diff(np.vstack([start, chunk.positions]), axis=0)
        assert np.abs(steps).max() < 0.3


def test_positions_alone_leave_the_rotation_free():
    arm = seven(4)
    start = np.full(7, 0.3)
    there = arm.model.pose(start, "link6").position + np.array([0.0, 0.02, 0.01])
    chunk = arm.read(message([group(rotation="none")], [np.tile(there, (3, 1))]), start)
    np.testing.assert_allclose(
        arm.model.pose(chunk.positions[-1], "link6").position, there, atol=1e-5
    )


def test_a_pose_seen_from_a_link_that_moves():
    arm = seven(5)
    start = np.full(7, 0.2)
    rng = np.random.default_rng(2)
    moving = np.array([name not in ("j0", "j1", "j2") for name in arm.limits.names])
    path = start + np.arange(1, 6)[:, None] * rng.uniform(-0.04, 0.04, 7) * moving
    wanted = poses_of(arm.model, path, "link6", "link2")
    hand = group(frame="link2")
    table = written(arm.model.pose(start, "link6", "link2"), wanted, "rotation_vector", POSE, "")
    held = {f"j{i}": np.full(5, 0.2) for i in range(3)}
    chunk = arm.read(message([hand], [table], joints=held), start)
    np.testing.assert_allclose(chunk.positions[:, ~moving], 0.2)
    for row, pose in zip(chunk.positions, wanted, strict=True):
        found = arm.model.pose(row, "link6", "link2")
        np.testing.assert_allclose(found.position, pose.position, atol=1e-3)
        np.testing.assert_allclose(found.rotation, pose.rotation, atol=1e-2)
    with pytest.raises(ChunkRefusedError, match="missing \\['j0', 'j1', 'j2'\\]"):
        arm.read(message([hand], [table]), start)


def test_two_arms_and_grippers_in_one_chunk():
    rng = np.random.default_rng(6)
    kinds = ["revolute"] * 7
    grip = ["revolute"]
    text = robot_urdf(
        chain_urdf(rng, kinds, prefix="l_", mimic={6: (5, 0.5, 0.0)}),
        chain_urdf(rng, [*kinds], prefix="r_", shuffled=True),
        chain_urdf(rng, grip, prefix="grip_"),
    )
    arm = Arm(text)
    names = arm.limits.names
    assert len(names) == 14  # 6 and a mimic joint, 7, a gripper
    start = rng.uniform(-0.5, 0.5, 14)
    path = smooth(rng, start)
    order = [names.index(name) for name in arm.model.joints]
    hands = [group("left", tool="l_link6"), group("right", tool="r_link6", axes="tool")]
    left = poses_of(arm.model, path[:, order], "l_link6")
    right = poses_of(arm.model, path[:, order], "r_link6")
    begin = arm.model.pose(start[order], "l_link6"), arm.model.pose(start[order], "r_link6")
    tables = [
        written(begin[0], left, "rotation_vector", DELTA, "base"),
        written(begin[1], right, "rotation_vector", DELTA, "tool"),
    ]
    hands[0].axes = "base"
    grips = {"grip_j0": path[:, names.index("grip_j0")]}
    chunk = arm.read(message(hands, tables, DELTA, grips), start)
    for row, one, other in zip(chunk.positions[:, order], left, right, strict=True):
        np.testing.assert_allclose(
            arm.model.pose(row, "l_link6").position, one.position, atol=2e-5
        )
        np.testing.assert_allclose(
            arm.model.pose(row, "r_link6").rotation, other.rotation, atol=1e-4
        )
    np.testing.assert_allclose(chunk.positions[:, names.index("grip_j0")], grips["grip_j0"], 1e-6)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    kinds=st.lists(
        st.sampled_from(["revolute", "continuous", "prismatic", "fixed"]), min_size=2, max_size=7
    ),
    scale=st.sampled_from([0.01, 0.3, 3.0]),
    meaning=st.sampled_from([POSE, DELTA, START]),
    rotation=st.sampled_from(["rotation_vector", "none", "euler_zyx_intrinsic"]),
)
def test_whatever_poses_say_the_limits_are_kept(seed, kinds, scale, meaning, rotation):
    rng = np.random.default_rng(seed)
    arm = seven(seed, ["revolute", *kinds])
    last = len(kinds)
    start = np.clip(rng.normal(size=len(arm.limits.names)), arm.limits.lower, arm.limits.upper)
    width = 3 + ROTATION_COLUMNS[rotation]
    table = np.cumsum(rng.normal(size=(8, width)) * scale, axis=0) / 8
    axes = "" if meaning == POSE else "base"
    hand = group(tool=f"link{last}", rotation=rotation, axes=axes)
    executor = Executor(
        arm.limits, make_strategy("rtc"), ExecutorSettings(period_s=0.02, max_chunk_age_s=5.0)
    )
    now = 10**9
    executor.measure(start, now)
    chunk = arm.read_or_why(message([hand], [table], meaning, start_ns=now), start)
    if isinstance(chunk, ChunkRefusedError):
        assert chunk.reason in ("unreachable", "pose", "names")
        return
    arm.within(chunk.positions)
    assert np.isfinite(chunk.positions).all()
    assert ((chunk.pace > 0) & (chunk.pace <= 1)).all()
    jumps = np.abs(np.diff(np.vstack([start, chunk.positions]), axis=0))
    assert jumps.max() < 40
    executor.offer(chunk, now)
    commands = [start, start]
    for _ in range(60):
        now += 20_000_000
        executor.measure(commands[-1], now)
        command = executor.tick(now)
        if command.positions is not None:
            commands.append(command.positions)
    rows = np.array(commands)
    arm.within(rows)
    moves = np.diff(rows, axis=0)
    assert (np.abs(moves) <= arm.limits.velocity * 0.02 * (1 + 1e-6)).all()
    assert (np.abs(np.diff(moves, axis=0)) <= arm.limits.acceleration * 4e-4 * (1 + 1e-6)).all()


def test_poses_out_of_reach_end_the_chunk_with_a_reason():
    arm = seven(7)
    start = np.full(7, 0.3)
    here = arm.model.pose(start, "link6").position
    away = here / np.linalg.norm(here)
    table = here + np.outer(np.r_[0.005, 0.01, 5.0, 5.0], away)
    hand = group(rotation="none")
    chunk = arm.read(message([hand], [table]), start)
    assert chunk.horizon == 2
    assert chunk.cut.startswith("step 2: link6 at (")
    assert "m from base is out of reach" in chunk.cut
    assert any(f"j{i}" in chunk.cut for i in range(7))
    with pytest.raises(ChunkRefusedError, match="step 0: link6 at") as caught:
        arm.read(message([hand], [table[2:]]), start)
    assert caught.value.reason == "unreachable"


def test_the_arm_holds_where_reach_ends_and_says_why():
    arm = seven(7)
    start = np.full(7, 0.3)
    here = arm.model.pose(start, "link6").position
    table = here + np.outer([0.005, 0.01, 5.0], here / np.linalg.norm(here))
    executor = Executor(arm.limits, make_strategy("rtc"), ExecutorSettings(period_s=0.02))
    now, at = 10**9, start
    executor.measure(start, now)
    executor.offer(arm.read(message([group(rotation="none")], [table]), start), now)
    modes = []
    for _ in range(40):
        now += 20_000_000
        executor.measure(at, now)
        command = executor.tick(now)
        at = command.positions
        modes.append(command.mode)
    assert modes[0] == FOLLOWING
    assert command.mode == HOLDING
    assert "the last chunk ends early: step 2: link6 at (" in command.reason
    assert executor.gate.shortened == 1
    np.testing.assert_allclose(arm.model.pose(at, "link6").position, table[1], atol=2e-3)


def test_the_posture_stays_on_its_branch():
    """Of the two elbows that reach a pose, the one at hand is taken, also for far poses."""
    rng = np.random.default_rng(8)
    compared = 0
    for seed in range(9):
        arm = seven(seed, ["revolute"] * 6)
        start = rng.uniform(-1, 1, 6)
        other = np.clip(start + rng.uniform(-0.5, 0.5, 6), arm.limits.lower, arm.limits.upper)
        pose = arm.model.pose(other, "link5")
        table = written(pose, [pose], "quaternion_wxyz", POSE, "")
        hand = group(tool="link5", rotation="quaternion_wxyz")
        chunk = arm.read_or_why(message([hand], [table]), start)
        if isinstance(chunk, ChunkRefusedError):
            assert chunk.reason == "unreachable"  # not by a straight line on this branch
            continue
        back = written(pose, [arm.model.pose(start, "link5")], "quaternion_wxyz", POSE, "")
        again = arm.read(message([hand], [back]), chunk.positions[-1])
        if chunk.pace[-1] == again.pace[-1] == 1.0:  # at a singularity branches meet
            np.testing.assert_allclose(again.positions[-1], start, atol=1e-3)
            compared += 1
    assert compared >= 5


def test_near_a_singularity_the_arm_slows_down():
    planar = (
        '<robot name="planar"><link name="base"/><link name="a"/><link name="b"/>'
        '<link name="tip"/>'
        '<joint name="j0" type="revolute"><parent link="base"/><child link="a"/>'
        '<axis xyz="0 0 1"/><limit lower="-3" upper="3" velocity="2"/></joint>'
        '<joint name="j1" type="revolute"><parent link="a"/><child link="b"/>'
        '<origin xyz="0.3 0 0"/><axis xyz="0 0 1"/><limit lower="-3" upper="3" velocity="2"/>'
        '</joint><joint name="lift" type="prismatic"><parent link="b"/><child link="tip"/>'
        '<origin xyz="0.3 0 0"/><axis xyz="0 0 1"/><limit lower="-1" upper="1" velocity="1"/>'
        "</joint></robot>"
    )
    arm = Arm(planar, slow_below=0.05)
    start = np.array([0.0, 0.6, 0.0])
    here = arm.model.pose(start, "tip").position
    out = here / np.linalg.norm(here)
    table = here + np.outer(np.linspace(0.0, 0.599 - np.linalg.norm(here), 20), out)
    chunk = arm.read(message([group(tool="tip", rotation="none")], [table]), start)
    assert chunk.horizon == 20
    assert chunk.pace[0] == 1.0
    assert chunk.pace[-1] < 0.5
    assert (np.diff(chunk.pace) <= 1e-9).all()
    lag = []
    for pace in (chunk.pace, None):
        executor = Executor(arm.limits, make_strategy("rtc"), ExecutorSettings(period_s=0.02))
        now, at = 10**9, start
        executor.measure(start, now)
        executor.offer(replace(chunk, pace=pace), now)
        for _ in range(45):
            now += 20_000_000
            executor.measure(at, now)
            at = executor.tick(now).positions
        lag.append(executor.filter.lag_s(now))
    assert lag[0] > lag[1] + 0.05


def test_deltas_and_poses_start_at_the_stamp_of_the_chunk():
    arm = seven(9)
    asked = []
    start = np.full(7, 0.1)

    def measured(ns):
        asked.append(ns)
        return start

    chunk = message([group(axes="base")], [np.zeros((2, 6))], DELTA, start_ns=5 * 10**9)
    read = read_chunk(chunk, arm.limits, measured, lambda: arm.solver)
    assert asked == [5 * 10**9]
    np.testing.assert_allclose(read.positions, [start, start], atol=1e-6)
    with pytest.raises(ChunkRefusedError, match="before joint states are known"):
        read_chunk(chunk, arm.limits, lambda _: None, lambda: arm.solver)


def _refused(changes, reason, words, **groups):
    arm = seven(1)
    hand = group(rotation="quaternion_xyzw", **groups)
    table = np.tile([0.1, 0.1, 0.5, 0, 0, 0, 1.0], (4, 1))
    chunk = message([hand], [table])
    changes(chunk, hand)
    with pytest.raises(ChunkRefusedError, match=words) as caught:
        arm.read(chunk, np.zeros(7))
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("key", "value", "reason", "words"),
    [
        ("frame_id", "world", "pose", "no link 'world'; it has base"),
        ("tool_frame_id", "hand", "pose", "no link 'hand'"),
        ("tool_frame_id", "", "pose", "tool is empty"),
        ("rotation", "quaternion", "pose", "accepted: none, rotation_vector"),
        ("rotation", "rot6d_rows", "pose", "takes 9"),
        ("axes", "base", "pose", "accepted: none for task_pose"),
        ("columns", ["hand_x"], "pose", "takes 7"),
    ],
)
def test_groups_that_say_too_little_or_wrong(key, value, reason, words):
    _refused(lambda chunk, hand: setattr(hand, key, value), reason, words)


@pytest.mark.parametrize(
    ("spoil", "reason", "words"),
    [
        (lambda c: c.data.__setitem__(9, np.nan), "not finite", "NaN"),
        (lambda c: c.data.__setitem__(10, np.inf), "not finite", "NaN"),
        (lambda c: c.data.__setitem__(13, 0.3), "rotation", "step 1: a quaternion has length 0.3"),
        (lambda c: c.data.__setitem__(13, 2.0), "rotation", "length 2; accepted: 0.9 to 1.1"),
        (lambda c: setattr(c, "pose_groups", []), "meaning", "no pose_groups"),
        (lambda c: c.pose_groups.append(c.pose_groups[0]), "pose", "is in pose groups"),
        (lambda c: setattr(c, "horizon", 5), "length", "28 values"),
        (lambda c: c.meaning.__setitem__(0, 0), "pose", "meanings absolute, task_pose"),
        (lambda c: c.meaning.__setitem__(0, 77), "meaning", "77 is not known"),
        (lambda c: c.unit.__setitem__(0, int(ActionUnit.RADIAN)), "pose", "radian; accepted: met"),
        (lambda c: c.unit.__setitem__(0, 200), "unit", "200 is not known"),
        (lambda c: c.names.__setitem__(0, "other"), "pose", "'hand_x' is none of"),
        (lambda c: c.names.__setitem__(1, "hand_x"), "names", "repeat"),
        (lambda c: setattr(c.header, "frame_id", "map"), "pose", "frame_id is 'map'"),
    ],
)
def test_chunks_that_are_not_poses(spoil, reason, words):
    _refused(lambda chunk, hand: spoil(chunk), reason, words)


def test_joints_given_twice_or_not_at_all():
    arm = seven(1)
    hand = group(rotation="none")
    table = np.tile(arm.model.pose(np.zeros(7), "link6").position, (2, 1))
    chunk = message([hand], [table], joints={"elsewhere": np.zeros(2)})
    with pytest.raises(ChunkRefusedError, match="unknown \\['elsewhere'\\]"):
        arm.read(chunk, np.zeros(7))
    every = {f"j{i}": np.zeros(2) for i in range(7)}
    with pytest.raises(ChunkRefusedError, match="no joint is left"):
        arm.read(message([hand], [table], joints=every), np.zeros(7))
    some = {"j0": np.zeros(2)}  # as a lift below an arm: it goes where it is told
    read = arm.read(message([hand], [table], joints=some), np.zeros(7))
    np.testing.assert_allclose(read.positions, 0, atol=1e-5)


def test_joints_that_nobody_commands_are_named():
    text = robot_urdf(chain_urdf(np.random.default_rng(1), SEVEN))
    limits = limits_from_urdf(text).of([f"j{i}" for i in range(6)])
    solver = PoseSolver(limits, text)
    chunk = message([group(rotation="none")], [np.zeros((2, 3))])
    with pytest.raises(ChunkRefusedError, match="j6 between base and link6 is not among"):
        read_chunk(chunk, limits, lambda _: np.zeros(6), lambda: solver)
    with pytest.raises(KinematicsError, match="none of the joints other"):
        PoseSolver(limits_from_urdf(text.replace('name="j', 'name="other')), text)


def test_chunks_of_any_size_are_answered_in_bounded_work():
    arm = seven(2)
    start = np.zeros(7)
    here = arm.model.pose(start, "link6").position
    wild = here + np.where(np.arange(400) % 2, 0.4, -0.4)[:, None] * [1.0, 0.0, 0.0]
    chunk = arm.read_or_why(message([group(rotation="none")], [wild]), start)
    if isinstance(chunk, ChunkRefusedError):
        assert chunk.reason == "unreachable"
    else:
        assert chunk.horizon <= 400
        arm.within(chunk.positions)
    with pytest.raises(ChunkRefusedError, match="up to 500"):
        arm.read(message([group(rotation="none")], [np.zeros((501, 3))]), start)


def test_without_the_library_chunks_of_poses_are_refused_with_the_command(monkeypatch):
    arm = seven(1)
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "pinocchio":
            raise ImportError("No module named 'pinocchio'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(KinematicsError, match="pip install pin"):
        PoseSolver(arm.limits, robot_urdf(chain_urdf(np.random.default_rng(1), SEVEN)))
    chunk = message([group(rotation="none")], [np.zeros((2, 3))])
    with pytest.raises(ChunkRefusedError, match="nothing here solves poses"):
        read_chunk(chunk, arm.limits, lambda _: np.zeros(7))


def test_chunks_without_groups_are_read_as_ever():
    arm = seven(1)
    names = [f"j{i}" for i in range(7)]
    data = np.linspace(0, 0.1, 14).reshape(2, 7)
    chunk = message([], [], joints={n: data[:, i] for i, n in enumerate(names)})
    del chunk.pose_groups
    read = read_chunk(chunk, arm.limits, lambda _: None)
    order = [names.index(name) for name in arm.limits.names]
    np.testing.assert_allclose(read.positions, data[:, order], atol=1e-6)
    assert read.step_ns == STEP_NS
    assert read.pace is None
