"""Outputs of twists, poses and jogging: their entries, and the motion that they send."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from urdf_chains import chain_urdf, robot_urdf

from pi05_ros.execution.kinematics.robot_model import KinematicsError
from pi05_ros.execution.kinematics.tool_motion import ToolMotion
from pi05_ros.execution.limits import limits_from_urdf
from pi05_ros.execution.outputs import OutputsError, read_outputs

JOINTS = ["a", "b"]
GOOD = "kind: twist, topic: t, joints: [a, b], frame: base, tool: hand, max_linear: 0.5"


def entry(tmp_path, text):
    path = tmp_path / "outputs.yaml"
    path.write_text(f"outputs:\n  - {{{text}}}\n")
    return read_outputs(path, JOINTS)


def test_a_twist_is_read(tmp_path):
    (output,) = entry(tmp_path, f"{GOOD}, max_angular: 1.5, gain: 2")
    assert (output.frame, output.tool) == ("base", "hand")
    assert (output.max_linear, output.max_angular, output.gain) == (0.5, 1.5, 2.0)
    (jog,) = entry(tmp_path, "kind: joint_jog, topic: t, joints: [a, b]")
    assert jog.kind == "joint_jog"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GOOD, "max_angular is None; accepted: a number above 0, in rad/s"),
        (f"{GOOD}, max_angular: 0", "max_angular is 0"),
        (f"{GOOD}, max_angular: .inf", "finite"),
        (GOOD.replace("frame: base", "frame: ''") + ", max_angular: 1", "frame is ;"),
        (GOOD.replace("tool: hand, ", "") + ", max_angular: 1", "tool is None"),
        (f"{GOOD}, max_angular: 1, scale: 2", "scale is not for twist"),
        ("kind: velocity, topic: t, joints: [a, b], tool: hand", "tool is for twist and pose"),
        ("kind: twists, topic: t, joints: [a, b]", "accepted: trajectory"),
    ],
)
def test_nothing_about_a_twist_is_assumed(tmp_path, text, words):
    with pytest.raises(OutputsError, match=words):
        entry(tmp_path, text)


def arm(seed, linear=1e3, angular=1e3):
    text = robot_urdf(chain_urdf(np.random.default_rng(seed), ["revolute"] * 6))
    limits = limits_from_urdf(text)
    motion = ToolMotion(limits, limits.names, text, "base", "link5", linear, angular)
    return limits, motion


def test_the_twist_is_the_change_of_the_pose():
    _, motion = arm(1)
    rng = np.random.default_rng(2)
    q, speed = rng.uniform(-1, 1, 6), rng.uniform(-1, 1, 6)
    step = 1e-6
    before, after = motion.pose(q - step * speed, 1.0), motion.pose(q + step * speed, 1.0)
    turn = (after.rotation - before.rotation) / (2 * step) @ before.rotation.T
    expected = [
        *(after.position - before.position) / (2 * step),
        turn[2, 1],
        turn[0, 2],
        turn[1, 0],
    ]
    np.testing.assert_allclose(motion.twist(q, speed, None, 5.0), expected, atol=1e-5)
    np.testing.assert_allclose(motion.twist(q, speed, q, 5.0), expected, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), linear=st.floats(0.01, 2), angular=st.floats(0.01, 4))
def test_speeds_are_kept_and_directions_stay(seed, linear, angular):
    _, motion = arm(seed, linear, angular)
    _, free = arm(seed)
    rng = np.random.default_rng(seed)
    q, speed, seen = rng.uniform(-2, 2, (3, 6))
    twist = motion.twist(q, speed, seen, 1.0)
    assert np.linalg.norm(twist[:3]) <= linear * (1 + 1e-9)
    assert np.linalg.norm(twist[3:]) <= angular * (1 + 1e-9)
    wanted = free.twist(q, speed, seen, 1.0)
    np.testing.assert_allclose(
        twist / np.linalg.norm(twist), wanted / np.linalg.norm(wanted), atol=1e-9
    )
    last = motion.pose(q, 0.02)
    for row in (seen, q, speed):
        pose = motion.pose(row, 0.02)
        assert np.linalg.norm(pose.position - last.position) <= linear * 0.02 * (1 + 1e-6)
        cosine = (np.trace(pose.rotation @ last.rotation.T) - 1) / 2
        assert np.arccos(np.clip(cosine, -1, 1)) <= angular * 0.02 + 1e-6
        last = pose


def test_poses_get_there_in_the_end():
    _, motion = arm(3, 0.5, 2.0)
    motion.pose(np.zeros(6), 0.02)
    goal = np.full(6, 0.3)
    for _ in range(200):
        pose = motion.pose(goal, 0.02)
    _, free = arm(3)
    np.testing.assert_allclose(pose.position, free.pose(goal, 1.0).position, atol=1e-9)


@pytest.mark.parametrize(
    ("joints", "frame", "tool", "words"),
    [
        (range(6), "base", "nope", "no link 'nope'"),
        (range(6), "nope", "link5", "no link 'nope'"),
        (range(5), "base", "link5", "j5 moves link5 from base and is not"),
        (range(6), "base", "link4", "j5 do not move link4"),
    ],
)
def test_joints_and_links_have_to_fit(joints, frame, tool, words):
    text = robot_urdf(chain_urdf(np.random.default_rng(0), ["revolute"] * 6))
    limits = limits_from_urdf(text)
    with pytest.raises(KinematicsError, match=words):
        ToolMotion(limits, [f"j{i}" for i in joints], text, frame, tool, 1.0, 1.0)
