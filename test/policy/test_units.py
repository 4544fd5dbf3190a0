"""Units: the model's numbers become SI for joints and come back, whatever the profile declares."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pi05_ros.policy import ActionMeaning, ActionUnit, load_profile
from pi05_ros.policy.robots.profile_yaml import parse_profile
from pi05_ros.policy.robots.units import UNIT_NAMES, Unit, UnitMap
from pi05_ros.policy.transforms.transforms import actions_from_model, state_to_model

CAMERAS = [{"role": "base", "slot": "base_0_rgb", "required": True}]
STATE_UNITS = sorted(UNIT_NAMES)
FAST = [n for n, u in UNIT_NAMES.items() if "second" in u.name.lower()]
STILL = [n for n in UNIT_NAMES if n not in FAST]


def one_column(state: dict, action: dict):
    """A profile with one state and one absolute action; its `state_maps`, `action_maps`."""
    return parse_profile(
        "mine",
        {
            "control_hz": 10,
            "cameras": CAMERAS,
            "state": [{"name": "j", **state}],
            "actions": [{"name": "j", "meaning": "absolute", **action}],
        },
    )


def out(robot, value):
    """Command of a model's number."""
    return float(actions_from_model(robot, np.array([[float(value)]]), np.zeros(1))[0, 0])


@pytest.mark.parametrize(
    ("unit", "value", "expected", "wire"),
    [
        ("radian", 0.5, 0.5, ActionUnit.RADIAN),
        ("degree", 90.0, math.pi / 2, ActionUnit.RADIAN),
        ("deg", -180.0, -math.pi, ActionUnit.RADIAN),
        ("meter", 0.3, 0.3, ActionUnit.METRE),
        ("metre", 0.3, 0.3, ActionUnit.METRE),
        ("millimeter", 85.0, 0.085, ActionUnit.METRE),
        ("cm", 8.5, 0.085, ActionUnit.METRE),
        ("percent", 50.0, 50.0, ActionUnit.PERCENT),
        ("normalized", -1.0, -1.0, ActionUnit.NORMALIZED),
        ("dimensionless", 3.0, 3.0, ActionUnit.DIMENSIONLESS),
    ],
)
def test_what_leaves_is_in_si_units_and_says_so(unit, value, expected, wire):
    robot = one_column({"unit": unit}, {"unit": unit})
    assert robot.command_units == robot.observed_units == (wire,)
    assert out(robot, value) == pytest.approx(expected, rel=1e-12)
    assert state_to_model(robot, np.array([expected]))[0] == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("unit", "expected"),
    [("rad/s", 0.5), ("deg/s", math.radians(0.5)), ("m/s", 0.5), ("mm/s", 0.0005)],
)
def test_velocities(unit, expected):
    robot = parse_profile(
        "mine",
        {
            "control_hz": 10,
            "cameras": CAMERAS,
            "state": [{"name": "j", "unit": "radian"}],
            "actions": [{"name": "j", "meaning": "velocity", "unit": unit}],
        },
    )
    assert robot.command_units[0].name.endswith("_PER_SECOND")
    assert out(robot, 0.5) == pytest.approx(expected, rel=1e-12)


def test_every_unit_of_a_chunk_is_a_unit_of_a_column():
    for unit in ActionUnit:
        assert Unit(unit.value).name == unit.name
    assert {u.value for u in Unit if u.value < 100} == {u.value for u in ActionUnit}


def test_scale_offset_and_linear():
    turned = one_column({"unit": "deg"}, {"unit": "deg", "scale": -1, "offset": 90})
    assert out(turned, 30) == pytest.approx(math.radians(60))
    assert turned.action_units == (Unit.DEGREE,)
    ends = {"linear": {"model": [0, 100], "robot": [0.085, 0.0]}}
    gripper = one_column({"unit": "m", **ends}, {"unit": "m", **ends})
    assert (out(gripper, 0), out(gripper, 100)) == (0.085, 0.0)
    assert gripper.action_units == (Unit.PERCENT,)
    assert state_to_model(gripper, np.array([0.085]))[0] == 0.0
    assert state_to_model(gripper, np.array([0.0]))[0] == 100.0


def test_grippers_of_older_files_are_such_maps():
    data = {"unit": "metre"}
    robot = parse_profile(
        "mine",
        {
            "control_hz": 10,
            "cameras": CAMERAS,
            "state": [{"name": "g", **data}],
            "actions": [{"name": "g", "meaning": "absolute", **data}],
            "grippers": [{"state": "g", "action": "g", "open": 0.085, "closed": 0.0}],
        },
    )
    assert (out(robot, 0.0), out(robot, 1.0)) == (0.085, 0.0)
    assert state_to_model(robot, np.array([0.085]))[0] == 0.0
    assert robot.command_units == (ActionUnit.METRE,)


