"""Starts task_node, which runs the policy on tasks as the action RunPolicy, and activates it.

    ros2 launch pi05_ros task.launch.py on_take_over:=continue

Policy node and executor node are started by others. `--show-args` lists the arguments.
"""

from launch.action import Action
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode

from launch import LaunchContext, LaunchDescription
from pi05_ros.runtime.launch_arguments import is_true, overrides, refuse_unknown
from pi05_ros.runtime.task.task_parameters import SPECS

PROCESS = {
    "namespace": ("", "namespace of the node"),
    "use_sim_time": ("false", "follow /clock (simulation)"),
}


def bring_up(context: LaunchContext) -> list[Action]:
    """The node for the given arguments."""
    names = (*PROCESS, *SPECS)
    refuse_unknown("task.launch.py", names)
    values = {name: LaunchConfiguration(name).perform(context) for name in names}
    return [
        LifecycleNode(
            package="pi05_ros",
            executable="task_node",
            name="pi05_task",
            namespace=values["namespace"],
            output="screen",
            parameters=[
                {
                    "autostart": True,
                    **overrides(values, SPECS),
                    "use_sim_time": is_true("use_sim_time", values["use_sim_time"]),
                }
            ],
        )
    ]


def generate_launch_description() -> LaunchDescription:
    """Arguments, then the node."""
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=text)
        for name, (default, text) in PROCESS.items()
    ]
    arguments += [
        DeclareLaunchArgument(name, default_value="", description=spec.text)
        for name, spec in SPECS.items()
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=bring_up)])
