"""launch/policy.launch.py.

Where ROS's `launch` can be imported, the file is loaded with it; elsewhere with stand-ins.
"""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from launch_stand_ins import Context, arguments, load, load_with_stand_ins
from launch_stand_ins import bring_up as build

from pi05_ros.runtime.parameters import SPECS, PolicyParameters

ROOT = Path(__file__).parents[2]
PATH = ROOT / "launch" / "policy.launch.py"
PARAMS_FILE = ROOT / "config" / "policy.yaml"


def has_ros_launch():
    try:
        return importlib.util.find_spec("launch_ros.actions") is not None
    except ModuleNotFoundError:
        return False


@pytest.fixture
def launch_file(monkeypatch):
    return load_with_stand_ins("policy", monkeypatch)


def bring_up(module, **changes):
    return build(module, **{"params_file": str(PARAMS_FILE), **changes})


def node_of(actions):
    (node,) = [item for item in actions if type(item).__name__ == "LifecycleNode"]
    return node.kwargs


def test_every_argument_is_described(launch_file):
    declared = arguments(launch_file)
    assert {
        "namespace", "params_file", "use_sim_time", "autostart", "log_level", "checkpoint",
        "robot", "backend", "precision", "denoise_steps", "prompt", "base_camera",
        "wrist_camera", "wrist_camera_2", "respawn", "chunk_mode", "kv_reuse", "joint_states",
    } <= set(declared)  # fmt: skip
    assert all(len(item.description) > 10 for item in declared.values())


def test_empty_arguments_keep_the_values_of_the_file(launch_file):
    node = node_of(bring_up(launch_file))
    assert node["parameters"] == [str(PARAMS_FILE), {"use_sim_time": False}]
    assert node["remappings"] == []
    assert (node["package"], node["executable"]) == ("pi05_ros", "policy_node")
    assert node["name"] == "pi05_policy"


def test_arguments_become_typed_parameters_of_the_node(launch_file):
    node = node_of(
        bring_up(
            launch_file,
            checkpoint="random:tiny",
            denoise_steps="5",
            rate_hz="8",
            precision="bf16",
            prompt="5",
            chunk_mode="trained",
            kv_reuse="2",
            use_sim_time="True",
            namespace="arm",
            respawn="true",
        )
    )
    given = dict(node["parameters"][1])
    assert given.pop("use_sim_time") is True
    read = PolicyParameters.from_values(given)
    assert (read.denoise_steps, read.rate_hz, read.prompt) == (5, 8.0, "5")
    assert (read.chunk_mode, read.kv_reuse) == ("trained", "2")
    assert read.precision_vision == read.precision_prefill == read.precision_denoise == "bf16"
    assert node["namespace"] == "arm"
    assert node["respawn"] is True


def test_every_parameter_is_an_argument(launch_file):
    declared = arguments(launch_file)
    assert {name.replace(".", "_") for name in SPECS} <= set(declared)
    node = node_of(bring_up(launch_file, camera_roles="base, wrist", camera_map="base=top"))
    assert node["parameters"][1]["camera_roles"] == ["base", "wrist"]
    node = node_of(
        bring_up(launch_file, precision="bf16", precision_vision="fp32", lerobot_era="0.5")
    )
    read = PolicyParameters.from_values(
        {k: v for k, v in node["parameters"][1].items() if k != "use_sim_time"}
    )
    assert (read.precision_vision, read.precision_denoise) == ("fp32", "bf16")
    assert read.lerobot_era == "0.5"


def test_the_log_level_is_one_that_rcl_knows(launch_file):
    assert node_of(bring_up(launch_file, log_level="warning"))["arguments"][-1] == "warn"
    with pytest.raises(ValueError, match=r"log_level:=loud .* fatal"):
        bring_up(launch_file, log_level="loud")


