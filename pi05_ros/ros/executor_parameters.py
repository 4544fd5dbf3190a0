"""Parameters of the executor node: one dataclass names, describes, bounds and defaults them."""

from __future__ import annotations

from dataclasses import Field, dataclass, field, fields
from typing import Any

from rclpy.node import Node

from pi05_ros.policy.execution.executor import ExecutorSettings
from pi05_ros.policy.execution.strategies import (
    DEFAULT_ENSEMBLE_DECAY,
    DEFAULT_REPLACE_AFTER,
    STRATEGIES,
)
from pi05_ros.ros.parameter_server import descriptor
from pi05_ros.ros.parameters import ParameterError, Spec

OUTPUTS = ("trajectory", "forward")


def _param(default: Any, text: str, **rules: Any) -> Any:
    return field(default=default, metadata={"text": text, "rules": rules})


@dataclass(frozen=True)
class ExecutorParameters:
    """Every parameter of the executor node, all read-only."""

    limits_file: str = _param(
        "",
        "YAML with joint_limits as MoveIt writes it: min/max_position, max_velocity, "
        "max_acceleration per joint. Needed unless robot_description is given.",
    )
    robot_description: str = _param(
        "", "URDF text whose joint limits are used when limits_file is empty."
    )
    acceleration_time_s: float = _param(
        0.1,
        "With a URDF, which has no acceleration limits: seconds to reach full velocity.",
        low=0.001,
        high=10.0,
    )
    joints: tuple[str, ...] = _param(
        (), "Joints in command order; empty: those of the limits, in that order."
    )
    gripper_joint: str = _param(
        "gripper",
        "Joint that is commanded on gripper_controller/commands; empty: none is set apart.",
    )
    control_rate_hz: float = _param(20.0, "Commands per second.", low=1.0, high=1000.0)
    output: str = _param(
        "trajectory",
        "Command type: `trajectory` (joint_trajectory_controller) or `forward` "
        "(forward_command_controller).",
        choices=OUTPUTS,
    )
    strategy: str = _param(
        "replace",
        "Use of overlapping chunks: `replace` after replace_after steps, `ensemble` averages, "
        "`rtc` takes each new chunk at once.",
        choices=STRATEGIES,
    )
    replace_after: int = _param(
        DEFAULT_REPLACE_AFTER, "Steps executed of a chunk before it is replaced.", low=0, high=1000
    )
    ensemble_decay: float = _param(
        DEFAULT_ENSEMBLE_DECAY, "m of the weights exp(-m i), i = 0 oldest.", low=0.0, high=100.0
    )
    max_chunk_age_s: float = _param(
        ExecutorSettings.max_chunk_age_s,
        "Chunks whose observation is older are refused.",
        low=0.01,
        high=60.0,
    )
    max_future_s: float = _param(
        ExecutorSettings.max_future_s,
        "Chunks that start farther in the future are refused.",
        low=0.0,
        high=60.0,
    )
    max_state_age_s: float = _param(
        ExecutorSettings.max_state_age_s,
        "Joint states older than this stop the motion.",
        low=0.01,
        high=60.0,
    )
    allow_random_weights: bool = _param(
        False, "Execute chunks of random weights. Only for a simulation."
    )


def _spec(item: Field[Any]) -> Spec:
    kind = tuple if isinstance(item.default, tuple) else type(item.default)
    return Spec(
        item.name, kind, item.default, item.metadata["text"], True, **item.metadata["rules"]
    )


SPECS = {item.name: _spec(item) for item in fields(ExecutorParameters)}


def declare(node: Node) -> ExecutorParameters:
    """Declare all parameters and return their values.

    Raises:
        ParameterError: a value that is not accepted; the message names the accepted ones.

    """
    values: dict[str, Any] = {}
    for spec in SPECS.values():
        override = node._parameter_overrides.get(spec.name)
        value = spec.default if override is None or override.value is None else override.value
        if spec.kind is tuple:
            value = tuple(item for item in value if item)
        values[spec.name] = spec.convert(value)
        shown = list(values[spec.name]) or [""] if spec.kind is tuple else values[spec.name]
        node.declare_parameter(spec.name, shown, descriptor(spec), ignore_override=True)
    parameters = ExecutorParameters(**values)
    if not parameters.limits_file and not parameters.robot_description:
        raise ParameterError(
            "limits_file is empty; accepted: a YAML file with joint_limits, or the parameter "
            "robot_description"
        )
    return parameters
