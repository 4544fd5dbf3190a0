"""launch/robot.launch.py: files and arguments of each robot reach every node."""

import sys

import pytest
from launch_stand_ins import Context, arguments, bring_up, load_with_stand_ins

from pi05_ros.resources import config_dir
from pi05_ros.runtime.robot_folder import bring_up_robots

ROBOTS = config_dir() / "robots"


@pytest.fixture
def launch_file(monkeypatch):
    return load_with_stand_ins("robot", monkeypatch)


def parts(actions):
    """Launch file -> arguments of its include, and the nodes; each include has its own scope."""
    includes, nodes = {}, []
    for item in actions:
        if type(item).__name__ == "Node":
            nodes.append(item.kwargs)
            continue
        assert type(item).__name__ == "GroupAction"
        assert item.kwargs == {"scoped": True, "forwarding": False}
        ((include,),) = item.args
        path = include.args[0].args[0].args[0]
        includes[path[-1]] = dict(include.kwargs["launch_arguments"])
    return includes, nodes


@pytest.mark.parametrize("robot", bring_up_robots())
def test_each_robot_brings_its_files(launch_file, robot):
    includes, nodes = parts(bring_up(launch_file, robot=robot, checkpoint="/models/x"))
    executor, policy = includes["executor.launch.py"], includes["policy.launch.py"]
    folder = ROBOTS / robot
    assert executor["limits_file"] == str(folder / "limits.yaml")
    assert executor["outputs_file"] == str(folder / "outputs.yaml")
    assert executor["params_file"] == str(folder / "executor.yaml")
    assert policy["robot"] == robot
    assert policy["checkpoint"] == "/models/x"
    assert policy["params_file"] == str(config_dir() / "policy.yaml")
    assert "checkpoint" not in executor
    assert [node["executable"] for node in nodes] == (
        ["joint_state_names_node"] if robot == "aloha_interbotix" else []
    )


def test_what_is_passed_on_are_arguments_of_the_included_files(launch_file, monkeypatch):
    names = {name: item.default_value or "x" for name, item in arguments(launch_file).items()} | {
        "robot": "aloha_interbotix",
        "calibration": "",
        "policy_params_file": __file__,
    }
    includes, _ = parts(launch_file.bring_up(Context(names)))
    for name in ("executor", "policy"):
        accepted = set(arguments(load_with_stand_ins(name, monkeypatch)))
        given = set(includes[f"{name}.launch.py"])
        assert given <= accepted
        # All of them can be given here, but for topics that the executor's outputs name.
        assert accepted - given <= {"action_chunk"}


def test_namespace_time_and_log_level_reach_every_node(launch_file, tmp_path):
    calibration = tmp_path / "delays.yaml"
    calibration.write_text("{}\n")
    common = {"namespace": "cell", "use_sim_time": "true", "log_level": "debug"}
    includes, (node,) = parts(
        bring_up(
            launch_file,
            robot="aloha_interbotix",
            joint_states="/all_states",
            calibration=str(calibration),
            executor_params_file="/mine.yaml",
            speed_scale="0.2",
            on_change_joints="left_left_finger",
            **common,
        )
    )
    for given in includes.values():
        assert common.items() <= given.items()
        assert given["joint_states"] == "/all_states"
        assert given["on_change_joints"] == "left_left_finger"
        assert str(calibration) in given["params_file"].split(",")
    files = includes["executor.launch.py"]["params_file"].split(",")
    assert files[1:] == [str(calibration), "/mine.yaml"]
    assert includes["executor.launch.py"]["speed_scale"] == "0.2"
    assert node["namespace"] == "cell"
    assert node["parameters"][-1] == {"use_sim_time": True}
    assert node["arguments"][-1] == "debug"
    assert node["remappings"] == [("joint_states", "/all_states")]


def test_the_executor_alone_and_files_of_the_user(launch_file):
    includes, _ = parts(
        bring_up(launch_file, robot="fr3", policy="false", limits_file="/slow.yaml")
    )
    assert list(includes) == ["executor.launch.py"]
    assert includes["executor.launch.py"]["limits_file"] == "/slow.yaml"


def test_a_folder_of_the_user(launch_file, tmp_path):
    folder = tmp_path / "my_arm"
    folder.mkdir()
    for name in ("executor.yaml", "limits.yaml"):
        (folder / name).write_text("{}\n")
    with pytest.raises(ValueError, match=r"lacks outputs.yaml, .*my_arm.yaml"):
        bring_up(launch_file, robot=str(folder))
    (folder / "outputs.yaml").write_text("{}\n")
    (tmp_path / "my_arm.yaml").write_text("{}\n")
    includes, _ = parts(bring_up(launch_file, robot=str(folder)))
    assert includes["policy.launch.py"]["robot"] == str(tmp_path / "my_arm.yaml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"robot": "ur5e_robotic"}, r"did you mean ur5e_robotiq\? accepted: .*so101"),
        ({"robot": ""}, r"accepted: aloha_interbotix"),
        ({"robot": "fr3", "policy": "perhaps"}, "perhaps"),
        ({"robot": "fr3", "calibration": "/nowhere.yaml"}, r"/nowhere.yaml is not a file"),
    ],
)
def test_what_is_wrong_is_named(launch_file, changes, message):
    with pytest.raises(ValueError, match=message):
        bring_up(launch_file, **changes)


def test_unknown_arguments_of_the_command_line_are_refused(launch_file, monkeypatch):
    words = ["ros2", "launch", "pi05_ros", "robot.launch.py", "robot:=fr3", "speed_scal:=0.1"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(ValueError, match=r"no argument speed_scal; accepted: .*speed_scale"):
        bring_up(launch_file, robot="fr3")
