"""launch/task.launch.py, with stand-ins for ROS's launch."""

from __future__ import annotations

import pytest
from launch_stand_ins import Context, load_with_stand_ins

from pi05_ros.runtime.parameter_specs import ParameterError, from_values
from pi05_ros.runtime.task.task_parameters import SPECS, TaskParameters


@pytest.fixture
def launch_file(monkeypatch):
    return load_with_stand_ins("task", monkeypatch)


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
