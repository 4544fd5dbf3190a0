"""Starts task_node, which runs the policy on tasks as the action RunPolicy, and activates it.

    ros2 launch pi05_ros task.launch.py on_take_over:=continue recordings:=~/recordings

With `recordings` the episode recorder is started too. Policy node and executor node are started by
others. `--show-args` lists the arguments.
"""

from launch.action import Action
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode

from launch import LaunchContext, LaunchDescription
from pi05_ros.runtime.launch_arguments import is_true, overrides, refuse_unknown
from pi05_ros.runtime.task.task_parameters import SPECS

PROCESS = {
    "namespace": ("", "namespace of the nodes"),
    "use_sim_time": ("false", "follow /clock (simulation)"),
    "recordings": ("", "folder of recordings; empty: no recorder is started"),
    "recordings_jpeg_quality": (
        "0",
        "raw images are recorded as JPEG of this quality; 0: as pixels",
    ),
}


def bring_up(context: LaunchContext) -> list[Action]:
    """The nodes for the given arguments."""
    names = (*PROCESS, *SPECS)
    refuse_unknown("task.launch.py", names)
    values = {name: LaunchConfiguration(name).perform(context) for name in names}
    common = {
        "autostart": True, "use_sim_time": is_true("use_sim_time", values["use_sim_time"]),
    }  # fmt: skip
    nodes = [node(values, "task_node", "pi05_task", {**common, **overrides(values, SPECS)})]
    if values["recordings"]:
        recorder = {
            name: overrides(values, SPECS)[name]
            for name in ("policy_node", "executor_node")
            if values[name]
        }
        recorder |= {
            "folder": values["recordings"],
            "jpeg_quality": int(values["recordings_jpeg_quality"]),
        }
        name = values["recorder_node"] or SPECS["recorder_node"].default
        nodes.append(node(values, "episode_recorder", name, {**common, **recorder}))
    return nodes


def node(
    values: dict[str, str], executable: str, name: str, parameters: dict[str, object]
) -> LifecycleNode:
    """One of the nodes; it activates itself."""
    return LifecycleNode(
        package="pi05_ros",
        executable=executable,
        name=name,
        namespace=values["namespace"],
        output="screen",
        parameters=[parameters],
    )


def generate_launch_description() -> LaunchDescription:
    """Arguments, then the nodes."""
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=text)
        for name, (default, text) in PROCESS.items()
    ]
    arguments += [
        DeclareLaunchArgument(name, default_value="", description=spec.text)
        for name, spec in SPECS.items()
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=bring_up)])
