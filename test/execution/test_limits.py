"""Limits: reading them, and a filter that never leaves them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pi05_ros.execution.limit_sources.urdf_limits import read_urdf
from pi05_ros.execution.limits import (
    ENDLESS_RAD,
    JointLimits,
    LimitsError,
    MotionFilter,
    limits_from_mapping,
    limits_from_urdf,
    limits_from_yaml,
    merge_limits,
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


MOBILE = """<robot name="mobile">
  <joint name="arm1" type="revolute"><limit lower="-2" upper="2" velocity="1.5"/></joint>
  <joint name="slide" type="prismatic"><limit lower="0" upper="0.04" velocity="0.1"/></joint>
  <joint name="left_wheel" type="continuous"/>
  <joint name="caster" type="revolute"><limit lower="0" upper="0" velocity="0"/></joint>
  <joint name="odd" type="revolute"><limit lower="-1,5" upper="2" velocity="1"/></joint>
  <joint name="finger" type="prismatic"><mimic joint="slide"/></joint>
  <ros2_control><joint name="arm1"><command_interface name="position"/></joint></ros2_control>
</robot>"""


def test_only_the_joints_asked_for_are_checked():
    limits = limits_from_urdf(MOBILE, joints=("slide", "arm1"))
    assert limits.names == ("slide", "arm1")
    assert limits.units == ("metre", "radian")
    for joints, message in (
        ((), "locked|left_wheel|decimal|accepted"),
        (("left_wheel",), "left_wheel: max_velocity"),
        (("caster",), "'caster' of the URDF: lower limit 0 >= upper 0"),
        (("odd",), "'odd' of the URDF: lower is '-1,5'; accepted: a finite number"),
        (("finger",), "mimics 'slide'"),
        (("none",), "no limits for none"),
    ):
        with pytest.raises(LimitsError, match=message):
            limits_from_urdf(MOBILE, joints=joints)


def test_without_joints_mimic_joints_are_left_out_and_those_without_limits_named():
    text = MOBILE.replace('<joint name="caster"', '<joint name="caster" x=""').replace(
        'type="revolute"><limit lower="0" upper="0" velocity="0"/>', 'type="fixed">'
    )
    text = text.replace('lower="-1,5"', 'lower="-1.5"')
    with pytest.raises(LimitsError, match=r"left_wheel: max_velocity.*arm1, slide, odd"):
        limits_from_urdf(text)
    wheels = limits_from_mapping({"joint_limits": {"left_wheel": {"max_velocity": 3}}})
    merged = merge_limits([("mine", wheels)], read_urdf(text), ("arm1", "left_wheel"))
    assert merged.limits.continuous == (False, True)
    assert merged.limits.velocity.tolist() == [1.5, 3]
    assert merged.sources["left_wheel"]["max_velocity"] == "mine"


ASSISTANT = """
default_velocity_scaling_factor: 0.1
default_acceleration_scaling_factor: 0.1
joint_limits:
  arm1:
    has_velocity_limits: true
    max_velocity: 1.25
    has_acceleration_limits: false
    max_acceleration: 0
  slide:
    has_velocity_limits: true
    max_velocity: 5e-2
    has_acceleration_limits: true
    max_acceleration: 0.5
  finger: {has_velocity_limits: false, max_velocity: 0}