def test_unknown_arguments_of_the_command_line_are_refused(launch_file, monkeypatch):
    words = ["ros2", "launch", "pi05_ros", "policy.launch.py", "chekpoint:=x", "rate_hz:=5"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(ValueError, match=r"no argument chekpoint; accepted: .*checkpoint"):
        bring_up(launch_file)
    # The arguments of a file that includes this one are that one's.
    monkeypatch.setattr(sys, "argv", [*words[:3], "two_robots.launch.py", "left:=x"])
    bring_up(launch_file)


def test_a_second_include_in_one_scope_is_refused(launch_file):
    values = dict.fromkeys(arguments(launch_file), "")
    flags = {
        "use_sim_time": "false",
        "autostart": "false",
        "respawn": "false",
        "log_level": "info",
    }
    context = Context({**values, **flags})
    assert launch_file.bring_up(context)
    with pytest.raises(RuntimeError, match=r"policy.launch.py is included twice.* GroupAction"):
        launch_file.bring_up(context)
    assert launch_file.bring_up(Context({**values, **flags}))


def test_camera_remaps_cover_raw_and_compressed(launch_file):
    node = node_of(bring_up(launch_file, wrist_camera="/hand/color", joint_states="/js"))
    assert node["remappings"] == [
        ("wrist_camera/image_raw", "/hand/color"),
        ("wrist_camera/image_raw/compressed", "/hand/color/compressed"),
        ("joint_states", "/js"),
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("denoise_steps", "many"),
        ("rate_hz", "fast"),
        ("autostart", "perhaps"),
        ("params_file", "/nowhere.yaml"),
    ],
)
def test_bad_argument_is_named(launch_file, name, value):
    with pytest.raises(ValueError, match=value):
        bring_up(launch_file, **{name: value})


class Graph:
    """Stands in for launch's own ROS node: which transition_event publishers it sees."""

    def __init__(self):
        self.gids = []

    def get_publishers_info_by_topic(self, topic):
        assert topic == "/arm/pi05_policy/transition_event"
        return [SimpleNamespace(endpoint_gid=gid) for gid in self.gids]


@pytest.fixture
def autostart(launch_file, monkeypatch):
    graph = Graph()
    monkeypatch.setattr(launch_file, "get_ros_node", lambda context: graph)
    return launch_file.Autostart(SimpleNamespace(node_name="/arm/pi05_policy")), graph


def proceed(actions):
    """Run what a timer holds; the requested transition, or None while it still waits."""
    (timer,) = actions
    (action,) = timer.kwargs["actions"]
    if type(action).__name__ == "EmitEvent":
        return action.kwargs["event"].kwargs["transition_id"]
    return action.kwargs["function"](None, *action.kwargs["args"])


def activates(autostart):
    actions = autostart.on_configured(None)
    return [item.kwargs["event"].kwargs["transition_id"] for item in actions] == [3]


def test_autostart_listens_for_configured_only_after_configuring(launch_file):
    handlers = [
        item.args[0] for item in bring_up(launch_file)
        if type(item).__name__ == "RegisterEventHandler"
    ]  # fmt: skip
    assert [type(item).__name__ for item in handlers] == [
        "OnProcessStart", "OnProcessExit", "OnStateTransition",
    ]  # fmt: skip
    # Without start_state, a node that somebody deactivates would be activated again.
    assert handlers[2].kwargs["start_state"] == "configuring"
    assert handlers[2].kwargs["goal_state"] == "inactive"


def test_autostart_waits_for_the_node_and_activates_it_once(autostart):
    starter, graph = autostart
    waiting = proceed(starter.on_start(None, None))
    waiting = proceed(waiting)
    graph.gids = [[1, 2]]
    assert proceed(proceed(waiting)) == 1
    assert activates(starter)
    assert not activates(starter)  # configured by hand later


def test_autostart_does_not_ask_a_killed_process_that_is_still_in_the_graph(autostart):
    starter, graph = autostart
    graph.gids = [[1, 2]]
    waiting = proceed(starter.on_start(None, None))
    waiting = proceed(waiting)
    graph.gids = [[1, 2], [3, 4]]
    assert proceed(proceed(waiting)) == 1
    assert activates(starter)


def test_autostart_stops_waiting_when_the_process_ends(autostart):
    starter, graph = autostart
    waiting = starter.on_start(None, None)
    starter.on_exit(None, None)
    graph.gids = [[1, 2]]
    assert proceed(waiting) == []


def test_without_autostart_there_is_only_the_node(launch_file):
    assert len(bring_up(launch_file, autostart="false")) == 1


def test_real_launch_accepts_the_file():
    if not has_ros_launch():
        # Nothing to load it with: the file must at least be valid Python.
        compile(PATH.read_text(), str(PATH), "exec")
        return
    from launch import LaunchContext

    description = load("policy").generate_launch_description()
    names = {item.name for item in description.get_launch_arguments()}
    assert {"checkpoint", "namespace", "autostart"} <= names
    assert LaunchContext() is not None
