"""Robot profiles: the shipped ones mean what openpi's configs mean, wrong ones are named."""

import contextlib
import dataclasses

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pi05_ros.policy import RobotProfileError, available_robots, config_dir, load_profile
from pi05_ros.policy.interface import ActionMeaning, ActionUnit
from pi05_ros.policy.robots.profile_yaml import parse_profile
from pi05_ros.policy.transforms.transforms import actions_from_model, state_to_model

ALOHA_MASK = (True,) * 6 + (False,) + (True,) * 6


def minimal() -> dict:
    return {
        "control_hz": 10,
        "cameras": [{"role": "base", "slot": "base_0_rgb", "required": True}],
        "state": [{"name": "j", "unit": "radian"}, {"name": "g", "unit": "metre"}],
        "actions": [
            {"name": "j", "meaning": "absolute", "unit": "radian", "delta": True},
            {"name": "g", "meaning": "absolute", "unit": "metre"},
        ],
    }


def test_shipped_robots_are_all_there_and_valid():
    assert available_robots() == (
        "aloha", "aloha_interbotix", "droid", "droid_jointpos", "fr3", "kinova_gen3", "libero",
        "libero_poses", "sim_arm", "so101", "so101_range", "ur5e", "ur5e_robotiq",
    )  # fmt: skip
    for name in available_robots():
        assert load_profile(name).name == name


@pytest.mark.parametrize(
    ("name", "states", "actions", "horizon", "hz", "mask", "discrete", "asset", "adapt"),
    [
        ("libero", 8, 7, 10, 20, (), False, "physical-intelligence/libero", "none"),
        ("libero_poses", 8, 7, 10, 20, (), False, "physical-intelligence/libero", "none"),
        ("droid", 8, 8, 15, 15, (), True, "droid", "none"),
        ("droid_jointpos", 8, 8, 15, 15, (True,) * 7, True, "droid", "none"),
        ("aloha", 14, 14, 50, 50, ALOHA_MASK, True, "trossen", "aloha"),
        ("aloha_interbotix", 14, 14, 50, 50, ALOHA_MASK, True, "trossen", "aloha"),
        ("ur5e", 7, 7, 50, 20, (True,) * 6, True, "ur5e", "none"),
        ("ur5e_robotiq", 7, 7, 50, 20, (True,) * 6, True, "ur5e", "none"),
        ("fr3", 8, 8, None, 15, (True,) * 7, True, None, "none"),
        ("kinova_gen3", 8, 8, None, 20, (True,) * 7, True, None, "none"),
        ("sim_arm", 7, 7, None, 20, (True,) * 6, True, "sim_arm", "none"),
    ],
)
def test_shipped_robot_semantics(name, states, actions, horizon, hz, mask, discrete, asset, adapt):
    robot = load_profile(name)
    assert len(robot.state_names) == states
    assert len(robot.action_names) == actions
    assert (robot.horizon, robot.control_hz, robot.delta_mask) == (horizon, hz, mask)
    assert (robot.discrete_state, robot.asset_id, robot.adapt) == (discrete, asset, adapt)
    assert robot.normalization == "quantile"
    assert robot.required_roles == ("base",)
    roles = ("base", "wrist", "wrist_2") if name.startswith("aloha") else ("base", "wrist")
    assert robot.camera_roles == roles


def test_droid_commands_velocities_and_a_gripper_position():
    robot = load_profile("droid")
    assert robot.action_meanings == (ActionMeaning.VELOCITY,) * 7 + (ActionMeaning.ABSOLUTE,)
    assert robot.command_units[:7] == (ActionUnit.RADIAN_PER_SECOND,) * 7
    assert robot.command_units[-1] == ActionUnit.GRIPPER_OPEN_0_CLOSED_1


def test_sim_arm_names_and_ranges():
    robot = load_profile("sim_arm")
    names = (*(f"joint{i}" for i in range(1, 7)), "gripper")
    assert robot.state_names == robot.action_names == names
    assert robot.ranges is not None
    assert robot.ranges.state_low[-1] == 0.0


def test_profile_from_a_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(minimal()))
    robot = load_profile(path)
    assert robot.name == "mine"
    assert robot == load_profile(str(path))
    assert robot.delta_mask == (True,)
    assert robot.step_s == pytest.approx(0.1)


