"""The simulated arm doing a task: driver, policy and executor nodes, and a referee.

The referee prints success, chunk rate and latencies, leaves a video and a plot in `out`, and ends
the launch; with episodes:=0 there is none, and the arm goes on until Ctrl-C. Simulated time waits
for the nodes, so that a slow machine changes nothing; use_sim_time:=false runs in real time.

    ros2 launch pi05_ros sim_demo.launch.py task:=push_blue
    ros2 launch pi05_ros sim_demo.launch.py chunk_mode:=trained kv_reuse:=dynamic
    ros2 launch pi05_ros sim_demo.launch.py namespace:=left use_sim_time:=false

Remote viewers: the cameras are on base_camera/image_raw and wrist_camera/image_raw.
"""

from launch.action import Action
from launch.actions import (
    DeclareLaunchArgument,
    IncludeLaunchDescription,
    OpaqueFunction,
    Shutdown,
)
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from launch import LaunchContext, LaunchDescription
from pi05_ros.execution.strategies import STRATEGIES
from pi05_ros.policy.chunking.kv_reuse import MODES, make_rule
from pi05_ros.runtime.launch_arguments import parameter_arguments, refuse_unknown
from pi05_ros.sim.arm.render import BACKENDS
from pi05_ros.sim.arm.tasks import TASKS
from pi05_ros.sim.training.shipped import CHECKPOINT

# Arguments of this file; those of policy.launch.py reach the policy node as well.
ARGUMENTS = (
    "task", "seed", "episodes", "out", "renderer", "checkpoint", "backend", "precision",
    "namespace", "use_sim_time", "rate_hz", "denoise_steps", "strategy", "chunk_mode", "kv_reuse",
)  # fmt: skip
PROCESS = ("params_file", "autostart", "log_level", "respawn")
# Passed on to policy.launch.py as they are.
POLICY_ARGUMENTS = (
    "checkpoint", "backend", "precision", "rate_hz", "denoise_steps", "chunk_mode", "kv_reuse",
    "namespace", "use_sim_time",
)  # fmt: skip


def check(context: LaunchContext) -> list[Action]:
    """Refuse what the nodes would refuse later, and what does not go together; add the referee."""
    refuse_unknown("sim_demo.launch.py", {*ARGUMENTS, *parameter_arguments(), *PROCESS})
    values = {
        name: LaunchConfiguration(name).perform(context)
        for name in ("kv_reuse", "chunk_mode", "strategy", "episodes", "seed", "out")
    }
    make_rule(values["kv_reuse"])
    if values["chunk_mode"] != "plain" and values["strategy"] != "rtc":
        raise ValueError(
            f"chunk_mode:={values['chunk_mode']} makes chunks that continue each other and have "
            f"to be taken at once: strategy:=rtc, not {values['strategy']}"
        )
    for name in ("episodes", "seed"):
        if not values[name].isdecimal():
            raise ValueError(f"{name}:={values[name]} is not a whole number from 0")
    if int(values["episodes"]) == 0:
        return []
    return [
        Node(
            package="pi05_ros",
            executable="sim_referee_node",
            name="sim_referee",
            namespace=LaunchConfiguration("namespace"),
            output="screen",
            parameters=[
                {
                    "use_sim_time": boolean("use_sim_time"),
                    "episodes": int(values["episodes"]),
                    "seed": int(values["seed"]),
                    "out": ParameterValue(values["out"], value_type=str),
                }
            ],
            on_exit=end,
        )
    ]


def end(event: object, context: LaunchContext) -> list[Action]:
    """End the launch with the referee, unless it is ending: launch fails if it is ended twice."""
    return [] if context.is_shutdown else [Shutdown(reason="the referee has ended")]


def boolean(name: str) -> ParameterValue:
    """Launch argument as a boolean parameter."""
    return ParameterValue(LaunchConfiguration(name), value_type=bool)


def argument(
    name: str, default: str, text: str, choices: tuple[str, ...] = ()
) -> DeclareLaunchArgument:
    """Declare a launch argument; launch refuses other values and lists the choices."""
    return DeclareLaunchArgument(
        name, default_value=default, description=text, choices=list(choices) or None
    )


def generate_launch_description() -> LaunchDescription:
    """Three nodes in one namespace, and the referee."""
    share = FindPackageShare("pi05_ros")
    value = LaunchConfiguration
    return LaunchDescription(
        [
            argument("task", "pick_red", "what the arm is to do", tuple(TASKS)),
            argument("seed", "0", "number of the scene"),
            argument("episodes", "2", "scenes until it ends with a summary; 0: until Ctrl-C"),
            argument("out", "out/sim_demo", "directory of summary, video and plot"),
            argument("renderer", "", "what draws the images", ("", *BACKENDS)),
            argument("checkpoint", str(CHECKPOINT), "weights of the policy"),
            argument("backend", "", "auto, eager, cuda, onnx or tensorrt; empty: auto"),
            argument("precision", "", "auto, fp32, bf16, fp16 or fp8; empty: auto"),
            argument("namespace", "", "of all nodes"),
            argument(
                "use_sim_time",
                "true",
                "simulated time that waits for the nodes; false: real time",
                ("true", "false"),
            ),
            argument("rate_hz", "4.0", "inferences per second"),
            argument("denoise_steps", "0", "flow steps; 0: the checkpoint's own"),
            argument("strategy", "rtc", "use of overlapping chunks", STRATEGIES),
            argument("chunk_mode", "plain", "how a chunk continues the one before", MODES),
            argument("kv_reuse", "1", "1, 2, ... observations per KV cache, or dynamic"),
            OpaqueFunction(function=check),
            Node(
                package="pi05_ros",
                executable="sim_driver_node",
                name="sim_arm",
                namespace=value("namespace"),
                output="screen",
                parameters=[
                    {
                        "lock_step": boolean("use_sim_time"),
                        "chunk_rate_hz": ParameterValue(value("rate_hz"), value_type=float),
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
                namespace=value("namespace"),
                output="screen",
                parameters=[
                    {
                        "use_sim_time": boolean("use_sim_time"),
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
                    "robot": "sim_arm",
                    **{name: value(name) for name in POLICY_ARGUMENTS},
                }.items(),
            ),
        ]
    )
