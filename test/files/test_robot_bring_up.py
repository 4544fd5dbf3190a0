"""config/robots against the published packages: joints, limits, controllers, topics, profiles.

The facts are in test/data/robots_published.json, with their sources.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from pi05_ros.execution.limit_sources.joint_limits import ENDLESS_RAD
from pi05_ros.execution.limits import limits_from_yaml
from pi05_ros.execution.outputs import read_outputs
from pi05_ros.policy import load_profile
from pi05_ros.policy.interface import ActionMeaning
from pi05_ros.resources import robots_dir
from pi05_ros.ros.executor_parameters import ExecutorParameters
from pi05_ros.runtime.parameter_specs import from_values
from pi05_ros.runtime.robot_folder import bring_up_robots

FACTS = json.loads((Path(__file__).parents[1] / "data" / "robots_published.json").read_text())
ROBOTS = FACTS["robots"]
TRAJECTORY_TYPES = (
    "joint_trajectory_controller/JointTrajectoryController",
    "ur_controllers/ScaledJointTrajectoryController",
)
ACTIONS = {
    "parallel_gripper_action_controller/GripperActionController": "parallel_gripper_command",
    "position_controllers/GripperActionController": "gripper_command",
}
robots = pytest.mark.parametrize("robot", bring_up_robots())


def arms(robot):
    """(namespace, prefix) of each arm whose controllers the facts describe."""
    return list(ROBOTS[robot].get("arms", {"": ""}).items())


def published_joints(robot):
    return {p + n: f for _, p in arms(robot) for n, f in ROBOTS[robot]["joints"].items()}


def published_controllers(robot):
    """Topic prefix -> (facts, names that the executor has for its joints)."""
    return {
        (f"/{namespace}/{name}" if namespace else name): (
            facts,
            [prefix + joint for joint in facts["joints"]],
        )
        for namespace, prefix in arms(robot)
        for name, facts in ROBOTS[robot]["controllers"].items()
    }


def limits_of(robot):
    return limits_from_yaml(robots_dir() / robot / "limits.yaml").require_complete()


def parameters(path):
    """ros__parameters by node name of a controllers file, without its namespace keys."""
    found = {}

    def walk(tree, name):
        for key, value in tree.items():
            if key == "ros__parameters":
                found[name] = value
            elif isinstance(value, dict):
                walk(value, key)

    walk(yaml.safe_load(path.read_text()), "")
    return found


def test_every_robot_has_facts_with_sources():
    assert set(bring_up_robots()) == set(ROBOTS)
    for facts in ROBOTS.values():
        for source in facts["sources"]:
            assert source["name"]
            assert source["files"]
            assert len(source["commit"]) >= 7


@robots
def test_limits_are_within_the_published_ones(robot):
    limits = limits_of(robot)
    facts = published_joints(robot)
    assert set(limits.names) == set(facts)
    opened = ROBOTS[robot].get("finger_open_m", 0.0)  # Interbotix/aloha opens beyond the URDF
    for i, name in enumerate(limits.names):
        fact = facts[name]
        assert limits.continuous[i] == fact["continuous"]
        if fact["continuous"]:
            assert limits.upper[i] == ENDLESS_RAD
        else:
            upper = max(fact["upper"], opened if name.endswith("left_finger") else -np.inf)
            assert fact["lower"] - 1e-5 <= limits.lower[i] < limits.upper[i] <= upper + 1e-5
            # Not much less either: a wrong unit or joint would show.
            span = limits.upper[i] - limits.lower[i]
            assert span > 0.99 * (fact["upper"] - fact["lower"])
        assert 0 < limits.velocity[i] <= fact["velocity"] + 1e-6
        assert 0 < limits.acceleration[i] <= fact.get("acceleration", np.inf) + 1e-6


@robots
def test_outputs_go_to_the_published_controllers(robot):
    outputs = read_outputs(robots_dir() / robot / "outputs.yaml", limits_of(robot).names)
    controllers = published_controllers(robot)
    for output in outputs:
        controller, _, topic = output.topic.rpartition("/")
        facts, joints = controllers.pop(controller)
        assert list(output.joints) == joints
        assert list(output.message_names) == facts["joints"]
        if facts.get("type") in TRAJECTORY_TYPES:
            assert (output.kind in ("trajectory", "trajectory_chunk"), topic) == (
                True,
                "joint_trajectory",
            )
        else:
            assert topic == facts["action"]
            assert (
                output.kind
                == {
                    "GripperCommand": "gripper_command",
                    "ParallelGripperCommand": "parallel_gripper_command",
                }[facts["action_type"]]
            )
            assert ACTIONS.get(facts.get("type"), output.kind) == output.kind
            assert output.gripper
        assert output.gripper == (len(output.joints) == 1)
    assert not controllers, "published controllers that nothing commands"


@robots
def test_controllers_are_of_the_published_types(robot):
    shipped = parameters(robots_dir() / robot / "controllers.yaml")
    manager = shipped["controller_manager"]
    for name, facts in ROBOTS[robot]["controllers"].items():
        if facts.get("node"):
            continue  # a node of its own, no controller
        assert manager[name]["type"] == facts["type"]
        own = shipped[name]
        assert own.get("joints", [own.get("joint")]) == facts["joints"]
        if facts["type"] in TRAJECTORY_TYPES:
            assert own["command_interfaces"] == facts["command_interfaces"]
            # Without this the controller starts each trajectory at the lagging measured joints.
            assert own["interpolate_from_desired_state"] is True
    assert manager["joint_state_broadcaster"]["type"].startswith("joint_state_broadcaster/")


@robots
def test_the_profile_has_the_executors_joints(robot):
    profile, limits = load_profile(robot), limits_of(robot)
    assert profile.action_names == profile.state_names == limits.names
    assert set(profile.action_meanings) == {ActionMeaning.ABSOLUTE}
    for i, (command, observed) in enumerate(
        zip(profile.command_units, profile.observed_units, strict=True)
    ):
        assert command == observed
        assert command.name.lower() == (limits.units[i] or "radian")
        ends = [profile.action_maps[i].robot_at]
        ends.append(ends[0] + profile.action_maps[i].robot_span)
        if profile.action_maps[i].model_span != 1 or ends != [0.0, 1.0]:
            assert min(ends) >= limits.lower[i] - 1e-5
            assert max(ends) <= limits.upper[i] + 1e-5


@robots
def test_executor_parameters_are_known_and_ask_for_permission(robot):
    ((_, entry),) = yaml.safe_load((robots_dir() / robot / "executor.yaml").read_text()).items()
    read = from_values(ExecutorParameters, entry["ros__parameters"])
    assert read.require_enable
    assert read.limiting == "path"
    assert not read.allow_random_weights


def test_aloha_joint_names_have_the_prefixes_of_its_arms():
    path = robots_dir() / "aloha_interbotix" / "joint_states.yaml"
    (values,) = parameters(path).values()
    assert values["sources"] == [
        f"/{namespace}/joint_states={prefix}" for namespace, prefix in arms("aloha_interbotix")
    ]
    profile = load_profile("aloha_interbotix")
    assert profile.adapt == "aloha"
    grip = profile.state_maps[6]
    facts = ROBOTS["aloha_interbotix"]
    assert grip.robot_at == facts["finger_closed_m"]
    assert grip.robot_at + grip.robot_span == pytest.approx(facts["finger_open_m"])
