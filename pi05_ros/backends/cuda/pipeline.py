"""Two streams: vision and prefill of frame N + 1 under the denoising of frame N.

Throughput, not latency, gains: both halves share the processors. Two KV slots alternate; the
action stream has the higher priority, so that the older frame finishes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pi05_ros.backends.cuda.engine import CudaEngine
from pi05_ros.backends.errors import BackendError


@dataclass
class Pending:
    """Actions that are being computed."""

    actions: Tensor
    done: torch.cuda.Event

    def result(self) -> Tensor:
        """Wait and return ``[H, A]``."""
        self.done.synchronize()
        return self.actions


class Pipeline:
    """Feed observations to an engine without waiting for their actions."""

    def __init__(self, engine: CudaEngine) -> None:
        if len(engine.buffers.slots) < 2:
            raise BackendError("a pipeline needs an engine with two KV slots")
        self.engine = engine
        self._context_stream = torch.cuda.Stream(engine.device)
        self._action_stream = torch.cuda.Stream(engine.device, priority=-1)
        self._context_done = [torch.cuda.Event() for _ in range(2)]
        self._actions_done = [torch.cuda.Event() for _ in range(2)]
        self._turn = 0

    def submit(
        self, images: Sequence[Tensor] | Tensor, tokens: Tensor, noise: Tensor, steps: int = 10
    ) -> Pending:
        """Start one inference; at most two are under way, a third waits for the first."""
        slot = self._turn
        self._turn ^= 1
        caller = torch.cuda.current_stream(self.engine.device)
        with torch.cuda.stream(self._context_stream):
            self._context_stream.wait_stream(caller)
            self._context_stream.wait_event(self._actions_done[slot])
            context = self.engine.context(images, tokens, slot=slot)
            self._context_done[slot].record()
        with torch.cuda.stream(self._action_stream):
            self._action_stream.wait_event(self._context_done[slot])
            self._action_stream.wait_stream(caller)
            actions = self.engine.denoise(context, noise, steps)
            done = torch.cuda.Event()
            done.record()
            self._actions_done[slot].record()
        return Pending(actions, done)
