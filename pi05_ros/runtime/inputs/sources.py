"""Names of the sources and their freshness limits, shared by the node and the bag reader."""

from __future__ import annotations

from collections.abc import Sequence

from pi05_ros.runtime.inputs.joint_states import JointStateMerger
from pi05_ros.runtime.inputs.observation_buffer import NS, Inputs, Limits
from pi05_ros.runtime.parameters import ParameterError, PolicyParameters

JOINTS = "joint_states"
_CAMERA_NAMES = {"base": "base_camera", "wrist": "wrist_camera", "wrist_2": "wrist_camera_2"}


def camera_source(role: str) -> str:
    """Source name and topic base name of a camera role."""
    return _CAMERA_NAMES.get(role, f"{role}_camera")


def limits(parameters: PolicyParameters, roles: Sequence[str]) -> Limits:
    """Freshness limits of the parameters in nanoseconds."""
    ages = {camera_source(role): parameters.max_age(source_is_camera=True) for role in roles}
    ages[JOINTS] = parameters.max_age(source_is_camera=False)
    return Limits(
        max_age={name: int(age * NS) for name, age in ages.items()},
        max_skew=int(parameters.max_skew_s * NS),
        future=int(parameters.future_tolerance_s * NS),
        dead=int(parameters.dead_source_timeout_s * NS),
        zero_is_receive_time=parameters.zero_stamps == "receive_time",
        on_change=int(parameters.max_on_change_age_s * NS),
        camera_delay=int(parameters.camera_delay_s * NS),
    )


def make_inputs(
    parameters: PolicyParameters, roles: Sequence[str], joint_names: Sequence[str]
) -> Inputs:
    """Buffers of the cameras and of the joints of a robot.

    Raises:
        ParameterError: on_change_joints names a joint that the robot does not have.

    """
    on_change = [name for name in parameters.on_change_joints if name]
    try:
        joints = JointStateMerger(joint_names, on_change=on_change)
    except ValueError as error:
        raise ParameterError(f"on_change_joints is {on_change}; {error}") from error
    names = [*(camera_source(role) for role in roles), JOINTS]
    return Inputs(names, limits(parameters, roles), joints, JOINTS)
