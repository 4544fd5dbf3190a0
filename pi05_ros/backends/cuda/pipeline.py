"""Two streams: vision and prefill of frame N + 1 under the denoising of frame N.

Throughput, not latency, gains: both halves share the processors. Two KV slots alternate; the
action stream has the higher priority, so that the older frame finishes first.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pi05_ros.backends.engine import EngineTimings
from pi05_ros.backends.errors import BackendError

if TYPE_CHECKING:
    from pi05_ros.backends.cuda.engine import Context, CudaEngine

SLOTS = 2


def _lend(tensor: Tensor, stream: torch.cuda.Stream) -> None:
    """Keep a caller's memory from being used anew before `stream` has read it."""
    if tensor.is_cuda:
        tensor.record_stream(stream)


@dataclass
class Pending:
    """Actions that are being computed."""

    actions: Tensor
    done: torch.cuda.Event | None

    def result(self) -> Tensor:
        """Wait and return ``[H, A]``."""
        if self.done is not None:
            self.done.synchronize()
        return self.actions


class Pipeline:
    """An engine whose halves run side by side; what it does not have comes from the engine.

    `context` and `denoise` wait for their work and may be called from one thread each; `submit`
    only enqueues both.

    Args:
        engine: with two KV slots or more. Used through the pipeline alone.

    Raises:
        BackendError: the engine has one slot.

    """

    def __init__(self, engine: CudaEngine) -> None:
        if len(engine.buffers.slots) < SLOTS:
            raise BackendError("overlap needs a cuda engine with two KV slots (option slots=2)")
        self.engine = engine
        self._turn = 0
        self._enqueue = threading.Lock()
        self._streams: list[torch.cuda.Stream] = []
        self._ready: list[torch.cuda.Event] = []
        self._read: list[torch.cuda.Event] = []
        if engine.device.type == "cuda":
            # context, action
            self._streams = [
                torch.cuda.Stream(engine.device, priority=priority) for priority in (0, -1)
            ]
            # Waited for by the host, which has a robot to listen to: it sleeps meanwhile.
            self._ready = [torch.cuda.Event(blocking=True) for _ in range(SLOTS)]
            self._read = [torch.cuda.Event() for _ in range(SLOTS)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    @property
    def timings(self) -> EngineTimings:
        """Not known: the halves of two frames share the device."""
        return EngineTimings()

    def context(
        self, images: Sequence[Tensor] | Tensor, tokens: Tensor, **options: Any
    ) -> Context:
        """Vision and prefill into the slot whose turn it is; see `CudaEngine.context`.

        The slot's last context must not be wanted any more; its denoising may be under way.
        """
        context = self._enqueue_context(images, tokens, options)
        if self._streams:
            self._ready[context.slot].synchronize()
        return context

    def denoise(
        self, context: Context, noise: Tensor | None = None, steps: int = 10, **options: Any
    ) -> Tensor:
        """Actions ``[H, A]`` over a context of this pipeline; see `CudaEngine.denoise`."""
        return self._enqueue_denoise(context, noise, steps, options).result()

    def sample(
        self,
        images: Sequence[Tensor] | Tensor,
        tokens: Tensor,
        noise: Tensor | None = None,
        steps: int = 10,
        **options: Any,
    ) -> Tensor:
        """Both halves, one after the other."""
        return self.denoise(self.context(images, tokens), noise, steps, **options)

    def submit(
        self, images: Sequence[Tensor] | Tensor, tokens: Tensor, noise: Tensor, steps: int = 10
    ) -> Pending:
        """Start one inference; on the device a third waits until the first has ended.

        Nobody waits here: the caller may drop its tensors at once.
        """
        context = self._enqueue_context(images, tokens, {})
        pending = self._enqueue_denoise(context, noise, steps, {})
        if self._streams:
            pictures = [images] if isinstance(images, Tensor) else images
            for tensor in (*pictures, tokens):
                _lend(tensor, self._streams[0])
            _lend(noise, self._streams[1])
        return pending

    def warm_up(self, inference: Callable[[], object]) -> None:
        """Run an inference once per slot, so that the graphs of all slots are captured.

        Together they count as one of the first runs that set FP8 scales.
        """
        inference()
        left = self.engine.first_runs
        for _ in range(1, SLOTS):
            inference()
        self.engine.first_runs = left

    def _enqueue_context(
        self, images: Sequence[Tensor] | Tensor, tokens: Tensor, options: dict[str, Any]
    ) -> Context:
        with self._enqueue:
            slot = self._turn
            with self._on_stream(0) as stream:
                if stream is None:
                    context = self.engine.context(images, tokens, slot=slot, **options)
                else:
                    stream.wait_event(self._read[slot])
                    first_run = bool(self.engine.first_runs)
                    if first_run:  # it denoises too, and there is one set of buffers for that
                        stream.wait_stream(self._streams[1])
                    context = self.engine.context(images, tokens, slot=slot, **options)
                    self._ready[slot].record()
                    if first_run:
                        self._streams[1].wait_stream(stream)
            self._turn = (slot + 1) % SLOTS
            return context

    def _enqueue_denoise(
        self, context: Context, noise: Tensor | None, steps: int, options: dict[str, Any]
    ) -> Pending:
        slot = context.slot
        with self._enqueue, self._on_stream(1) as stream:
            if stream is None:
                return Pending(self.engine.denoise(context, noise, steps, **options), None)
            stream.wait_event(self._ready[slot])
            actions = self.engine.denoise(context, noise, steps, **options)
            self._read[slot].record()
            done = torch.cuda.Event(blocking=True)
            done.record()
            return Pending(actions, done)

    @contextlib.contextmanager
    def _on_stream(self, which: int) -> Any:
        """Enqueue on a stream of ours behind the caller's, or directly without a device."""
        if not self._streams:
            yield None
            return
        with torch.cuda.device(self.engine.device):
            stream = self._streams[which]
            stream.wait_stream(torch.cuda.current_stream(self.engine.device))
            with torch.cuda.stream(stream):
                yield stream
