"""launch/executor.launch.py: arguments are the executor's parameters; see launch_stand_ins."""

import sys

import pytest
from launch_stand_ins import Context, arguments, bring_up, load_with_stand_ins

from pi05_ros.ros.executor_parameters import SPECS, ExecutorParameters
from pi05_ros.runtime.parameter_specs import from_values


@pytest.fixture
def launch_file(monkeypatch):
    return load_with_stand_ins("executor", monkeypatch)


def node_of(actions):
    (node,) = actions
    return node.kwargs


def test_every_parameter_is_an_argument(launch_file):
    declared = arguments(launch_file)
    assert set(SPECS) <= set(declared)
    assert all(len(item.description) > 10 for item in declared.values())
    node = node_of(bring_up(launch_file))
    assert node["parameters"] == [{"use_sim_time": False}]
    assert (node["executable"], node["name"]) == ("executor_node", "pi05_executor")
    assert node["remappings"] == []


def test_arguments_become_typed_parameters(launch_file, tmp_path):
    files = [tmp_path / "a.yaml", tmp_path / "b.yaml"]
    for file in files:
        file.write_text("/**: {ros__parameters: {}}\n")
    node = node_of(
        bring_up(
            launch_file,
            params_file=", ".join(map(str, files)),
            control_rate_hz="50",
            joints="b, a",
            require_enable="true",
            speed_scale="0.5",
            strategy="rtc",
            use_sim_time="true",
            namespace="left",
            log_level="warning",
            joint_states="/left/states",
            action_chunk="/policy/action_chunk",
        )
    )
    *given_files, given = node["parameters"]
    assert given_files == [str(file) for file in files]
    assert given.pop("use_sim_time") is True
    read = from_values(ExecutorParameters, given)
    assert (read.control_rate_hz, read.joints, read.require_enable) == (50.0, ("b", "a"), True)
    assert (read.speed_scale, read.strategy) == (0.5, "rtc")
    assert node["namespace"] == "left"
    assert node["arguments"][-1] == "warn"
    assert node["remappings"] == [
        ("joint_states", "/left/states"),
        ("pi05_policy/action_chunk", "/policy/action_chunk"),
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("control_rate_hz", "fast"),
        ("strategy", "newest"),
        ("respawn", "perhaps"),
        ("log_level", "loud"),
        ("params_file", "/nowhere.yaml"),
    ],
)
def test_bad_arguments_are_named(launch_file, name, value):
    with pytest.raises(ValueError, match=value):
        bring_up(launch_file, **{name: value})


def test_unknown_arguments_and_a_second_include_are_refused(launch_file, monkeypatch):
    values = {name: item.default_value for name, item in arguments(launch_file).items()}
    context = Context(values)
    launch_file.bring_up(context)
    with pytest.raises(RuntimeError, match=r"executor.launch.py is included twice"):
        launch_file.bring_up(context)
    monkeypatch.setattr(sys, "argv", ["ros2", "launch", "executor.launch.py", "limit_file:=x"])
    with pytest.raises(ValueError, match=r"no argument limit_file; accepted: .*limits_file"):
        bring_up(launch_file)
