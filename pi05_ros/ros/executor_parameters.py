"""Parameters of the executor node: one dataclass names, describes, bounds and defaults them.

python -m pi05_ros.ros.executor_parameters --markdown     # the table of docs/executor.md
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pi05_ros.execution.executor_settings import JERK_LIMITING, LIMITING, ExecutorSettings
from pi05_ros.execution.kinematics.pose_ik import PoseSettings
from pi05_ros.execution.strategies import (
    DEFAULT_ENSEMBLE_DECAY,
    DEFAULT_REPLACE_AFTER,
    STRATEGIES,
)
from pi05_ros.runtime.parameter_specs import main, param, specs_of

if TYPE_CHECKING:
    from rclpy.node import Node

TELEOP_TYPES = ("joint_state", "joint_trajectory")
OUTPUTS = ("trajectory", "forward")


@dataclass(frozen=True)
class ExecutorParameters:
    """Every parameter of the executor node; all but speed_scale and hold_chunks are read-only."""

    limits_file: str = param(
        "",
        "YAML with joint_limits: min/max_position, max_velocity, max_acceleration per joint; "
        "numbers it lacks come from moveit_limits_file, then from the robot description.",
    )
    moveit_limits_file: str = param(
        "", "joint_limits.yaml of a MoveIt configuration; limits_file comes first."
    )
    robot_description: str = param(
        "",
        "URDF text whose joint limits are used where the files have none. Empty: if limits are "
        "missing, the latched topic robot_description is waited for.",
    )
    robot_description_timeout_s: float = param(
        5.0, "How long the topic robot_description is waited for.", within=(0.0, 600.0)
    )
    acceleration_time_s: float = param(
        0.1,
        "Where no source has an acceleration limit: seconds to reach full velocity.",
        within=(0.001, 10.0),
    )
    jerk_time_s: float = param(
        0.0,
        "Where no source has a jerk limit: seconds to reach full acceleration. 0: no jerk limit.",
        within=(0.0, 10.0),
    )
    joints: tuple[str, ...] = param(
        (),
        "Joints in command order; empty: those of the limits, in that order, without mimic "
        "joints.",
    )
    gripper_joint: str = param(
        "gripper",
        "Joint that is commanded on gripper_controller/commands; empty: none is set apart.",
    )
    control_rate_hz: float = param(20.0, "Commands per second.", within=(1.0, 1000.0))
    output: str = param(
        "trajectory",
        "Command type: `trajectory` (joint_trajectory_controller) or `forward` "
        "(forward_command_controller).",
        choices=OUTPUTS,
    )
    limiting: str = param(
        ExecutorSettings.limiting,
        "Where velocity or acceleration limits bind: `path` slows time along the chunk's path, "
        "`joint` limits each joint on its own, which leaves the path.",
        choices=LIMITING,
    )
    jerk_limiting: str = param(
        ExecutorSettings.jerk_limiting,
        "Jerk limits, where joints have some (max_jerk, jerk_time_s): `path` slows time along the "
        "path for them, `ruckig` tracks the path with the package ruckig, `off` ignores them.",
        choices=JERK_LIMITING,
    )
    speed_scale_max: float = param(
        ExecutorSettings.speed_scale_max,
        "With limiting path: how fast the arm catches up with the clock, seconds of the path per "
        "second.",
        within=(1.0, 10.0),
    )
    speed_scale: float = param(
        1.0,
        "Part of the speed that is used, by chunks and by teleoperation.",
        dynamic=True,
        within=(0.0, 1.0),
    )
    hold_chunks: bool = param(
        False,
        "Follow no chunks, and forget them: the arm holds. Teleoperation goes on.",
        dynamic=True,
    )
    blend_in_s: float = param(
        ExecutorSettings.blend_in_s,
        "With limiting path: shortest time to get from rest, or from teleoperation, onto a chunk.",
        within=(0.0, 60.0),
    )
    require_enable: bool = param(False, "Follow nothing before `~/enable` is called with true.")
    heartbeat_timeout_s: float = param(
        0.0,
        "Longest silence of `~/heartbeat`; then the arm stops until `~/resume`. 0: none needed.",
        within=(0.0, 60.0),
    )
    tracking_error_time_s: float = param(
        0.5,
        "A joint that is outside the range of its commands of the last 0.5 s by more than "
        "following_lag_s at full velocity for this long is a fault, until `~/resume`. 0: off.",
        within=(0.0, 60.0),
    )
    teleop_type: str = param(
        "joint_state",
        "Type of `~/teleop`: sensor_msgs/JointState or trajectory_msgs/JointTrajectory.",
        choices=TELEOP_TYPES,
    )
    teleop_timeout_s: float = param(
        ExecutorSettings.teleop_timeout_s,
        "Teleoperation that is silent for this long hands the arm back.",
        within=(0.05, 60.0),
    )
    pose_tolerance_m: float = param(
        PoseSettings.tolerance_m,
        "A pose of a chunk that cannot be reached this closely is out of reach: the chunk ends "
        "before it.",
        within=(1e-5, 0.1),
    )
    pose_tolerance_rad: float = param(
        PoseSettings.tolerance_rad, "The same for its rotation.", within=(1e-4, 1.0)
    )
    singularity_slow_below: float = param(
        PoseSettings.slow_below,
        "Chunks of poses: smallest singular value of the Jacobian (m/rad, 1 rad of rotation "
        "counts as 0.2 m) below which the arm slows down, in proportion, to a tenth. 0: never.",
        within=(0.0, 1.0),
    )
    outputs_file: str = param(
        "",
        "YAML list of outputs with their topics and joints, for several arms, grippers and other "
        "controllers; output and gripper_joint do not count then.",
    )
    space_file: str = param(
        "",
        "YAML with what the arm must not touch or leave: boxes, planes, workspaces, its own "
        "links, tool speed. Needs the packages coal and pin, and a robot description. Empty: no "
        "such check.",
    )
    strategy: str = param(
        "replace",
        "Use of overlapping chunks: `replace` after replace_after steps, `ensemble` averages, "
        "`rtc` takes each new chunk at once.",
        choices=STRATEGIES,
    )
    replace_after: int = param(
        DEFAULT_REPLACE_AFTER, "Steps executed of a chunk before it is replaced.", within=(0, 1000)
    )
    ensemble_decay: float = param(
        DEFAULT_ENSEMBLE_DECAY, "m of the weights exp(-m i), i = 0 oldest.", within=(0.0, 100.0)
    )
    max_chunk_age_s: float = param(
        ExecutorSettings.max_chunk_age_s,
        "Chunks whose observation is older are refused.",
        within=(0.01, 60.0),
    )
    max_future_s: float = param(
        ExecutorSettings.max_future_s,
        "Chunks that start farther in the future are refused.",
        within=(0.0, 60.0),
    )
    max_chunk_s: float = param(
        ExecutorSettings.max_chunk_s,
        "Chunks whose steps last longer in all are refused.",
        within=(0.1, 600.0),
    )
    max_state_age_s: float = param(
        ExecutorSettings.max_state_age_s,
        "Joint states older than this stop the motion.",
        within=(0.01, 60.0),
    )
    on_change_joints: tuple[str, ...] = param(
        (),
        "Joints whose publisher speaks only when they change (some grippers): their age does not "
        "count.",
    )
    following_lag_s: float = param(
        ExecutorSettings.following_lag_s,
        "How far a joint may be from its commands, as a time at its full velocity. An arm at rest "
        "that is farther for 0.5 s was moved by somebody else: it is released.",
        within=(0.01, 60.0),
    )
    command_delay_s: float = param(
        0.0,
        "From a command to the joint states that show it, as `pi05 calibrate-delay` measures it: "
        "chunks are followed so much earlier. Leave it at 0 if the actions of the training data "
        "are commands to a robot that lags as much.",
        within=(0.0, 1.0),
    )
    allow_random_weights: bool = param(
        False, "Execute chunks of random weights. Only for a simulation."
    )


SPECS = specs_of(ExecutorParameters)


def declare(node: Node) -> ExecutorParameters:
    """Declare all parameters and return their values.

    Raises:
        ParameterError: a value that is not accepted; the message names the accepted ones.

    """
    from pi05_ros.ros import parameter_server

    return parameter_server.declare(node, ExecutorParameters)


if __name__ == "__main__":
    sys.exit(main(SPECS, "executor node"))
