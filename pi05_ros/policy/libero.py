"""LIBERO's state vector from what its simulator reports (openpi examples/libero)."""

from __future__ import annotations

import math

import numpy as np


def axis_angle(quaternion: np.ndarray) -> np.ndarray:
    """Rotation vector ``[3]`` in radians of a quaternion (x, y, z, w); zero for no rotation."""
    x, y, z, w = (float(v) for v in quaternion)
    w = min(1.0, max(-1.0, w))
    length = math.sqrt(1.0 - w * w)
    if math.isclose(length, 0.0):
        return np.zeros(3)
    return np.array([x, y, z]) * 2.0 * math.acos(w) / length


def libero_state(
    position: np.ndarray, quaternion: np.ndarray, gripper_qpos: np.ndarray
) -> np.ndarray:
    """State ``[8]``: end-effector position (m), axis-angle (rad), two finger positions (m)."""
    return np.concatenate([position, axis_angle(quaternion), gripper_qpos])
