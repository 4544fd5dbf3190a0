"""What the policy looks at: camera pictures, robot state, prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Observation:
    """One moment of the robot.

    Attributes:
        images: camera role ("base", "wrist", "wrist_2", or as `PolicyInfo.camera_roles` says) ->
            RGB picture, uint8 ``[H, W, 3]``. ``[3, H, W]`` and float in [0, 1] are accepted too.
            A role that is absent is a missing camera: the model sees it masked.
        state: joint and gripper values ``[n]``, robot units, in the order of the profile's
            ``state_names``.
        prompt: what to do; None takes the profile's default prompt.

    """

    images: Mapping[str, np.ndarray]
    state: np.ndarray
    prompt: str | None = None
    stamp_ns: int = field(default=0)
    """Time of the oldest sample in it, nanoseconds of the robot's clock; 0 if unknown."""
    age_s: float = field(default=0.0)
    """How long before the inference begins that was; chunks that continue each other need it."""
