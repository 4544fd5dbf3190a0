"""Observation in, action chunk out: robot profiles, transforms, prompt, chunk strategies."""

from pi05_ros.policy.chunk import ActionChunk, ActionMeaning, ActionUnit, StageTimings
from pi05_ros.policy.errors import PolicyError, RobotProfileError
from pi05_ros.policy.observation import Observation
from pi05_ros.policy.policy import Policy, PolicyInfo
from pi05_ros.policy.profile import RobotProfile
from pi05_ros.policy.profile_yaml import available_robots, load_profile
from pi05_ros.policy.resources import config_dir

__all__ = [
    "ActionChunk",
    "ActionMeaning",
    "ActionUnit",
    "Observation",
    "Policy",
    "PolicyError",
    "PolicyInfo",
    "RobotProfile",
    "RobotProfileError",
    "StageTimings",
    "available_robots",
    "config_dir",
    "load_profile",
]
