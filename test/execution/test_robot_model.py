"""Forward kinematics and Jacobians against a second implementation, on made-up robots."""

import builtins

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from urdf_chains import chain_urdf, reference_pose, robot_urdf

from pi05_ros.execution.kinematics.robot_model import KinematicsError, RobotModel

pytest.importorskip("pinocchio")
KINDS = ("revolute", "continuous", "prismatic", "fixed")


def _two_arms(seed: int) -> str:
    rng = np.random.default_rng(seed)
    kinds = ["revolute", "continuous", *["revolute"] * 4, "prismatic"]
    return robot_urdf(
        chain_urdf(rng, kinds, prefix="left_", shuffled=True),
        chain_urdf(rng, kinds, prefix="right_", shuffled=True),
    )


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=9),
    shuffled=st.booleans(),
    follower=st.booleans(),
)
def test_poses_and_jacobians_are_those_of_the_urdf(seed, kinds, shuffled, follower):
    rng = np.random.default_rng(seed)
    kinds = ["revolute", *kinds, "revolute"]
    mimic = {len(kinds) - 1: (0, -0.7, 0.1)} if follower else None
    text = robot_urdf(chain_urdf(rng, kinds, mimic=mimic, shuffled=shuffled))
    names = [f"j{i}" for i, kind in enumerate(kinds) if kind != "fixed"]
    if follower:
        names.pop()
    rng.shuffle(names)
    model = RobotModel(text, names)
    assert model.joints == tuple(names)
    link, base = f"link{len(kinds) - 1}", f"link{rng.integers(len(kinds))}"
    q = rng.uniform(-0.3, 0.3, len(names)) * rng.choice([1, 10])

    def relative(positions):
        values = dict(zip(names, positions, strict=True))
        ends = [reference_pose(text, values, name) for name in (base, link)]
        return np.linalg.inv(ends[0]) @ ends[1]

    pose, jacobian = model.pose(q, link, base), model.jacobian_of(link, base)
    expected = relative(q)
    np.testing.assert_allclose(pose.position, expected[:3, 3], atol=1e-9)
    np.testing.assert_allclose(pose.rotation, expected[:3, :3], atol=1e-9)
    step = 1e-6
    for i in range(len(q)):
        ahead, behind = (relative(q + sign * step * np.eye(len(q))[i]) for sign in (1, -1))
        change = (ahead - behind) / (2 * step)
        spin = change[:3, :3] @ expected[:3, :3].T
        numeric = [*change[:3, 3], spin[2, 1], spin[0, 2], spin[1, 0]]
        np.testing.assert_allclose(jacobian[:, i], numeric, atol=1e-6)


def test_two_arms_move_apart():
    text = _two_arms(3)
    model = RobotModel(text)
    assert len(model.joints) == 14
    model.update(np.zeros(14))
    jacobian = model.jacobian_of("left_link6")
    moving = {name for name, column in zip(model.joints, jacobian.T, strict=True) if column.any()}
    assert moving == {f"left_j{i}" for i in range(7)}
    assert model.movers("left_link6") == tuple(f"left_j{i}" for i in range(7))
    assert set(model.movers("left_link6", "right_link6")) == set(model.joints)
    assert model.movers("left_link6", "left_link3") == ("left_j4", "left_j5", "left_j6")


def test_joints_that_are_not_named_rest():
    text = _two_arms(4)
    names = [f"left_j{i}" for i in range(7)]
    model = RobotModel(text, names)
    assert set(model.others) == {f"right_j{i}" for i in range(7)}
    expected = reference_pose(text, {}, "right_link6")
    np.testing.assert_allclose(model.pose(np.ones(7), "right_link6").position, expected[:3, 3])


def test_limits_of_the_urdf():
    model = RobotModel(_two_arms(5), ["left_j6", "left_j1", "left_j0"])
    assert model.continuous == (False, True, False)
    assert (model.lower[0], model.upper[2]) == (-0.3, 2.8)
    assert model.upper[1] > 100


@pytest.mark.parametrize(
    ("text", "joints", "words"),
    [
        ("<robot", [], "not XML"),
        ("<!DOCTYPE a><robot/>", [], "document type"),
        (robot_urdf(chain_urdf(np.random.default_rng(0), ["revolute"])), ["nope"], "j0"),
        (robot_urdf(chain_urdf(np.random.default_rng(0), ["revolute"])), ["j0", "j0"], "repeat"),
        (
            robot_urdf(
                chain_urdf(np.random.default_rng(0), ["revolute"] * 2, mimic={1: (0, 1.0, 0.0)})
            ),
            ["j1"],
            "mimics 'j0'",
        ),
        (
            robot_urdf(
                chain_urdf(
                    np.random.default_rng(0),
                    ["revolute"] * 2,
                    mimic={0: (1, 1.0, 0.0), 1: (0, 1.0, 0.0)},
                )
            ),
            [],
            "follow",
        ),
        (
            robot_urdf(chain_urdf(np.random.default_rng(0), ["floating", "revolute"])),
            ["j1"],
            "6 axes",
        ),
        (
            robot_urdf(
                chain_urdf(np.random.default_rng(0), ["revolute"]),
                '<joint name="loose" type="fixed"><parent link="none"/><child link="a"/></joint>',
            ),
            [],
            "cannot be read",
        ),
    ],
)
def test_errors_say_what_is_wrong(text, joints, words):
    with pytest.raises(KinematicsError, match=words):
        RobotModel(text, joints)


def test_an_unknown_link_is_named_with_those_there_are():
    model = RobotModel(_two_arms(6))
    with pytest.raises(KinematicsError, match="left_link0"):
        model.pose(np.zeros(14), "hand")


def test_a_missing_library_is_named_with_the_command_that_installs_it(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "pinocchio":
            raise ImportError("No module named 'pinocchio'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(KinematicsError, match="pip install pin"):
        RobotModel(_two_arms(7))
