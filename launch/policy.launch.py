"""Starts policy_node and, with autostart, takes it to the active state.

    ros2 launch pi05_ros policy.launch.py checkpoint:=/path/to/checkpoint robot:=ur5e

An argument that is left empty keeps the value of params_file. `--show-args` lists them all.
"""

from typing import Any

from launch.action import Action
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    OpaqueFunction,
    RegisterEventHandler,
    TimerAction,
)
from launch.event_handlers import OnProcessExit, OnProcessStart
from launch.events import matches_action
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import LifecycleNode
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from launch_ros.ros_adapters import get_ros_node
from launch_ros.substitutions import FindPackageShare
from lifecycle_msgs.msg import Transition

from launch import LaunchContext, LaunchDescription
from pi05_ros.runtime.launch_arguments import (
    is_true,
    log_level,
    overrides,
    parameter_arguments,
    parameter_files,
    refuse_second_include,
    refuse_unknown,
)

# Launch argument -> topic that it replaces.
TOPICS = {
    "base_camera": "base_camera/image_raw",
    "wrist_camera": "wrist_camera/image_raw",
    "wrist_camera_2": "wrist_camera_2/image_raw",
    "joint_states": "joint_states",
}

# Launch argument -> (default, what it is).
PROCESS = {
    "namespace": ("", "namespace of the node and its relative topics"),
    "params_file": (
        PathJoinSubstitution([FindPackageShare("pi05_ros"), "config", "policy.yaml"]),
        "YAML files of parameters, separated by commas, keyed by /**; later ones win",
    ),
    "use_sim_time": ("false", "follow /clock (simulation, bag replay)"),
    "autostart": ("true", "configure and activate when the process starts"),
    "log_level": ("info", "debug, info, warn (or warning), error or fatal"),
    "respawn": ("false", "start the process again when it ends"),
}


def remappings(values: dict[str, str]) -> list[tuple[str, str]]:
    """Remap rules of the topics that were named; compressed images follow their raw topic."""
    rules = []
    for argument, topic in TOPICS.items():
        given = values[argument]
        if given:
            rules.append((topic, given))
            if topic.endswith("image_raw"):
                rules.append((f"{topic}/compressed", f"{given}/compressed"))
    return rules


class Autostart:
    """Configures and activates every new process once; later transitions are the user's.

    A process that was killed stays in the DDS graph for up to 20 s, and its change_state service
    would swallow the request to the one that replaces it. So the request waits for a
    transition_event publisher that was not there when the process started.
    """

    PERIOD_S = 0.5

    def __init__(self, node: LifecycleNode) -> None:
        self.node = node
        self.known: set[bytes] = set()
        self.process = 0  # counts starts and exits; waiting for an earlier process ends
        self.activate_due = False

    def actions(self) -> list[Action]:
        """Event handlers, to be registered before the node."""
        return [
            RegisterEventHandler(OnProcessStart(target_action=self.node, on_start=self.on_start)),
            RegisterEventHandler(OnProcessExit(target_action=self.node, on_exit=self.on_exit)),
            RegisterEventHandler(
                OnStateTransition(
                    target_lifecycle_node=self.node,
                    start_state="configuring",
                    goal_state="inactive",
                    entities=[OpaqueFunction(function=self.on_configured)],
                )
            ),
        ]

    def on_start(self, event: object, context: LaunchContext) -> list[Action]:
        """Process started: wait for its node."""
        self.process += 1
        self.activate_due = True
        self.known = self.publishers(context)
        return [self.later(OpaqueFunction(function=self.wait, args=[self.process]))]

    def on_exit(self, event: object, context: LaunchContext) -> list[Action]:
        """Process ended: nothing is waited for any more, so launch can end too."""
        self.process += 1
        return []

    def wait(self, context: LaunchContext, process: int) -> list[Action]:
        """Request configure once the node is there; services follow publishers at once."""
        if process != self.process:
            return []
        if self.publishers(context) - self.known:
            return [self.later(self.request(Transition.TRANSITION_CONFIGURE))]
        return [self.later(OpaqueFunction(function=self.wait, args=[process]))]

    def on_configured(self, context: LaunchContext) -> list[Action]:
        """Activate after the first configure of a process, not after those of a human."""
        if not self.activate_due:
            return []
        self.activate_due = False
        return [self.request(Transition.TRANSITION_ACTIVATE)]

    def publishers(self, context: LaunchContext) -> set[bytes]:
        """Ids of the publishers of the node's transition_event topic."""
        topic = f"{self.node.node_name}/transition_event"
        found = get_ros_node(context).get_publishers_info_by_topic(topic)
        return {bytes(item.endpoint_gid) for item in found}

    def later(self, action: Action) -> TimerAction:
        """Do something one period from now."""
        return TimerAction(period=self.PERIOD_S, actions=[action])

    def request(self, transition: int) -> EmitEvent:
        """Ask the node for a transition."""
        return EmitEvent(
            event=ChangeState(
                lifecycle_node_matcher=matches_action(self.node), transition_id=transition
            )
        )


def bring_up(context: LaunchContext) -> list[Action]:
    """Node and event handlers for the given arguments."""
    names = declared()
    refuse_unknown("policy.launch.py", names)
    refuse_second_include(context.launch_configurations, "policy.launch.py")
    values = {name: LaunchConfiguration(name).perform(context) for name in names}
    files = parameter_files(values["params_file"])
    node = LifecycleNode(
        package="pi05_ros",
        executable="policy_node",
        name="pi05_policy",
        namespace=values["namespace"],
        parameters=[
            *files,
            {**overrides(values), "use_sim_time": is_true("use_sim_time", values["use_sim_time"])},
        ],
        remappings=remappings(values),
        arguments=["--ros-args", "--log-level", log_level(values["log_level"])],
        respawn=is_true("respawn", values["respawn"]),
        respawn_delay=2.0,
        output="screen",
        emulate_tty=True,
    )
    handlers = Autostart(node).actions() if is_true("autostart", values["autostart"]) else []
    return [*handlers, node]


def declared() -> dict[str, tuple[Any, str]]:
    """Launch argument -> (default, description)."""
    return {
        **PROCESS,
        **{
            name: ("", f"{text} Empty: as in params_file.")
            for name, text in parameter_arguments().items()
        },
        **{name: ("", f"topic, if not {topic}") for name, topic in TOPICS.items()},
    }


def generate_launch_description() -> LaunchDescription:
    """Arguments, then everything else once their values are known."""
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=text)
        for name, (default, text) in declared().items()
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=bring_up)])
