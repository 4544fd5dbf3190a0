"""launch/sim_demo.launch.py.

ROS's `launch` is not on PyPI. Stand-ins record what the file builds: nodes, arguments and where
their values go. Where the real one can be imported, it also reads the arguments.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pi05_ros.ros.executor_parameters import SPECS
from pi05_ros.runtime.launch_arguments import parameter_arguments
from pi05_ros.runtime.parameter_specs import specs_of
from pi05_ros.runtime.parameters import SPECS as POLICY_SPECS
from pi05_ros.sim.arm.driver_parameters import SPECS as DRIVER_SPECS
from pi05_ros.sim.evaluation.referee_node import RefereeParameters
from pi05_ros.sim.training.shipped import CHECKPOINT

REFEREE_SPECS = specs_of(RefereeParameters)
ROOT = Path(__file__).parents[2]
MEMBERS = {
    "launch": ["LaunchContext", "LaunchDescription"],
    "launch.action": ["Action"],
    "launch.actions": [
        "DeclareLaunchArgument",
        "IncludeLaunchDescription",
        "OpaqueFunction",
        "Shutdown",
    ],
    "launch.launch_description_sources": ["PythonLaunchDescriptionSource"],
    "launch.substitutions": ["LaunchConfiguration", "PathJoinSubstitution"],
    "launch_ros": [],
    "launch_ros.actions": ["Node"],
    "launch_ros.parameter_descriptions": ["ParameterValue"],
    "launch_ros.substitutions": ["FindPackageShare"],
}


class Recorded:
    def __init__(self, *args, **kwargs):
        self.args, self.kwargs = args, kwargs

    def perform(self, context):
        return context[self.args[0]]


class Ending:
    def __init__(self, is_shutdown):
        self.is_shutdown = is_shutdown


def load():
    path = ROOT / "launch" / "sim_demo.launch.py"
    spec = importlib.util.spec_from_file_location("sim_demo_launch", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def entities(monkeypatch):
    for name, members in MEMBERS.items():
        module = ModuleType(name)
        module.__path__ = []
        for member in members:
            setattr(module, member, type(member, (Recorded,), {}))
        monkeypatch.setitem(sys.modules, name, module)
    return load().generate_launch_description().args[0]


def of_kind(entities, kind):
    return [item for item in entities if type(item).__name__ == kind]


def declared(entities):
    return {item.args[0]: item.kwargs for item in of_kind(entities, "DeclareLaunchArgument")}


def test_three_nodes_that_are_installed_under_these_names(entities):
    cmake = (ROOT / "CMakeLists.txt").read_text()
    nodes = {item.kwargs["name"]: item.kwargs for item in of_kind(entities, "Node")}
    assert set(nodes) == {"sim_arm", "pi05_executor"}
    for node in nodes.values():
        assert f"add_python_executable({node['executable']} " in cmake
    for name, specs in (("pi05_executor", SPECS), ("sim_arm", DRIVER_SPECS)):
        (parameters,) = nodes[name]["parameters"]
        assert set(parameters) <= {*specs, "use_sim_time"}
        assert nodes[name]["namespace"].args == ("namespace",)
    limits = ROOT / "config" / nodes["pi05_executor"]["parameters"][0]["limits_file"].args[0][-1]
    assert limits.is_file()


def test_every_argument_is_described_and_used(entities):
    arguments = declared(entities)
    assert all(len(item["description"]) > 4 for item in arguments.values())
    assert arguments["checkpoint"]["default_value"] == str(CHECKPOINT)
    (include,) = of_kind(entities, "IncludeLaunchDescription")
    passed = dict(include.kwargs["launch_arguments"])
    assert passed.pop("robot") == "sim_arm"
    assert {name: item.args[0] for name, item in passed.items()} == {name: name for name in passed}
    here = {"task", "seed", "renderer", "strategy", "episodes", "out"}
    assert set(arguments) == here | set(passed)
    assert set(passed) <= {*parameter_arguments(), "namespace", "use_sim_time"}
    assert set(load().ARGUMENTS) == set(arguments)


def test_all_nodes_run_on_the_same_time(entities):
    (referee,) = checked(entities)
    nodes = {item.kwargs["name"]: item.kwargs for item in of_kind(entities, "Node")}
    for node, name in (
        (nodes["sim_arm"], "lock_step"),
        (nodes["pi05_executor"], "use_sim_time"),
        (referee.kwargs, "use_sim_time"),
    ):
        value = node["parameters"][0][name]
        assert value.kwargs["value_type"] is bool
        assert value.args[0].args == ("use_sim_time",)
    assert nodes["sim_arm"]["parameters"][0]["chunk_rate_hz"].args[0].args == ("rate_hz",)
    assert declared(entities)["use_sim_time"]["default_value"] == "true"


def test_choices_are_those_of_the_nodes(entities):
    arguments = declared(entities)
    for name, specs in (("strategy", SPECS), ("chunk_mode", POLICY_SPECS)):
        assert tuple(arguments[name]["choices"]) == specs[name].choices
    for name in ("task", "renderer"):
        for word in arguments[name]["choices"]:
            assert DRIVER_SPECS[name].convert(word) == word
    for item in arguments.values():
        assert item["choices"] is None or item["default_value"] in item["choices"]


def checked(entities, **changes):
    (action,) = of_kind(entities, "OpaqueFunction")
    values = {name: item["default_value"] for name, item in declared(entities).items()}
    return action.kwargs["function"]({**values, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kv_reuse": "dynamic"},
        {"kv_reuse": "3"},
        {"chunk_mode": "trained"},
        {"strategy": "ensemble"},
    ],
)
def test_what_goes_together_is_launched(entities, changes):
    (referee,) = checked(entities, **changes)
    assert referee.kwargs["executable"] == "sim_referee_node"


def test_the_referee_ends_the_launch_and_may_be_left_out(entities):
    (referee,) = checked(entities, episodes="3", seed="7", out="there")
    (parameters,) = referee.kwargs["parameters"]
    assert (parameters["episodes"], parameters["seed"]) == (3, 7)
    assert parameters["out"].args == ("there",)
    assert set(parameters) == {*REFEREE_SPECS, "use_sim_time"}
    assert referee.kwargs["namespace"].args == ("namespace",)
    ends = referee.kwargs["on_exit"]
    assert [type(item).__name__ for item in ends(None, Ending(False))] == ["Shutdown"]
    assert ends(None, Ending(True)) == []  # after Ctrl-C launch ends already, and must not twice
    cmake = (ROOT / "CMakeLists.txt").read_text()
    assert "add_python_executable(sim_referee_node pi05_ros.sim.evaluation.referee_node " in cmake
    assert checked(entities, episodes="0") == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kv_reuse": "0"}, "accepted"),
        ({"episodes": "-1"}, "episodes:=-1 is not a whole number"),
        ({"seed": "a"}, "seed:=a is not a whole number"),
        ({"kv_reuse": "often"}, "dynamic"),
        ({"chunk_mode": "trained", "strategy": "ensemble"}, "strategy:=rtc, not ensemble"),
        ({"chunk_mode": "vjp", "strategy": "replace"}, "strategy:=rtc, not replace"),
    ],
)
def test_what_does_not_go_together_is_refused(entities, changes, words):
    with pytest.raises(ValueError, match=words):
        checked(entities, **changes)


def test_real_launch_accepts_the_file():
    try:
        from launch_ros.actions import Node
    except ImportError:
        # Nothing to load it with: the file must at least be valid Python.
        path = ROOT / "launch" / "sim_demo.launch.py"
        compile(path.read_text(), str(path), "exec")
        return
    from launch.actions import DeclareLaunchArgument

    from launch import LaunchContext

    description = load().generate_launch_description()
    arguments = {a.name: a for a in description.entities if isinstance(a, DeclareLaunchArgument)}
    assert sum(isinstance(item, Node) for item in description.entities) == 2
    for name, bad in (("chunk_mode", "wild"), ("strategy", "naive"), ("task", "dance")):
        context = LaunchContext()
        context.launch_configurations[name] = bad
        with pytest.raises(RuntimeError, match="is not valid"):
            arguments[name].execute(context)
