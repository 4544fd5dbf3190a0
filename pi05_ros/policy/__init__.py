"""Observation in, action chunk out: robot profiles, transforms, prompt, chunk strategies.

`Policy` is imported on first use: it brings torch, which the executor and the profiles do without.
"""

from typing import TYPE_CHECKING, Any

from pi05_ros.policy.errors import PolicyError, RobotProfileError
from pi05_ros.policy.interface import (
    ActionChunk,
    ActionMeaning,
    ActionUnit,
    Observation,
    PolicyInfo,
    StageTimings,
)
from pi05_ros.policy.policy_config import PolicyConfig
from pi05_ros.policy.robots.profile import RobotProfile
from pi05_ros.policy.robots.profile_yaml import available_robots, load_profile
from pi05_ros.resources import config_dir

if TYPE_CHECKING:
    from pi05_ros.policy.policy import Policy

__all__ = [
    "ActionChunk",
    "ActionMeaning",
    "ActionUnit",
    "Observation",
    "Policy",
    "PolicyConfig",
    "PolicyError",
    "PolicyInfo",
    "RobotProfile",
    "RobotProfileError",
    "StageTimings",
    "available_robots",
    "config_dir",
    "load_profile",
]


def __getattr__(name: str) -> Any:
    if name == "Policy":
        from pi05_ros.policy import policy

        return getattr(policy, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