def test_clip_and_threshold_are_for_commands():
    robot = one_column({"unit": "radian"}, {"unit": "radian", "scale": 2.0, "clip": [-1, 1]})
    assert [out(robot, x) for x in (-7, 0.25, 7)] == [-2.0, 0.5, 2.0]
    binary = {"unit": "percent", "threshold": 40, "linear": {"model": [0, 100], "robot": [100, 0]}}
    robot = one_column({"unit": "percent"}, binary)
    assert [out(robot, x) for x in (-3, 40, 40.1, 250)] == [100, 100, 0, 0]


numbers = st.floats(-1e3, 1e3)
spans = st.floats(1e-3, 1e3) | st.floats(-1e3, -1e-3)
maps = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"scale": spans, "offset": numbers}),
    st.tuples(numbers, spans, numbers, spans).map(
        lambda t: {"linear": {"model": [t[0], t[0] + t[1]], "robot": [t[2], t[2] + t[3]]}}
    ),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(STILL), maps, numbers), min_size=1, max_size=8))
def test_robot_to_model_to_robot(columns):
    """Whatever the map, a command of the state's own model numbers is the state."""
    items = [{"name": f"c{i}", "unit": u, **m} for i, (u, m, _) in enumerate(columns)]
    robot = parse_profile(
        "mine",
        {
            "control_hz": 10,
            "cameras": CAMERAS,
            "state": items,
            "actions": [{**item, "meaning": "absolute"} for item in items],
        },
    )
    state = np.array([value for _, _, value in columns])
    model = state_to_model(robot, state)
    back = actions_from_model(robot, model[None], model)[0]
    # Far from the two points that a steep map goes through, digits are lost as they must be.
    lost = np.array(
        [
            abs(m.robot_at * m.factor) + abs(m.model_at * m.scale * m.factor)
            for m in robot.state_maps
        ]
    )
    np.testing.assert_array_less(np.abs(back - state), 1e-12 * (1 + np.abs(state) + lost))


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(STILL), maps, numbers, st.floats(-10, 10))
def test_a_relative_action_is_relative_in_the_models_numbers(unit, unit_map, start, step):
    item = {"name": "j", "unit": unit, **unit_map}
    robot = parse_profile(
        "mine",
        {
            "control_hz": 10,
            "cameras": CAMERAS,
            "state": [item],
            "actions": [{**item, "meaning": "absolute", "delta": True}],
        },
    )
    unit_map = robot.action_maps[0]
    state = np.array([start])
    model = state_to_model(robot, state)
    got = actions_from_model(robot, np.array([[step]]), model)[0, 0]
    moved = step * unit_map.scale * unit_map.factor
    size = 1 + abs(start) + abs(moved) + abs(unit_map.robot_at) + abs(unit_map.model_at)
    size += abs(unit_map.model_at * unit_map.scale)
    assert got == pytest.approx(start + moved, abs=1e-11 * size)


# shipped profiles -----------------------------------------------------------------------------


def droid_client(action):
    """Command of DROID's own client: gripper at 0.5, clip, 0.2 rad per step of 1/15 s."""
    action = np.append(action[:7], 1.0 if action[7] > 0.5 else 0.0)
    action = np.clip(action, -1.0, 1.0)
    share = max(1.0, np.abs(action[:7]).max())
    return np.append(action[:7] / share * 0.2, action[7])


def test_droid_moves_as_its_own_client_moves_it():
    robot = load_profile("droid")
    half = np.full((15, 8), 0.5)
    commands = actions_from_model(robot, half, np.zeros(8))
    assert robot.action_meanings[:7] == (ActionMeaning.VELOCITY,) * 7
    moved = np.cumsum(commands[:, :7] * robot.step_s, axis=0)
    np.testing.assert_allclose(moved[-1], 1.5, rtol=1e-12)
    rng = np.random.default_rng(0)
    actions = rng.normal(0, 1, (200, 8))
    ours = actions_from_model(robot, actions, np.zeros(8))
    ours[:, :7] *= robot.step_s
    theirs = np.array([droid_client(action) for action in actions])
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-15)


def test_so101_in_degrees_and_in_its_calibrated_range():
    degrees, shares = load_profile("so101"), load_profile("so101_range")
    values = actions_from_model(degrees, np.array([[90.0, 0, 0, 0, -90, 100]]), np.zeros(6))[0]
    np.testing.assert_allclose(values, [math.pi / 2, 0, 0, 0, -math.pi / 2, 1.74533])
    values = actions_from_model(shares, np.array([[100.0, -100, 0, 0, 0, 0]]), np.zeros(6))[0]
    np.testing.assert_allclose(values[:3], [1.91986, -1.74533, 0.0], atol=1e-12)
    assert degrees.command_units == shares.command_units == (ActionUnit.RADIAN,) * 6


@pytest.mark.parametrize("name", ["sim_arm", "aloha", "ur5e", "libero"])
def test_numbers_of_other_shipped_robots_are_left_as_they_are(name):
    robot = load_profile(name)
    assert all(m.identity for m in (*robot.state_maps, *robot.action_maps))


def test_an_identity_keeps_the_type():
    robot = load_profile("sim_arm")
    state = np.zeros(7, np.float32)
    assert state_to_model(robot, state).dtype == np.float32
    assert UnitMap(Unit.DEGREE).to_robot(np.float32(180)).dtype == np.float32
