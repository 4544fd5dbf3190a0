"""Policy and executor for one of the robots in config/robots; the driver is yours to start.

    ros2 launch pi05_ros robot.launch.py robot:=ur5e_robotiq checkpoint:=/models/my_ur5e

Arguments are those of policy.launch.py and executor.launch.py; one that both have reaches both.
The executor's parameters, limits and outputs are those of config/robots/<robot>/. Nothing moves
before `~/enable` of the executor is called. docs/robots_bring_up.md has a chapter for each robot.
"""

from pathlib import Path

from launch.action import Action
from launch.actions import (
    DeclareLaunchArgument,
    GroupAction,
    IncludeLaunchDescription,
    OpaqueFunction,
)
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackageShare

from launch import LaunchContext, LaunchDescription
from pi05_ros.resources import config_dir
from pi05_ros.ros.executor_parameters import SPECS as EXECUTOR_SPECS
from pi05_ros.runtime.launch_arguments import (
    is_true,
    log_level,
    parameter_arguments,
    refuse_unknown,
)
from pi05_ros.runtime.robot_folder import RobotFolder, bring_up_robots, robot_folder

POLICY = set(parameter_arguments())
EXECUTOR = set(parameter_arguments(EXECUTOR_SPECS))
# Both nodes have them, or both launch files.
BOTH = {"namespace", "use_sim_time", "log_level", "respawn", "joint_states"}
CAMERAS = {"base_camera", "wrist_camera", "wrist_camera_2"}

# Launch argument -> (default, what it is).
OWN = {
    "robot": ("", f"{', '.join(bring_up_robots())}, or the path of a folder like theirs"),
    "policy": ("true", "start the policy node as well; false: the executor alone"),
    "namespace": ("", "namespace of all nodes and their relative topics"),
    "use_sim_time": ("false", "follow /clock (simulation, bag replay)"),
    "autostart": ("true", "configure and activate the policy node"),
    "log_level": ("info", "of all nodes: debug, info, warn (or warning), error or fatal"),
    "respawn": ("false", "start a process again when it ends"),
    "policy_params_file": (
        "",
        "YAML file of parameters of the policy node; empty: config/policy.yaml",
    ),
    "executor_params_file": ("", "YAML files, separated by commas, that come after the robot's"),
    "calibration": ("", "YAML file that pi05 calibrate-delay has written; for both nodes"),
    "joint_states": ("", "topic, if not joint_states"),
    "base_camera": ("", "topic, if not base_camera/image_raw"),
    "wrist_camera": ("", "topic, if not wrist_camera/image_raw"),
    "wrist_camera_2": ("", "topic, if not wrist_camera_2/image_raw"),
}


def declared() -> dict[str, tuple[str, str]]:
    """Launch argument -> (default, description)."""
    texts = {**parameter_arguments(EXECUTOR_SPECS), **parameter_arguments()}
    parameters = {name: ("", f"{text} Empty: as in the files.") for name, text in texts.items()}
    return {**parameters, **OWN}


def included(launch_file: str, arguments: dict[str, str]) -> GroupAction:
    """Another launch file in a scope of its own, with these arguments and no others."""
    source = PythonLaunchDescriptionSource(
        PathJoinSubstitution([FindPackageShare("pi05_ros"), "launch", launch_file])
    )
    include = IncludeLaunchDescription(source, launch_arguments=list(arguments.items()))
    return GroupAction([include], scoped=True, forwarding=False)


def bring_up(context: LaunchContext) -> list[Action]:
    """All nodes for the given arguments."""
    names = declared()
    refuse_unknown("robot.launch.py", names)
    values = {name: LaunchConfiguration(name).perform(context) for name in names}
    files = robot_folder(values["robot"])
    if values["calibration"] and not Path(values["calibration"]).is_file():
        raise ValueError(f"calibration:={values['calibration']} is not a file")
    nodes: list[Action] = [executor(values, files)]
    if files.joint_states is not None:
        nodes.append(joint_state_names(values, files.joint_states))
    if is_true("policy", values["policy"]):
        nodes.append(policy(values, files))
    return nodes


def executor(values: dict[str, str], files: RobotFolder) -> GroupAction:
    """executor.launch.py with the robot's files."""
    given = {name: values[name] for name in sorted(EXECUTOR | BOTH) if values[name]}
    given.setdefault("limits_file", str(files.limits))
    given.setdefault("outputs_file", str(files.outputs))
    params = [str(files.executor), values["calibration"], values["executor_params_file"]]
    given["params_file"] = ",".join(name for name in params if name)
    return included("executor.launch.py", given)


def policy(values: dict[str, str], files: RobotFolder) -> GroupAction:
    """policy.launch.py with the robot's profile."""
    known = POLICY | BOTH | CAMERAS | {"autostart"}
    given = {name: values[name] for name in sorted(known) if values[name]}
    given["robot"] = files.profile
    params = [values["policy_params_file"] or str(config_dir() / "policy.yaml")]
    given["params_file"] = ",".join([*params, *filter(None, [values["calibration"]])])
    return included("policy.launch.py", given)


def joint_state_names(values: dict[str, str], parameters: Path) -> Node:
    """The node that gives the joints of several arms names of their own."""
    renamed = [("joint_states", values["joint_states"])] if values["joint_states"] else []
    return Node(
        package="pi05_ros",
        executable="joint_state_names_node",
        name="pi05_joint_state_names",
        namespace=values["namespace"],
        parameters=[
            str(parameters),
            {"use_sim_time": is_true("use_sim_time", values["use_sim_time"])},
        ],
        remappings=renamed,
        arguments=["--ros-args", "--log-level", log_level(values["log_level"])],
        respawn=is_true("respawn", values["respawn"]),
        respawn_delay=2.0,
        output="screen",
        emulate_tty=True,
    )


def generate_launch_description() -> LaunchDescription:
    """Arguments, then everything else once their values are known."""
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=text)
        for name, (default, text) in declared().items()
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=bring_up)])
