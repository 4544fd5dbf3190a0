"""Robot transforms against values worked out here from geometry and openpi's definitions."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pi05_ros.policy import load_profile
from pi05_ros.policy.transforms.aloha import (
    aloha_actions_from_pi,
    aloha_gripper_to_pi,
    aloha_state_to_pi,
)
from pi05_ros.policy.transforms.transforms import (
    absolute_to_delta,
    actions_from_model,
    delta_to_absolute,
    pad_to,
    state_to_model,
)
from pi05_ros.sim.libero.benchmark import axis_angle, libero_state

vectors = st.lists(st.floats(-10, 10), min_size=14, max_size=14).map(np.array)


# ALOHA ---------------------------------------------------------------------------------------


def gripper_by_geometry(x):
    """Triangle of servo horn (22 mm), travel and linkage (36 mm): law of cosines at the servo."""
    travel = 0.01844 + x * 0.03956
    cosine = (0.022**2 + travel**2 - 0.036**2) / (2 * 0.022 * travel)
    angle = math.pi / 2 - math.acos(max(-1.0, min(1.0, cosine)))
    return (angle - 0.5476) / 1.082


@pytest.mark.parametrize("x", [0.0, 0.1, 0.25, 0.5, 0.9, 1.0, 1.2])
def test_aloha_gripper_state_is_the_servo_angle(x):
    assert float(aloha_gripper_to_pi(np.array(x))) == pytest.approx(
        gripper_by_geometry(x), abs=1e-12
    )


def test_aloha_state_signs_and_places():
    state = np.arange(1.0, 15.0) / 10
    out = aloha_state_to_pi(state)
    flipped = {1, 2, 8, 9}
    for i in range(14):
        if i in (6, 13):
            assert out[i] == pytest.approx(gripper_by_geometry(state[i]), abs=1e-12)
        else:
            assert out[i] == (-state[i] if i in flipped else state[i])


def test_aloha_actions_by_hand():
    actions = np.zeros((1, 14))
    actions[0, [1, 6, 13]] = [0.3, 0.0, 1.0]
    out = aloha_actions_from_pi(actions)
    assert out[0, 1] == -0.3
    assert out[0, 6] == pytest.approx(1.1689 / 2.1123, abs=1e-12)
    assert out[0, 13] == pytest.approx(2.1689 / 2.1123, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(vectors)
def test_aloha_actions_can_be_undone(values):
    """By openpi's inverse, which training applies to recorded actions; error at most 1e-13."""
    signs = np.where(np.isin(np.arange(14), (1, 2, 8, 9)), -1.0, 1.0)
    forth = aloha_actions_from_pi(values) * signs
    forth[[6, 13]] = forth[[6, 13]] * 2.1123 - 0.6213 - 0.5476
    assert np.abs(forth - values).max() <= 1e-13


@settings(max_examples=100, deadline=None)
@given(st.floats(0.0, 1.0))
def test_aloha_gripper_state_round_trip(x):
    """Undone here through the quadratic of the law of cosines; error at most 1e-9."""
    angle = float(aloha_gripper_to_pi(np.array(x))) * 1.082 + 0.5476
    s = 0.022 * math.sin(angle)
    travel = s + math.sqrt(s * s - 0.022**2 + 0.036**2)
    assert (travel - 0.01844) / 0.03956 == pytest.approx(x, abs=1e-9)


def test_aloha_output_order_adds_the_pi_state_before_flipping():
    robot = load_profile("aloha")
    state = np.linspace(-0.6, 0.7, 14)
    model_state = state_to_model(robot, state)
    out = actions_from_model(robot, np.zeros((2, 32)), model_state)
    assert out.shape == (2, 14)
    joints = [i for i in range(14) if i not in (6, 13)]
    np.testing.assert_allclose(out[:, joints], np.tile(state[joints], (2, 1)), atol=1e-15)
    np.testing.assert_allclose(out[:, [6, 13]], 1.1689 / 2.1123, atol=1e-12)  # absolute


# LIBERO --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quaternion", "expected"),
    [
        ((0, 0, 0, 1), (0, 0, 0)),
        ((1, 0, 0, 0), (math.pi, 0, 0)),
        ((0, math.sin(0.25), 0, math.cos(0.25)), (0, 0.5, 0)),
        ((0, 0, math.sin(1.0), math.cos(1.0)), (0, 0, 2.0)),
        ((0, 0, 0, 1.0000001), (0, 0, 0)),
        ((0, 0, 0, -1), (0, 0, 0)),
    ],
)
def test_libero_axis_angle(quaternion, expected):
    np.testing.assert_allclose(axis_angle(np.array(quaternion)), expected, atol=1e-12)


def test_libero_state_layout():
    state = libero_state(np.array([1, 2, 3]), np.array([0, 0, 0, 1]), np.array([0.04, -0.04]))
    np.testing.assert_array_equal(state, [1, 2, 3, 0, 0, 0, 0.04, -0.04])


def test_libero_takes_seven_columns_unchanged():
    actions = np.random.default_rng(0).normal(size=(10, 32))
    out = actions_from_model(load_profile("libero"), actions, np.full(8, 5.0))
    np.testing.assert_array_equal(out, actions[:, :7])


# DROID ---------------------------------------------------------------------------------------


def test_droid_velocities_ignore_the_state_and_positions_add_it():
    actions = np.full((3, 32), 0.1)
    state = np.arange(8.0)
    out = actions_from_model(load_profile("droid"), actions, state)
    np.testing.assert_allclose(out, [[0.3] * 7 + [0.0]] * 3)  # of 3 rad/s; the gripper stays open
    out = actions_from_model(load_profile("droid_jointpos"), actions, state)
    np.testing.assert_allclose(out[0], [*(state[:7] + 0.1), 0.0])


# delta, padding ------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(vectors, vectors, st.lists(st.booleans(), min_size=0, max_size=14))
def test_delta_round_trip(actions, state, mask):
    """Values up to 10: error at most 4e-15 (one rounding each way)."""
    chunk = np.stack([actions, actions * 0.5])
    back = delta_to_absolute(absolute_to_delta(chunk, state, mask), state, mask)
    assert np.abs(back - chunk).max() <= 4e-15
    untouched = [i for i in range(14) if i >= len(mask) or not mask[i]]
    np.testing.assert_array_equal(
        delta_to_absolute(chunk, state, mask)[:, untouched], chunk[:, untouched]
    )


def test_delta_uses_one_state_for_every_step_and_leaves_its_input():
    chunk = np.zeros((3, 4), dtype=np.float64)
    out = delta_to_absolute(chunk, np.array([1.0, 2.0, 3.0]), (True, False, True))
    np.testing.assert_array_equal(out, np.tile([1.0, 0.0, 3.0, 0.0], (3, 1)))
    assert not chunk.any()


def test_padding():
    np.testing.assert_array_equal(pad_to(np.ones((2, 3)), 5), [[1, 1, 1, 0, 0]] * 2)
    assert pad_to(np.ones(40), 32).shape == (40,)
