"""Robot conventions to model conventions and back, in pure functions (openpi transforms.py).

Order on the way in: units, ALOHA maths, normalize, prompt, pad.
Order on the way out: un-normalize, delta -> absolute, slice, ALOHA maths, clip, threshold, units.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pi05_ros.policy.robots.profile import RobotProfile
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


def state_to_model(profile: RobotProfile, state: np.ndarray) -> np.ndarray:
    """State ``[n]`` in robot-side units to the model's numbers, not yet normalized.

    Float64 if any column is converted, else of the state's own type.
    """
    out = np.array(state, copy=True)
    mapped = [(i, m) for i, m in enumerate(profile.state_maps) if not m.identity]
    if mapped:
        out = out.astype(np.float64)
    for i, unit_map in mapped:
        out[..., i] = unit_map.to_model(out[..., i])
    return aloha_state_to_pi(out) if profile.adapt == "aloha" else out


def actions_from_model(
    profile: RobotProfile, actions: np.ndarray, model_state: np.ndarray
) -> np.ndarray:
    """Un-normalized model actions ``[H, >= A]`` to robot commands ``[H, A]``.

    Args:
        profile: the robot.
        actions: in the model's numbers.
        model_state: `state_to_model` of the observation that these actions answer.

    """
    out = delta_to_absolute(actions, model_state, profile.delta_mask)
    out = out[..., : len(profile.action_names)]
    if profile.adapt == "aloha":
        out = aloha_actions_from_pi(out)
    mapped = [(i, m) for i, m in enumerate(profile.action_maps) if not m.identity]
    if mapped:
        out = out.astype(np.float64)
    for i, unit_map in mapped:
        out[..., i] = unit_map.command(out[..., i])
    return out
