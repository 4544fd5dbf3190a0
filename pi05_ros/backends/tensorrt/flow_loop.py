"""The whole flow loop as one CUDA graph: N denoise engines with float32 Euler steps between.

Replaying removes the launch cost of N engine calls. Addresses are frozen in the graph, so the
engine's own buffers hold everything: noise in, actions out, modulation of all steps beside.
"""

from __future__ import annotations

import logging
from typing import Protocol

import torch
from torch import Tensor

from pi05_ros.backends.tensorrt.binding import on_device

log = logging.getLogger(__name__)


class BoundStage(Protocol):
    """What the loop needs of a runner: buffers and an enqueue."""

    buffers: dict[str, Tensor]

    def enqueue(self) -> None:
        """Run on the current stream with what is in the buffers."""

    def capturable(self, stream: int) -> bool:
        """Whether a CUDA graph may capture `enqueue` on a stream."""


class FlowLoop:
    """Euler loop over a bound denoise engine.

    Args:
        stage: the denoise engine with its buffers.
        table: modulation ``[N, 2 L + 1, 3 W]`` of all steps.
        capture: record a CUDA graph on first use; False runs the same calls one by one.

    """

    def __init__(self, stage: BoundStage, table: Tensor, *, capture: bool) -> None:
        self.stage = stage
        self.table = table
        self.capture = capture
        self.graph: torch.cuda.CUDAGraph | None = None
        self._noise = torch.zeros_like(stage.buffers["x_t"])

    def _loop(self) -> None:
        buffers = self.stage.buffers
        x, velocity, modulation = (buffers[n] for n in ("x_t", "velocity", "modulation"))
        x.copy_(self._noise)
        steps = self.table.shape[0]
        for index in range(steps):
            modulation.copy_(self.table[index])
            self.stage.enqueue()
            x.sub_(velocity, alpha=1.0 / steps)

    def _record(self) -> None:
        # TensorRT allocates lazily on the first runs; those must not be captured.
        stream = torch.cuda.Stream(self.table.device)
        stream.wait_stream(torch.cuda.current_stream(self.table.device))
        with torch.cuda.stream(stream):
            self._loop()
            self._loop()
        torch.cuda.current_stream(self.table.device).wait_stream(stream)
        if not self.stage.capturable(int(stream.cuda_stream)):
            log.warning("the denoise engine cannot be captured: its steps are enqueued one by one")
            self.capture = False
            return
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._loop()
        self.graph = graph

    def run(self, noise: Tensor) -> Tensor:
        """Noise ``[1, H, A]`` float32 to actions, a new tensor."""
        with on_device(self.table.device):
            self._noise.copy_(noise)
            if self.capture and self.graph is None:
                self._record()
            if self.graph is None:
                self._loop()
            else:
                self.graph.replay()
            return self.stage.buffers["x_t"].clone()

    def close(self) -> None:
        """Drop the graph; must happen before the engine's context goes."""
        if self.graph is not None:
            self.graph.reset()
            self.graph = None
