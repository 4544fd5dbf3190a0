"""Limits: reading them, and a filter that never leaves them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pi05_ros.execution.limits import (
    JointLimits,
    LimitsError,
    MotionFilter,
    limits_from_mapping,
    limits_from_urdf,
    limits_from_yaml,
)

LIMITS = JointLimits(("a", "b"), [-1, 0], [2, 1], [1.5, 4], [6, 80])
DT = 0.05


def assert_within(commands: np.ndarray, limits: JointLimits, dt: float, start: np.ndarray) -> None:
    """Positions, velocities and accelerations of a run that starts at rest."""
    path = np.vstack([start, commands])
    velocity = np.diff(path, axis=0) / dt
    change = np.diff(np.vstack([np.zeros(path.shape[1]), velocity]), axis=0) / dt
    assert (path >= limits.lower - 1e-9).all()
    assert (path <= limits.upper + 1e-9).all()
    assert (np.abs(velocity) <= limits.velocity + 1e-7).all()
    assert (np.abs(change) <= limits.acceleration + 1e-5).all()


@settings(max_examples=200, deadline=None)
@given(
    start=st.tuples(st.floats(-1, 2), st.floats(0, 1)),
    targets=st.lists(
        st.one_of(st.none(), st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))),
        min_size=1,
        max_size=60,
    ),
    dt=st.sampled_from([0.002, 0.01, 0.05, 0.2]),
)
def test_no_target_makes_the_filter_leave_its_limits(start, targets, dt):
    motion = MotionFilter(LIMITS, dt)
    motion.reset(np.array(start))
    commands = [motion.step(None if t is None else np.array(t)) for t in targets]
    assert_within(np.array(commands), LIMITS, dt, np.array(start))


def test_a_far_target_is_reached_without_overshoot_and_kept():
    motion = MotionFilter(LIMITS, DT)
    motion.reset(np.array([0.0, 0.0]))
    path = np.array([motion.step(np.array([1.7, 1.0])) for _ in range(80)])
    assert path[-1] == pytest.approx([1.7, 1.0], abs=1e-3)
    assert path[:, 0].max() <= 1.7 + 1e-9
    assert (np.diff(path, axis=0) >= -1e-9).all()


def test_a_slow_moving_target_is_followed_without_lag():
    motion = MotionFilter(LIMITS, DT)
    motion.reset(np.array([0.0, 0.5]))
    for k in range(1, 60):
        target = np.array([0.02 * k, 0.5 + 0.3 * np.sin(k * 0.1)])
        command = motion.step(target)
        if k > 10:
            assert command == pytest.approx(target, abs=1e-6)


def test_stopping_takes_the_allowed_deceleration_and_ends_at_rest():
    motion = MotionFilter(LIMITS, DT)
    motion.reset(np.array([0.0, 0.0]))
    for _ in range(6):
        motion.step(np.array([2.0, 0.0]))
    assert not motion.resting
    for _ in range(7):
        motion.step(None)
    assert motion.resting
    with pytest.raises(RuntimeError, match="start position"):
        MotionFilter(LIMITS, DT).step(None)


def test_yaml_and_selection(tmp_path):
    path = tmp_path / "limits.yaml"
    path.write_text(
        "joint_limits:\n"
        "  b: {min_position: 0, max_position: 1, max_velocity: 4, max_acceleration: 80}\n"
        "  a: {min_position: -1, max_position: 2, max_velocity: 1.5, max_acceleration: 6}\n"
    )
    limits = limits_from_yaml(path).of(("a", "b"))
    assert limits.names == ("a", "b")
    assert limits.velocity.tolist() == [1.5, 4]
    with pytest.raises(LimitsError, match="no limits for c"):
        limits.of(("c",))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "joint_limits"),
        ({"joint_limits": {"a": 3}}, "not a mapping"),
        ({"joint_limits": {"a": {"min_position": "x"}}}, "min_position"),
        ({"joint_limits": {"a": {"min_position": 10**400}}}, "min_position is 1000"),
        (
            {
                "joint_limits": {
                    "a": {
                        "min_position": 1,
                        "max_position": 0,
                        "max_velocity": 1,
                        "max_acceleration": 1,
                    }
                }
            },
            "lower limit",
        ),
        (
            {
                "joint_limits": {
                    "a": {
                        "min_position": 0,
                        "max_position": float("inf"),
                        "max_velocity": 1,
                        "max_acceleration": 1,
                    }
                }
            },
            "finite",
        ),
    ],
)
def test_bad_limits_are_named(data, message):
    with pytest.raises(LimitsError, match=message):
        limits_from_mapping(data)


@pytest.mark.parametrize("text", ["a: [", "a: 2024-13-01", "a: !!bool maybe"])
def test_files_that_are_no_limits(tmp_path, text):
    path = tmp_path / "limits.yaml"
    path.write_text(text)
    with pytest.raises(LimitsError, match=r"limits\.yaml"):
        limits_from_yaml(path)


def test_urdf():
    text = """<robot name="r">
      <joint name="fixed" type="fixed"/>
      <joint name="j" type="revolute"><limit lower="-1" upper="1" velocity="2"/></joint>
      <joint name="spin" type="continuous"><limit velocity="3"/></joint></robot>"""
    limits = limits_from_urdf(text, 0.5)
    assert limits.names == ("j", "spin")
    assert limits.acceleration.tolist() == [4, 6]
    assert limits.upper[1] == 1000
    for bad, message in (
        ("<robot>", "not XML"),
        ("<robot/>", "no movable joint"),
        ("<!DOCTYPE x><robot/>", "document type"),
        ('<robot><joint name="j" type="revolute"/></robot>', "no velocity limit"),
    ):
        with pytest.raises(LimitsError, match=message):
            limits_from_urdf(bad)
