"""ALOHA to pi conventions and back (openpi policies/aloha_policy.py, adapt_to_pi).

ALOHA's base model data has other joint signs, and its grippers are measured as a linear travel
while the Trossen arms of the pi data report the servo angle.
"""

from __future__ import annotations

import numpy as np

JOINT_SIGNS = np.array([1, -1, -1, 1, 1, 1, 1, 1, -1, -1, 1, 1, 1, 1], dtype=np.float64)
GRIPPERS = (6, 13)
# Finger travel of ALOHA's normalized gripper, meters.
_TRAVEL = (0.01844, 0.05800)
# Servo horn and linkage lengths, meters.
_HORN, _LINK = 0.022, 0.036
# Servo angle of the pi gripper's 0 and 1, radians.
_PI_ANGLE = (0.5476, 1.6296)
# Servo angle of ALOHA's commanded 0 and 1, radians.
_COMMAND_ANGLE = (-0.6213, 1.4910)


def aloha_gripper_to_pi(value: np.ndarray) -> np.ndarray:
    """ALOHA's normalized gripper position to the pi model's normalized servo angle."""
    travel = np.asarray(value) * (_TRAVEL[1] - _TRAVEL[0]) + _TRAVEL[0]
    sine = (_HORN**2 + travel**2 - _LINK**2) / (2 * _HORN * travel)
    angle = np.arcsin(np.clip(sine, -1.0, 1.0))
    return (angle - _PI_ANGLE[0]) / (_PI_ANGLE[1] - _PI_ANGLE[0])


def aloha_gripper_from_pi(value: np.ndarray) -> np.ndarray:
    """Model's gripper action to ALOHA's command.

    openpi does not scale by the pi range here: the model's actions are already radians.
    """
    low, high = _COMMAND_ANGLE
    return (np.asarray(value) + _PI_ANGLE[0] - low) / (high - low)


def aloha_state_to_pi(state: np.ndarray) -> np.ndarray:
    """ALOHA's state ``[14]`` in pi conventions, float64."""
    out = np.asarray(state, dtype=np.float64) * JOINT_SIGNS
    out[..., GRIPPERS] = aloha_gripper_to_pi(out[..., GRIPPERS])
    return out


def aloha_actions_from_pi(actions: np.ndarray) -> np.ndarray:
    """Model's actions ``[..., 14]`` as ALOHA commands, float64."""
    out = np.asarray(actions, dtype=np.float64) * JOINT_SIGNS
    out[..., GRIPPERS] = aloha_gripper_from_pi(out[..., GRIPPERS])
    return out
