"""launch/sim_demo.launch.py with stand-ins for ROS's `launch`, which is not on PyPI.

The stand-ins record what the file builds: nodes, arguments and where their values go. Launching
itself is only tested where a ROS installation is.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pi05_ros.ros.executor_parameters import SPECS
from pi05_ros.sim.shipped import CHECKPOINT

ROOT = Path(__file__).parents[2]
MEMBERS = {
    "launch": ["LaunchDescription"],
    "launch.actions": ["DeclareLaunchArgument", "IncludeLaunchDescription"],
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


@pytest.fixture
def entities(monkeypatch):
    for name, members in MEMBERS.items():
        module = ModuleType(name)
        module.__path__ = []
        for member in members:
            setattr(module, member, type(member, (Recorded,), {}))
        monkeypatch.setitem(sys.modules, name, module)
    path = ROOT / "launch" / "sim_demo.launch.py"
    spec = importlib.util.spec_from_file_location("sim_demo_launch", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.generate_launch_description().args[0]


def of_kind(entities, kind):
    return [item for item in entities if type(item).__name__ == kind]


def test_three_nodes_that_are_installed_under_these_names(entities):
    cmake = (ROOT / "CMakeLists.txt").read_text()
    nodes = {item.kwargs["name"]: item.kwargs for item in of_kind(entities, "Node")}
    assert set(nodes) == {"sim_arm", "pi05_executor"}
    for node in nodes.values():
        assert f"add_python_executable({node['executable']} " in cmake
    (parameters,) = nodes["pi05_executor"]["parameters"]
    assert set(parameters) <= set(SPECS)
    limits = ROOT / "config" / parameters["limits_file"].args[0][-1]
    assert limits.is_file()


def test_every_argument_is_described_and_used(entities):
    declared = {item.args[0]: item.kwargs for item in of_kind(entities, "DeclareLaunchArgument")}
    assert all(len(item["description"]) > 4 for item in declared.values())
    assert declared["checkpoint"]["default_value"] == str(CHECKPOINT)
    (include,) = of_kind(entities, "IncludeLaunchDescription")
    passed = dict(include.kwargs["launch_arguments"])
    assert set(passed) == {"checkpoint", "robot", "rate_hz", "denoise_steps"}
    policy = (ROOT / "launch" / "policy.launch.py").read_text()
    assert all(f'"{name}"' in policy for name in passed)