"""


def test_files_of_the_moveit_assistant_are_completed_by_the_urdf(tmp_path):
    path = tmp_path / "joint_limits.yaml"
    path.write_text(ASSISTANT)
    own = limits_from_mapping(
        {"joint_limits": {"arm1": {"max_acceleration": 9, "max_velocity": 3.0}}}
    )
    files = [("own.yaml", own), ("joint_limits.yaml", limits_from_yaml(path))]
    merged = merge_limits(files, read_urdf(MOBILE), ("arm1", "slide"), 0.5)
    limits = merged.limits
    assert limits.lower.tolist() == [-2, 0]
    assert limits.upper.tolist() == [2, 0.04]
    assert limits.velocity.tolist() == [3.0, 0.05]
    assert limits.acceleration.tolist() == [9, 0.5]
    assert merged.notes == (
        "arm1: a limits file allows more than the robot_description: max_velocity 3 instead of "
        "1.5",
    )
    arm1, slide = merged.table().splitlines()[1:]
    assert arm1.split()[:5] == ["arm1", "-2", "2", "3", "9"]
    assert "own.yaml (velocity, acceleration)" in arm1
    assert "robot_description (min_position, position)" in slide
    second = merge_limits(files[1:], read_urdf(MOBILE), (), 0.5)
    assert second.limits.names == ("arm1", "slide")
    assert second.limits.acceleration.tolist() == [2.5, 0.5]
    assert second.notes == ("not commanded: finger (follows slide)",)


def test_incomplete_limits_are_read_but_not_used(tmp_path):
    path = tmp_path / "joint_limits.yaml"
    path.write_text(ASSISTANT)
    limits = limits_from_yaml(path)
    assert limits.velocity[:2].tolist() == [1.25, 0.05]
    with pytest.raises(LimitsError, match="arm1: min_position, max_position, max_acceleration"):
        MotionFilter(limits.of(("arm1",)), DT)
    with pytest.raises(LimitsError, match="arm1: min_position, max_position"):
        merge_limits([("f", limits)], None, ("arm1",))


@pytest.mark.parametrize(
    "wrap",
    [
        "robot_description_planning:\n  {}",
        "'/**':\n  ros__parameters:\n    robot_description_planning:\n      {}",
        "move_group:\n  ros__parameters:\n    {}",
    ],
)
def test_wrapped_files_tags_and_exponents(tmp_path, wrap):
    path = tmp_path / "l.yaml"
    body = (
        "joint_limits: {j: {min_position: !degrees -180, max_position: !radians 1.5, "
        "max_velocity: 1e1, max_acceleration: 2E+1, max_jerk: 1e3, max_deceleration: -4.0}}"
    )
    path.write_text(wrap.format(body))
    limits = limits_from_yaml(path)
    assert limits.lower[0] == pytest.approx(-np.pi)
    values = (limits.upper[0], limits.velocity[0], limits.acceleration[0], limits.jerk_limits[0])
    assert values == (1.5, 10, 4, 1000)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "a: {max_velocity: 1}\n  a: {max_velocity: 2}",
            "'a' is there twice; first in line 2",
        ),
        ("1: {max_velocity: 1}", "the key '1' is not text"),
        ("a: {max_velocty: 1}", "max_velocty is not known; did you mean max_velocity"),
        ("a: {has_velocity_limits: 'no'}", "has_velocity_limits is no; accepted: true or false"),
        ("a: {has_velocity_limits: true}", "max_velocity is missing"),
        ("a: {max_velocity: !degrees x}", "cannot read"),
        ("a: {unit: furlong}", "unit is furlong; accepted: radian"),
        ("a: {max_velocity: -1}", "above 0"),
    ],
)
def test_files_with_a_fault_are_named(tmp_path, body, message):
    path = tmp_path / "limits.yaml"
    path.write_text(f"joint_limits:\n  {body}\n")
    with pytest.raises(LimitsError, match=message) as error:
        limits_from_yaml(path)
    assert "limits.yaml" in str(error.value)


def test_continuous_and_units_of_our_own_files():
    limits = limits_from_mapping(
        {
            "joint_limits": {
                "wrist": {"continuous": True, "max_velocity": 1, "max_acceleration": 2},
                "roll": {"angle_wraparound": True, "min_position": -1, "max_position": 1},
                "hand": {"unit": "gripper_open_0_closed_1", "min_position": 0, "max_position": 1},
            }
        }
    )
    assert limits.continuous == (True, False, False)
    assert limits.upper[0] == ENDLESS_RAD
    assert limits.units == ("", "", "gripper_open_0_closed_1")


def test_a_urdf_with_text_that_cannot_be_encoded_is_refused():
    with pytest.raises(LimitsError, match="is not XML"):
        limits_from_urdf("<robot name='\ud800'/>", 0.2)
