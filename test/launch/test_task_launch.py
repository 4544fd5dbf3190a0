"""launch/task.launch.py, with the stand-ins of test_policy_launch where ROS's launch is absent."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pi05_ros.runtime.parameter_specs import ParameterError, from_values
from pi05_ros.runtime.task.task_parameters import SPECS, TaskParameters

_spec = importlib.util.spec_from_file_location(
    "policy_launch_stand_ins", Path(__file__).with_name("test_policy_launch.py")
)
assert _spec is not None
_other = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_other)
STAND_INS, stand_in = _other.STAND_INS, _other.stand_in
PATH = Path(__file__).parents[2] / "launch" / "task.launch.py"


class Context(dict):
    """What `LaunchConfiguration.perform` of the stand-ins reads."""


@pytest.fixture
def launch_file(monkeypatch):
    for name, members in STAND_INS.items():
        module = ModuleType(name)
        module.__path__ = []
        for member in members:
            setattr(module, member, stand_in(member))
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location("task_launch", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def nodes(module, **given):
    defaults = {name: default for name, (default, _) in module.PROCESS.items()}
    context = Context({**defaults, **dict.fromkeys(SPECS, ""), **given})
    return [node.kwargs for node in module.bring_up(context)]


def test_the_task_node_gets_its_parameters_and_activates_itself(launch_file):
    (node,) = nodes(launch_file, heartbeat_hz="10", second_goal="replace", namespace="left")
    assert (node["executable"], node["namespace"]) == ("task_node", "left")
    values = {k: v for k, v in node["parameters"][0].items() if k != "use_sim_time"}
    read = from_values(TaskParameters, values)
    assert read.autostart
    assert (read.heartbeat_hz, read.second_goal) == (10.0, "replace")


def test_a_folder_starts_the_recorder(launch_file):
    _, node = nodes(
        launch_file, recordings="/tmp/r", recordings_jpeg_quality="90", policy_node="other"
    )
    assert (node["executable"], node["name"]) == ("episode_recorder", "episode_recorder")
    assert node["parameters"][0] == {
        "autostart": True, "use_sim_time": False, "folder": "/tmp/r", "jpeg_quality": 90,
        "policy_node": "other",
    }  # fmt: skip


def test_a_value_that_is_not_accepted_is_refused(launch_file):
    with pytest.raises(ParameterError, match="second_goal"):
        nodes(launch_file, second_goal="both")
