"""What depends on the flow time alone, computed once per number of steps.

Every adaRMS norm of the expert takes scale, shift and gate from the flow time. The times of N
Euler steps are known in advance, so the time MLP and the 37 dense layers run once per N instead of
once per step, and the shift's way through the following matrix becomes a bias:

    (x r (1 + s) + b) W' = r (x (1 + s)) W' + b W'

The last row of the tables is time 0, for the frozen prefix (training-time RTC).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pi05_ros.backends.cuda.packing import unpack_pairs, unpack_weight
from pi05_ros.backends.cuda.weights import Linear, Weights
from pi05_ros.model.expert import time_embedding
from pi05_ros.model.sampler import flow_times


@dataclass
class Modulation:
    """Tables for one number of steps.

    Attributes:
        steps: N.
        mod: float32 ``[N + 1, 2 L + 1, 3, D]``: 1 + scale, shift, gate of each norm.
        bias: float32 ``[N + 1, L, Nqkv + 2 F]``: shift times weight, in the order of the packed
            rows: qkv, then gate_up.
        velocity: float32 ``[N + 1, A]``: shift of the final norm times action head, and its bias.

    """

    steps: int
    mod: Tensor
    bias: Tensor
    velocity: Tensor


def dequantize(linear: Linear) -> Tensor:
    """The matrix the kernels multiply with, float32 ``[N, K]``."""
    weight = linear.weight
    if linear.image:
        weight = unpack_pairs(weight) if linear.paired else unpack_weight(weight)
    weight = weight.float()
    return weight if linear.scale is None else weight * linear.scale[:, None]


def condition(weights: Weights, times: Tensor) -> Tensor:
    """Flow times ``[n]`` -> adaRMS condition ``[n, D]`` float32 (openpi's time MLP)."""
    in_weight, in_bias, out_weight, out_bias = weights.time_mlp
    e = time_embedding(times.float(), in_weight.shape[1])
    return F.silu(F.linear(F.silu(F.linear(e, in_weight, in_bias)), out_weight, out_bias))


def build(weights: Weights, steps: int) -> Modulation:
    """Tables for `steps` Euler steps under the clock of the model's configuration."""
    device = weights.mod_weight.device
    times = torch.tensor([*flow_times(steps, weights.config.clock), 0.0], device=device)
    cond = condition(weights, times)
    D = weights.config.expert.width
    norms = weights.mod_weight.shape[0]
    mod = torch.einsum("nd,jkd->njk", cond, weights.mod_weight) + weights.mod_bias
    mod = mod.reshape(steps + 1, norms, 3, D).contiguous()
    mod[:, :, 0] += 1.0
    columns = []
    for index, layer in enumerate(weights.expert):
        columns.append(mod[:, 2 * index, 1] @ dequantize(layer.qkv).t())
        columns.append(mod[:, 2 * index + 1, 1] @ dequantize(layer.gate_up).t())
    bias = torch.cat(columns, dim=1).reshape(steps + 1, len(weights.expert), -1).contiguous()
    head, head_bias = weights.action_out
    velocity = (mod[:, -1, 1] @ head.t() + head_bias).contiguous()
    return Modulation(steps, mod, bias, velocity)


class ModulationTables:
    """Tables of one engine by number of steps, computed on first use."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._made: dict[int, Modulation] = {}

    def __call__(self, steps: int) -> Modulation:
        """Those for `steps` Euler steps."""
        if steps not in self._made:
            with torch.no_grad():
                self._made[steps] = build(self._weights, steps)
        return self._made[steps]
