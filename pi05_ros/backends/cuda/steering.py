"""What continues a chunk, brought into the static buffers: frozen actions and guidance.

Graphs read the number of frozen rows from the device, so that it costs no capture; guidance has a
graph of its own, in which the end of each Euler step adds the pull (`euler_step`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pi05_ros.backends.cuda.buffers import Buffers
from pi05_ros.backends.cuda.inputs import check_noise
from pi05_ros.backends.engine import Guidance
from pi05_ros.backends.errors import BackendError
from pi05_ros.model.guidance import guidance_gain
from pi05_ros.model.sampler import flow_times

CORRECTIONS = ("identity",)


class Steering:
    """Loads one call's frozen actions or guidance."""

    def __init__(self, buffers: Buffers, clock: str) -> None:
        self._buffers = buffers
        self._clock_name = clock
        self._frozen = 0
        self._clock: tuple[int, float] | None = None

    def freeze(self, frozen: Tensor | None, horizon: int) -> None:
        """Put the frozen prefix ``[d, A]`` over the first rows of the noise.

        Raises:
            BackendError: another shape or type.

        """
        b = self._buffers
        d = 0
        if frozen is not None and len(frozen):
            d = check_noise(frozen, b.noise.shape[1], horizon)
            b.noise[:d].copy_(frozen, non_blocking=True)
        if d != self._frozen:
            b.frozen.fill_(d)
            self._frozen = d

    def guide(self, guidance: Guidance | None, horizon: int, steps: int) -> bool:
        """Load target, weights and the clock of the steps; False without guidance.

        Raises:
            BackendError: the correction is not "identity", or shapes do not fit.

        """
        if guidance is None:
            return False
        if guidance.correction != "identity":
            raise BackendError(
                f"the cuda backend has no {guidance.correction!r} guidance (captured graphs have "
                "no backward pass); use 'identity' or 'trained', or backend 'eager'"
            )
        b = self._buffers
        if self._frozen:
            raise BackendError("give guidance or frozen actions, not both")
        shape = (horizon, b.target.shape[1])
        if tuple(guidance.target.shape) != shape or tuple(guidance.weights.shape) != shape[:1]:
            raise BackendError(
                f"guidance has target {list(guidance.target.shape)} and weights "
                f"{list(guidance.weights.shape)}; accepted: {list(shape)} and [{horizon}]"
            )
        b.target[:horizon].copy_(guidance.target, non_blocking=True)
        b.guide_weight[:horizon].copy_(guidance.weights, non_blocking=True)
        if self._clock != (steps, guidance.max_gain):
            times = flow_times(steps, self._clock_name)
            rows = [(t, guidance_gain(t, guidance.max_gain)) for t in times]
            b.guide_clock[:steps].copy_(torch.tensor(rows))
            self._clock = (steps, guidance.max_gain)
        return True
