"""Real-time chunking: how strongly each action of a chunk is tied to the chunk before.

The sampling itself (guided velocities, frozen prefixes) is `pi05_ros.model.guidance`; engines run
it. Here are the weights, which come from delay and horizon.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pi05_ros.errors import InvalidValueError

SCHEDULES = ("zeros", "ones", "linear", "exp")


def guidance_weights(schedule: str, horizon: int, delay: int, end: int) -> Tensor:
    """How strongly each action of the new chunk is tied to the previous one, float32 ``[H]``.

    Args:
        schedule: "zeros": only the first ``delay`` actions; "ones": all before ``end``;
            "linear", "exp": falling from ``delay`` to ``end``.
        horizon: H.
        delay: actions that will have been executed when the new chunk arrives.
        end: first action that is free. The paper takes H - s for s executed steps, LeRobot its
            ``execution_horizon``.

    Raises:
        ValueError: unknown schedule or negative numbers.

    """
    if schedule not in SCHEDULES:
        raise InvalidValueError(f"schedule {schedule!r}; accepted: {', '.join(SCHEDULES)}")
    if delay < 0 or end < 0 or horizon < 1:
        raise InvalidValueError(
            f"delay {delay}, end {end} and horizon {horizon} must not be negative"
        )
    end = min(end, horizon)
    start = min(delay, end)
    i = torch.arange(horizon, dtype=torch.float32)
    if schedule == "zeros":
        return (i < start).float()
    if schedule == "ones":
        return (i < end).float()
    fall = ((end - i) / (end - start + 1)).clamp(0.0, 1.0)
    if schedule == "exp":
        fall = fall * torch.expm1(fall) / math.expm1(1.0)
    weights = torch.where(i < start, torch.ones_like(i), fall)
    return torch.where(i < end, weights, torch.zeros_like(i))
