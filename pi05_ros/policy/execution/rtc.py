"""Real-time chunking: sample a chunk that continues the one being executed.

Guided inference (Black, Galliker, Levine 2025, "Real-Time Execution of Action Chunking Flow
Policies"; reference code: Kinetix repository of the authors) and training-time conditioning on a
decided prefix (arXiv 2512.05964). Everything is in normalised action space and in openpi's time
convention: t = 1 is noise, t = 0 data, so the estimate of the clean chunk is x - t * v.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from pi05_ros.model.sampler import Velocity, flow_times

SCHEDULES = ("zeros", "ones", "linear", "exp")
CORRECTIONS = ("vjp", "identity")
MAX_GUIDANCE = 10.0
"""Default clip of the guidance gain: LeRobot's; Kinetix uses 5."""


class TokenVelocity(Protocol):
    """Velocity that also takes one time per action, as `Pi05.velocity` does."""

    def __call__(self, x_t: Tensor, t: float | Tensor) -> Tensor:
        """x_t ``[B, H, A]``, t a float or ``[B, H]`` -> ``[B, H, A]``."""


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
        raise ValueError(f"schedule {schedule!r}; accepted: {', '.join(SCHEDULES)}")
    if delay < 0 or end < 0 or horizon < 1:
        raise ValueError(f"delay {delay}, end {end} and horizon {horizon} must not be negative")
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


def guidance_gain(t: float, most: float = MAX_GUIDANCE) -> float:
    """``min(most, (t^2 + (1-t)^2) / (t (1-t)))``; ``most`` at both ends of the flow."""
    if t <= 0.0 or t >= 1.0:
        return most
    return min(most, (t * t + (1 - t) * (1 - t)) / (t * (1 - t)))


def guided(
    velocity: Velocity,
    previous: Tensor,
    weights: Tensor,
    correction: str = "vjp",
    most: float = MAX_GUIDANCE,
) -> Velocity:
    """Velocity that pulls the clean estimate towards the previous chunk.

    Args:
        velocity: the model's.
        previous: ``[B, H, A]`` or ``[H, A]``: row 0 is the action at the time of the new
            observation; zeros where the previous chunk has ended.
        weights: ``[H]``, see `guidance_weights`.
        correction: "vjp" sends the error back through the network (paper); "identity" leaves the
            Jacobian out (what LeRobot does), which needs no autograd.
        most: clip of the gain.

    """
    if correction not in CORRECTIONS:
        raise ValueError(f"correction {correction!r}; accepted: {', '.join(CORRECTIONS)}")

    def step(x_t: Tensor, t: float) -> Tensor:
        w = weights.to(x_t.device)[:, None]
        target = previous.to(x_t)
        if correction == "identity":
            v = velocity(x_t, t)
            pull = w * (target - (x_t - t * v))
        else:
            with torch.enable_grad():
                x = x_t.detach().requires_grad_(True)
                v = velocity(x, t)
                clean = x - t * v
                error = (w * (target - clean)).detach()
                (pull,) = torch.autograd.grad(clean, x, error)
            v = v.detach()
        return v - guidance_gain(float(t), most) * pull

    return step


def sample_decided(
    velocity: TokenVelocity,
    noise: Tensor,
    previous: Tensor,
    decided: int,
    steps: int,
    clock: str = "openpi",
) -> Tensor:
    """Sample with the first ``decided`` actions given, for weights trained that way.

    Args:
        velocity: the model's; it gets time 0 for decided actions.
        noise: ``[B, H, A]``.
        previous: ``[B, H, A]`` or ``[H, A]``, as in `guided`.
        decided: d, 0..H.
        steps: Euler steps.
        clock: see `flow_times`.

    Returns:
        ``[B, H, A]`` float32 whose first d actions equal ``previous``.

    """
    B, H, _ = noise.shape
    if not 0 <= decided <= H:
        raise ValueError(f"decided is {decided}; accepted: 0 to {H}")
    given = (torch.arange(H, device=noise.device) < decided)[None, :, None]
    target = previous.to(noise.device, torch.float32).expand(noise.shape)
    x = noise.float()
    for t in flow_times(steps, clock):
        x = torch.where(given, target, x)
        times = torch.full((B, H), t, dtype=torch.float32, device=x.device)
        x = x - (1.0 / steps) * velocity(x, times.masked_fill(given[..., 0], 0.0))
    return torch.where(given, target, x)
