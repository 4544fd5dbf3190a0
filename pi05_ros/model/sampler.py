"""Flow sampling: Euler steps from noise at t = 1 to actions at t = 0.

A pure function of a velocity, so that guidance (real-time chunking) is a velocity that wraps
another one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pi05_ros.errors import InvalidValueError
from pi05_ros.model.config import CLOCK_CHOICES

DENOISE_STEPS = 10
"""Default number of Euler steps (that of openpi)."""

Velocity = Callable[[Tensor, float], Tensor]  # x_t [B, H, A], t -> [B, H, A]


def flow_times(steps: int, clock: str = "openpi") -> list[float]:
    """Flow time at the start of each of `steps` Euler steps.

    "openpi" adds -1/N in float32 again and again, which is what pi0_pytorch.py's loop does;
    "exact" is 1 - i/N.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InvalidValueError(f"steps is {steps!r}; accepted: an integer >= 1")
    if clock not in CLOCK_CHOICES:
        raise InvalidValueError(f"clock is {clock!r}; accepted: {', '.join(CLOCK_CHOICES)}")
    if clock == "exact":
        return [1.0 - index / steps for index in range(steps)]
    dt = torch.tensor(-1.0 / steps, dtype=torch.float32)
    t = torch.tensor(1.0, dtype=torch.float32)
    times = []
    for _ in range(steps):
        times.append(float(t))
        t = t + dt
    return times


def flow_sample(velocity: Velocity, noise: Tensor, steps: int, clock: str = "openpi") -> Tensor:
    """Integrate ``dx/dt = velocity(x, t)`` from t = 1 to 0 in equal Euler steps.

    Args:
        velocity: the model's velocity, or a guided one. It points from data to noise.
        noise: x at t = 1, ``[B, H, A]``.
        steps: N.
        clock: see `flow_times`.

    Returns:
        x at t = 0, float32, the shape of noise.

    """
    x = noise.float()
    for t in flow_times(steps, clock):
        x = x - (1.0 / steps) * velocity(x, t)
    return x
