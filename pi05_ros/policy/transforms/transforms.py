"""Robot conventions to model conventions and back, in pure functions (openpi transforms.py).

Order on the way in: gripper convention, ALOHA maths, normalize, prompt, pad.
Order on the way out: un-normalize, delta -> absolute, slice, ALOHA maths, gripper convention.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pi05_ros.policy.robots.profile import Gripper, RobotProfile
from pi05_ros.policy.transforms.aloha import aloha_actions_from_pi, aloha_state_to_pi


def delta_to_absolute(actions: np.ndarray, state: np.ndarray, mask: Sequence[bool]) -> np.ndarray:
    """Add the state ``[n]`` to every step of actions ``[..., H, A]`` where mask is True."""
    out = np.array(actions, copy=True)
    k = len(mask)
    out[..., :k] += np.where(np.asarray(mask, dtype=bool), np.asarray(state)[..., None, :k], 0)
    return out


def absolute_to_delta(actions: np.ndarray, state: np.ndarray, mask: Sequence[bool]) -> np.ndarray:
    """Inverse of `delta_to_absolute`: what training does to recorded actions."""
    out = np.array(actions, copy=True)
    k = len(mask)
    out[..., :k] -= np.where(np.asarray(mask, dtype=bool), np.asarray(state)[..., None, :k], 0)
    return out


def pad_to(values: np.ndarray, size: int) -> np.ndarray:
    """Zeros behind the last axis up to ``size``; longer vectors stay as they are."""
    missing = size - values.shape[-1]
    if missing <= 0:
        return values
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, missing)])


def gripper_to_model(value: np.ndarray, gripper: Gripper) -> np.ndarray:
    """Robot's gripper value to the model's convention; linear, not clipped."""
    share = (value - gripper.robot_open) / (gripper.robot_closed - gripper.robot_open)
    return gripper.model_open + share * (gripper.model_closed - gripper.model_open)


def gripper_from_model(value: np.ndarray, gripper: Gripper) -> np.ndarray:
    """Inverse of `gripper_to_model`."""
    share = (value - gripper.model_open) / (gripper.model_closed - gripper.model_open)
    return gripper.robot_open + share * (gripper.robot_closed - gripper.robot_open)


def state_to_model(profile: RobotProfile, state: np.ndarray) -> np.ndarray:
    """State ``[n]`` in robot units to the model's conventions, not yet normalized."""
    out = np.array(state, copy=True)
    for gripper in profile.grippers:
        if gripper.state is not None:
            i = profile.state_names.index(gripper.state)
            out[..., i] = gripper_to_model(out[..., i], gripper)
    return aloha_state_to_pi(out) if profile.adapt == "aloha" else out


def actions_from_model(
    profile: RobotProfile, actions: np.ndarray, model_state: np.ndarray
) -> np.ndarray:
    """Un-normalized model actions ``[H, >= A]`` to robot commands ``[H, A]``.

    Args:
        profile: the robot.
        actions: in model conventions.
        model_state: `state_to_model` of the observation that these actions answer.

    """
    out = delta_to_absolute(actions, model_state, profile.delta_mask)
    out = out[..., : len(profile.action_names)]
    if profile.adapt == "aloha":
        out = aloha_actions_from_pi(out)
    for gripper in profile.grippers:
        if gripper.action is not None:
            i = profile.action_names.index(gripper.action)
            out[..., i] = gripper_from_model(out[..., i], gripper)
    return out
