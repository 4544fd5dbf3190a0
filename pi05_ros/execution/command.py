"""The executor's answer of one control period."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FOLLOWING = "following"
HOLDING = "holding"
WAITING = "waiting"
STOPPED = "stopped"
FAULT = "fault"
TELEOPERATED = "teleoperated"


@dataclass(frozen=True)
class Command:
    """One control period's answer.

    Attributes:
        positions: joint targets ``[n]``; None while nothing may be commanded.
        mode: FOLLOWING, HOLDING, WAITING, STOPPED, FAULT or TELEOPERATED.
        reason: why it is not following, else empty.

    """

    positions: np.ndarray | None
    mode: str
    reason: str
