"""Kinematics of the simulated arm; lengths are those of arm.xml.

Inverse for a gripper that points straight down: with joint4 = 0 the arm is a planar two-link chain
turned by joint1.
"""

from __future__ import annotations

import numpy as np

SHOULDER_HEIGHT = 0.16
UPPER_ARM = 0.24
FOREARM = 0.22
WRIST_TO_TIP = 0.135


def inverse(tip: np.ndarray) -> np.ndarray:
    """Joints [6] that bring the tip to ``tip`` [3] (meters), fingers along world y.

    A point out of reach gives the joints for the nearest one in its direction.
    """
    x, y, z = (float(v) for v in tip)
    yaw = np.arctan2(y, x)
    radius = np.hypot(x, y)
    height = z + WRIST_TO_TIP - SHOULDER_HEIGHT
    reach2 = np.clip(radius**2 + height**2, 1e-6, (UPPER_ARM + FOREARM - 1e-3) ** 2)
    cosine = (reach2 - UPPER_ARM**2 - FOREARM**2) / (2 * UPPER_ARM * FOREARM)
    elbow = np.arccos(np.clip(cosine, -1.0, 1.0))
    direction = np.arctan2(radius, height)
    shoulder = direction - np.arctan2(FOREARM * np.sin(elbow), UPPER_ARM + FOREARM * np.cos(elbow))
    return np.array([yaw, shoulder, elbow, 0.0, np.pi - shoulder - elbow, yaw])


def forward(joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Position ``[3]`` (meters) and rotation ``[3, 3]`` of the tip for joints ``[6]`` (rad)."""
    position = np.array([0.0, 0.0, SHOULDER_HEIGHT])
    rotation = np.eye(3)
    for angle, axis, length in zip(
        joints, "zyyzyz", (0.0, UPPER_ARM, FOREARM, 0.0, 0.0, WRIST_TO_TIP), strict=True
    ):
        c, s = np.cos(angle), np.sin(angle)
        turn = (
            [[c, -s, 0], [s, c, 0], [0, 0, 1]]
            if axis == "z"
            else [[c, 0, s], [0, 1, 0], [-s, 0, c]]
        )
        rotation = rotation @ np.array(turn)
        position = position + rotation @ (0.0, 0.0, length)
    return position, rotation
