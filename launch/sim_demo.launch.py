"""The simulated arm doing a task: driver, policy and executor nodes.

    ros2 launch pi05_ros sim_demo.launch.py task:=push_blue

Remote viewers: the cameras are on base_camera/image_raw and wrist_camera/image_raw.
"""

from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from launch import LaunchDescription
from pi05_ros.sim.shipped import CHECKPOINT


def generate_launch_description() -> LaunchDescription:
    """Three nodes in one namespace."""
    share = FindPackageShare("pi05_ros")
    value = LaunchConfiguration
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "task", default_value="pick_red", description="pick_red, pick_green or push_blue"
            ),
            DeclareLaunchArgument("seed", default_value="0", description="scene"),
            DeclareLaunchArgument(
                "renderer", default_value="", description="egl, osmesa or ray; empty: what works"
            ),
            DeclareLaunchArgument(
                "checkpoint", default_value=str(CHECKPOINT), description="weights of the policy"
            ),
            DeclareLaunchArgument("rate_hz", default_value="4.0", description="inferences/s"),
            DeclareLaunchArgument("denoise_steps", default_value="10", description="flow steps"),
            DeclareLaunchArgument(
                "strategy", default_value="rtc", description="replace, ensemble or rtc"
            ),
            Node(
                package="pi05_ros",
                executable="sim_driver_node",
                name="sim_arm",
                output="screen",
                parameters=[
                    {
                        "task": value("task"),
                        "seed": ParameterValue(value("seed"), value_type=int),
                        "renderer": ParameterValue(value("renderer"), value_type=str),
                    }
                ],
            ),
            Node(
                package="pi05_ros",
                executable="executor_node",
                name="pi05_executor",
                output="screen",
                parameters=[
                    {
                        "limits_file": PathJoinSubstitution(
                            [share, "config", "sim_arm_limits.yaml"]
                        ),
                        "strategy": value("strategy"),
                    }
                ],
            ),
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(
                    PathJoinSubstitution([share, "launch", "policy.launch.py"])
                ),
                launch_arguments={
                    "checkpoint": value("checkpoint"),
                    "robot": "sim_arm",
                    "rate_hz": value("rate_hz"),
                    "denoise_steps": value("denoise_steps"),
                }.items(),
            ),
        ]
    )