def test_cameras_are_put_into_the_models_order():
    data = minimal()
    data["cameras"].insert(0, {"role": "wrist", "slot": "left_wrist_0_rgb"})
    assert parse_profile("x", data).camera_roles == ("base", "wrist")


def change(path, value):
    """A profile with one entry replaced (or, for ..., removed)."""
    data = minimal()
    at = data
    for key in path[:-1]:
        at = at[key]
    if value is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("control_herz",), 3, ["control_herz", "did you mean 'control_hz'"]),
        (("cameras", 0, "requird"), True, ["cameras[0]", "did you mean 'required'"]),
        (("control_hz",), ..., ["lacks the key 'control_hz'"]),
        (("control_hz",), 0, ["control_hz is 0", "accepted: 0.1 to 1000"]),
        (("control_hz",), 1e-10, ["control_hz is 1e-10", "accepted: 0.1 to 1000"]),
        (("control_hz",), 1e4, ["control_hz is 10000", "accepted: 0.1 to 1000"]),
        (("control_hz",), float("nan"), ["finite number"]),
        (("control_hz",), True, ["control_hz", "number"]),
        (("horizon",), 0, ["horizon is 0", "1 to 1024"]),
        (("horizon",), 2.5, ["whole number"]),
        (("cameras",), [], ["at least one"]),
        (("cameras", 0, "required"), False, ["no camera is required"]),
        (("cameras", 0, "slot"), "base_0_rbg", ["did you mean 'base_0_rgb'"]),
        (("cameras", 0, "role"), 3, ["cameras[0].role", "text"]),
        (("cameras", 0, "role"), "bsae", ["did you mean 'base'", "base, wrist, wrist_2"]),
        (("cameras", 0, "role"), "", ["cameras[0].role is ''", "accepted: base"]),
        (("cameras", 0), "base", ["cameras[0] is str", "mapping"]),
        (("state",), [], ["state has 0 names"]),
        (("state",), [{"name": "j", "unit": "radian"}] * 2, ["name twice"]),
        (("state", 0, "unit"), "radiant", ["did you mean 'radian'"]),
        (("actions", 0, "meaning"), "relative", ["accepted: absolute, delta"]),
        (("actions", 0, "delta"), "yes", ["accepted: true, false"]),
        (("normalization",), "q99", ["'q99'", "quantile"]),
        (("adapt",), "aloha", ["14 state values"]),
        (("adapt",), "allora", ["accepted: none, aloha"]),
        (("prompt",), {"discrete": True}, ["prompt", "'discrete'"]),
        (("grippers",), [{"state": "x", "open": 0, "closed": 1}], ["gripper state 'x'"]),
        (("grippers",), [{"action": "g", "open": 1, "closed": 1}], ["equal"]),
        (("grippers",), [{"open": 0, "closed": 1}], ["neither"]),
        (
            ("grippers",),
            [{"action": "g", "open": 0, "closed": 1}, {"action": "g", "open": 1, "closed": 0}],
            ["two grippers map the same action: g, g"],
        ),
        (("state", 0, "unit"), "Radian", ["did you mean 'radian'", "accepted: radian, metre"]),
        (("state", 0, "unit"), ["rad"], ["state[0].unit is ['rad']"]),
        (("state", 0, "quantity"), "length", ["quantity length cannot be in radian"]),
        (("state", 0, "quantity"), "mass", ["quantity is 'mass'", "angle, length"]),
        (("state", 0, "scale"), 0, ["state 'j'", "no inverse"]),
        (("state", 0, "scale"), 1e-308, ["not in the same numbers"]),
        (("state", 0, "scale"), "2", ["state[0].scale is 2; accepted: a finite number"]),
        (("state", 0, "clip"), [0, 1], ["state[0] has the unknown key 'clip'"]),
        (("state", 0, "linear"), {"model": [0, 1]}, ["state[0].linear lacks the key 'robot'"]),
        (("state", 0, "linear"), {"model": [1, 1], "robot": [0, 1]}, ["with different ends"]),
        (("state", 0, "linear"), {"model": [0, 1], "robot": 3}, ["robot is 3; accepted: [low"]),
        (("state", 0, "limits"), [1, -1], ["limits is [1.0, -1.0]", "below the high end"]),
        (("actions", 0, "clip"), [1, 1], ["clip is [1.0, 1.0]"]),
        (("actions", 0, "threshold"), 1.0, ["threshold is 1; accepted: from 0 to 1"]),
        (("actions", 0, "unit"), "degree", ["1 x + 0 degree and 1 x + 0 radian", "same unit"]),
        (("actions", 1, "unit"), "m/s", ["meaning absolute", "metre_per_second, which is a vel"]),
        (
            ("actions", 1),
            {"name": "g", "meaning": "velocity", "unit": "m"},
            ["meaning velocity does not fit the unit metre, which is no velocity"],
        ),
        (
            ("actions", 1),
            {"name": "g", "meaning": "delta", "unit": "m", "offset": 0.1},
            ["meaning delta with an offset", "give scale only"],
        ),
        (
            ("actions", 1),
            {
                "name": "g",
                "meaning": "absolute",
                "unit": "m",
                "scale": 2,
                "linear": {"model": [0, 1], "robot": [0, 1]},
            },
            ["has linear and scale or offset"],
        ),
        (
            ("actions", 0),
            {"name": "j", "meaning": "velocity", "unit": "radian_per_second", "delta": True},
            ["action 'j' has delta: true", "velocity; accepted with delta: absolute"],
        ),
        (("state", 0, "range"), [0, 1], ["range for every state and action"]),
    ],
)
def test_wrong_entries_are_named_with_what_is_accepted(path, value, words):
    with pytest.raises(RobotProfileError) as error:
        parse_profile("mine", change(path, value))
    message = str(error.value)
    assert "\n" not in message
    for word in ("'mine'", *words):
        assert word in message


