"""Starts executor_node, which turns action chunks into commands of a robot's controllers.

    ros2 launch pi05_ros executor.launch.py limits_file:=limits.yaml outputs_file:=outputs.yaml

An argument that is left empty keeps the value of params_file, or the default. `--show-args` lists
them all. robot.launch.py starts it together with the policy, with the files of a shipped robot.
"""

from launch.action import Action
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchContext, LaunchDescription
from pi05_ros.ros.executor_parameters import SPECS
from pi05_ros.runtime.launch_arguments import (
    is_true,
    log_level,
    overrides,
    parameter_arguments,
    parameter_files,
    refuse_second_include,
    refuse_unknown,
)

# Launch argument -> topic that it replaces. Those of commands are in outputs_file.
TOPICS = {"joint_states": "joint_states", "action_chunk": "pi05_policy/action_chunk"}

# Launch argument -> (default, what it is).
PROCESS = {
    "namespace": ("", "namespace of the node and its relative topics"),
    "params_file": (
        "",
        "YAML files of parameters, separated by commas, keyed by /**; later ones win",
    ),
    "use_sim_time": ("false", "follow /clock (simulation, bag replay)"),
    "log_level": ("info", "debug, info, warn (or warning), error or fatal"),
    "respawn": ("false", "start the process again when it ends"),
}


def declared() -> dict[str, tuple[str, str]]:
    """Launch argument -> (default, description)."""
    return {
        **PROCESS,
        **{
            name: ("", f"{text} Empty: as in params_file.")
            for name, text in parameter_arguments(SPECS).items()
        },
        **{name: ("", f"topic, if not {topic}") for name, topic in TOPICS.items()},
    }


def bring_up(context: LaunchContext) -> list[Action]:
    """The node for the given arguments."""
    names = declared()
    refuse_unknown("executor.launch.py", names)
    refuse_second_include(context.launch_configurations, "executor.launch.py")
    values = {name: LaunchConfiguration(name).perform(context) for name in names}
    files = parameter_files(values["params_file"])
    return [
        Node(
            package="pi05_ros",
            executable="executor_node",
            name="pi05_executor",
            namespace=values["namespace"],
            parameters=[
                *files,
                {
                    **overrides(values, SPECS),
                    "use_sim_time": is_true("use_sim_time", values["use_sim_time"]),
                },
            ],
            remappings=[(topic, values[name]) for name, topic in TOPICS.items() if values[name]],
            arguments=["--ros-args", "--log-level", log_level(values["log_level"])],
            respawn=is_true("respawn", values["respawn"]),
            respawn_delay=2.0,
            output="screen",
            emulate_tty=True,
        )
    ]


def generate_launch_description() -> LaunchDescription:
    """Arguments, then the node once their values are known."""
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=text)
        for name, (default, text) in declared().items()
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=bring_up)])
