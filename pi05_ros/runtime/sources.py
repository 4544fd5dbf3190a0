"""Names of the sources and their freshness limits, shared by the node and the bag reader."""

from __future__ import annotations

from collections.abc import Sequence

from pi05_ros.runtime.observation_buffer import NS, Limits
from pi05_ros.runtime.parameters import PolicyParameters

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
    )
