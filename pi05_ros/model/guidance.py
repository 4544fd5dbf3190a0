"""Velocities and samplers that continue a given chunk (real-time chunking).

Guided inference (Black, Galliker, Levine 2025, "Real-Time Execution of Action Chunking Flow
Policies"; reference code: Kinetix repository of the authors) and training-time conditioning on a
frozen prefix (arXiv 2512.05964). Everything is in normalized action space and in openpi's time
convention: t = 1 is noise, t = 0 data, so the estimate of the clean chunk is x - t * v.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from pi05_ros.errors import InvalidValueError
from pi05_ros.model.sampler import Velocity, flow_times

CORRECTIONS = ("vjp", "vjp-scaled", "identity")
MAX_GUIDANCE = 10.0
"""Default clip of the guidance gain: LeRobot's; Kinetix uses 5."""
MIN_RESPONSE = 0.2
"""Smallest response of the clean estimate that "vjp-scaled" divides by."""


class TokenVelocity(Protocol):
    """Velocity that also takes one time per action, as `Pi05.velocity` does."""

    def __call__(self, x_t: Tensor, t: float | Tensor) -> Tensor:
        """x_t ``[B, H, A]``, t a float or ``[B, H]`` -> ``[B, H, A]``."""


def guidance_gain(t: float, max_gain: float = MAX_GUIDANCE) -> float:
    """``min(max_gain, (t^2 + (1-t)^2) / (t (1-t)))``; ``max_gain`` at both ends of the flow."""
    if t <= 0.0 or t >= 1.0:
        return max_gain
    return min(max_gain, (t * t + (1 - t) * (1 - t)) / (t * (1 - t)))


def guided(
    velocity: Velocity,
    previous: Tensor,
    weights: Tensor,
    correction: str = "vjp",
    max_gain: float = MAX_GUIDANCE,
) -> Velocity:
    """Velocity that pulls the clean estimate towards the previous chunk.

    Args:
        velocity: the model's.
        previous: ``[B, H, A]`` or ``[H, A]``: row 0 is the action at the time of the new
            observation; zeros where the previous chunk has ended.
        weights: ``[H]``, how strongly each action is tied.
        correction: "vjp" sends the error back through the network (paper); "identity" leaves the
            Jacobian out (what LeRobot does), which needs no autograd; "vjp-scaled" divides the
            paper's pull by how much the clean estimate answers to it, see below.
        max_gain: clip of the gain.

    The paper's gain takes the spread of the clean chunk given x_t as that of data of variance 1:
    ``r^2 = t^2 / (t^2 + (1-t)^2)``. Its real covariance is ``t^2 / (1-t) J``, J = d clean / d x_t
    (Tweedie). For a policy that is sure of itself J is near 0, so the pull J'e is too, and no
    gain that the clip lets through makes up for it. "vjp-scaled" divides the pull by the measured
    response along the error, ``e'Je / e'e``, at least MIN_RESPONSE: above that bound the pull
    along the error is that of "identity", and the other actions follow J, at no further pass.

    """
    if correction not in CORRECTIONS:
        raise InvalidValueError(f"correction {correction!r}; accepted: {', '.join(CORRECTIONS)}")

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
            if correction == "vjp-scaled":
                pull = pull / _response(error, pull).clamp_min(MIN_RESPONSE)
        return v - guidance_gain(float(t), max_gain) * pull

    return step


def _response(error: Tensor, pulled: Tensor) -> Tensor:
    """``e'Je / e'e`` of each chunk, ``[B, 1, 1]``; 1 where there is no error."""
    square = (error * error).sum(dim=(1, 2), keepdim=True)
    along = (error * pulled).sum(dim=(1, 2), keepdim=True)
    return torch.where(square > 0, along / square.clamp_min(1e-20), torch.ones_like(square))


def sample_frozen(
    velocity: TokenVelocity,
    noise: Tensor,
    previous: Tensor,
    frozen: int,
    steps: int,
    clock: str = "openpi",
) -> Tensor:
    """Sample with the first ``frozen`` actions given, for weights trained that way.

    Args:
        velocity: the model's; it gets time 0 for frozen actions.
        noise: ``[B, H, A]``.
        previous: ``[B, H, A]`` or ``[H, A]``, as in `guided`.
        frozen: d, 0..H.
        steps: Euler steps.
        clock: see `flow_times`.

    Returns:
        ``[B, H, A]`` float32 whose first d actions equal ``previous``.

    """
    B, H, _ = noise.shape
    if not 0 <= frozen <= H:
        raise InvalidValueError(f"frozen is {frozen}; accepted: 0 to {H}")
    given = (torch.arange(H, device=noise.device) < frozen)[None, :, None]
    target = previous.to(noise.device, torch.float32).expand(noise.shape)
    x = noise.float()
    for t in flow_times(steps, clock):
        x = torch.where(given, target, x)
        times = torch.full((B, H), t, dtype=torch.float32, device=x.device)
        x = x - (1.0 / steps) * velocity(x, times.masked_fill(given[..., 0], 0.0))
    return torch.where(given, target, x)