def test_a_column_has_one_map():
    data = minimal()
    data["state"][1]["scale"] = 2
    data["grippers"] = [{"state": "g", "open": 0, "closed": 1}]
    with pytest.raises(RobotProfileError, match="state 'g' has a map of its own and one in grip"):
        parse_profile("mine", data)


def test_delta_mask_longer_than_the_state_is_refused():
    data = minimal()
    data["state"].pop()
    data["actions"][1]["delta"] = True
    with pytest.raises(RobotProfileError, match="delta_mask has 2 entries"):
        parse_profile("mine", data)


def test_unknown_robot_lists_the_known_and_the_closest():
    with pytest.raises(
        RobotProfileError, match=r"did you mean 'libero'.*accepted: aloha, .*droid"
    ):
        load_profile("libreo")
    with pytest.raises(RobotProfileError, match="accepted"):
        load_profile("../robots/libero")


@pytest.mark.parametrize(
    "text",
    [
        *("a: [", "- 1", "", "!!python/object/apply:os.system ['true']", "a: 2024-13-01"),
        *("a: !!int x", "a: !!int ''", "a: !!bool maybe", "a: !!timestamp x", "a: " + "9" * 5000),
    ],
)
def test_files_that_are_no_profile(tmp_path, text):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(RobotProfileError, match="robot profile"):
        load_profile(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(RobotProfileError, match=r"gone\.yaml does not exist"):
        load_profile(tmp_path / "gone.yaml")


def test_profiles_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_profile("droid").horizon = 3  # type: ignore[misc]


def test_config_dir_holds_the_robots():
    assert (config_dir() / "robots" / "libero.yaml").is_file()


junk = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**1100) | st.floats() | st.text(max_size=5),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children)
    ),
    max_leaves=4,
)


def _places(data, path=()):
    items = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from _places(value, (*path, key))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_profiles_with_any_value_replaced_end_in_our_error_or_a_profile(data):
    name = data.draw(st.sampled_from(["sim_arm", "droid", "so101"]))
    full = yaml.safe_load((config_dir() / "robots" / f"{name}.yaml").read_text())
    if name != "so101":
        full["grippers"] = [{"state": "gripper", "action": "gripper", "open": 0, "closed": 1}]
    place = data.draw(st.sampled_from(list(_places(full))))
    at = full
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = data.draw(junk)
    with contextlib.suppress(RobotProfileError):
        robot = parse_profile("x", full)
        assert robot.camera_roles
        assert len(robot.action_units) == len(robot.command_units) == len(robot.action_names)
        numbers = np.zeros((1, len(robot.action_names)))
        state = state_to_model(robot, np.zeros(len(robot.state_names)))
        assert np.isfinite(actions_from_model(robot, numbers, state)).all()
