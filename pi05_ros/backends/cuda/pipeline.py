"""Two streams: vision and prefill of frame N + 1 under the denoising of frame N.

Throughput, not latency, gains: both halves share the processors. Two KV slots alternate; the
action stream has the higher priority, so that the older frame finishes first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pi05_ros.backends.cuda.buffers import CudaKVCache
from pi05_ros.backends.engine import (
    Capabilities,
    Engine,
    EngineHealth,
    EngineTimings,
    Guidance,
    Images,
)
from pi05_ros.backends.errors import BackendError
from pi05_ros.model.sampler import DENOISE_STEPS

if TYPE_CHECKING:
    from pi05_ros.backends.cuda.engine import CudaEngine

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


class Pipeline(Engine):
    """A CUDA engine whose halves run side by side.

    `prefill` and `denoise` wait for their work and may be called from one thread each; `submit`
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
        self.backend = engine.backend
        self.reason = engine.reason
        self.precision = engine.precision
        self.device = engine.device
        self.horizon = engine.horizon
        self._turn = 0
        self._enqueue = threading.Lock()
        self._streams: list[torch.cuda.Stream] = []
        self._ready: list[torch.cuda.Event] = []
        self._read: list[torch.cuda.Event] = []
        if engine.device.type == "cuda":
            # prefill, denoise
            self._streams = [
                torch.cuda.Stream(engine.device, priority=priority) for priority in (0, -1)
            ]
            # Waited for by the host, which has a robot to listen to: it sleeps meanwhile.
            self._ready = [torch.cuda.Event(blocking=True) for _ in range(SLOTS)]
            self._read = [torch.cuda.Event() for _ in range(SLOTS)]

    @property
    def timings(self) -> EngineTimings:
        """Not known: the halves of two frames share the device."""
        return EngineTimings()

    @property
    def capabilities(self) -> Capabilities:
        """Those of the engine, and overlap."""
        return dataclasses.replace(self.engine.capabilities, overlap=True)

    def holds(self, cache: CudaKVCache) -> bool:
        """See `CudaEngine.holds`."""
        return self.engine.holds(cache)

    def prefill(
        self, images: Images, tokens: Tensor, *, camera_keys: Sequence[Hashable] | None = None
    ) -> CudaKVCache:
        """Vision and prefill into the slot whose turn it is; see `CudaEngine.prefill`.

        The slot's last KV cache must not be wanted any more; its denoising may be under way.
        """
        cache = self._enqueue_prefill(images, tokens, camera_keys)
        if self._streams:
            self._ready[cache.slot].synchronize()
        return cache

    def denoise(
        self,
        cache: CudaKVCache,
        noise: Tensor,
        *,
        steps: int = DENOISE_STEPS,
        guidance: Guidance | None = None,
        frozen: Tensor | None = None,
    ) -> Tensor:
        """Actions ``[H, A]`` over a KV cache of this pipeline; see `CudaEngine.denoise`."""
        return self._enqueue_denoise(cache, noise, steps, guidance, frozen).result()

    def submit(
        self, images: Images, tokens: Tensor, noise: Tensor, steps: int = DENOISE_STEPS
    ) -> Pending:
        """Start one inference; on the device a third waits until the first has ended.

        Nobody waits here: the caller may drop its tensors at once.
        """
        cache = self._enqueue_prefill(images, tokens, None)
        pending = self._enqueue_denoise(cache, noise, steps, None, None)
        if self._streams:
            frames = [images] if isinstance(images, Tensor) else images
            for tensor in (*frames, tokens):
                _lend(tensor, self._streams[0])
            _lend(noise, self._streams[1])
        return pending

    def health(self) -> EngineHealth:
        """See `CudaEngine.health`."""
        return self.engine.health()

    def warm_up(self, inference: Callable[[], object]) -> None:
        """Run an inference once per slot, so that the graphs of all slots are captured.

        Together they count as one of the first runs that set FP8 scales.
        """
        inference()
        with self.engine.scales.first_runs_kept():
            for _ in range(1, SLOTS):
                inference()

    def close(self) -> None:
        """Close the engine."""
        self.engine.close()

    def _enqueue_prefill(
        self, images: Images, tokens: Tensor, camera_keys: Sequence[Hashable] | None
    ) -> CudaKVCache:
        with self._enqueue:
            slot = self._turn
            with self._on_stream(0) as stream:
                if stream is None:
                    cache = self.engine.prefill(images, tokens, camera_keys=camera_keys, slot=slot)
                else:
                    stream.wait_event(self._read[slot])
                    first_run = bool(self.engine.scales.first_runs)
                    if first_run:  # it denoises too, and there is one set of buffers for that
                        stream.wait_stream(self._streams[1])
                    cache = self.engine.prefill(images, tokens, camera_keys=camera_keys, slot=slot)
                    self._ready[slot].record()
                    if first_run:
                        self._streams[1].wait_stream(stream)
            self._turn = (slot + 1) % SLOTS
            return cache

    def _enqueue_denoise(
        self,
        cache: CudaKVCache,
        noise: Tensor,
        steps: int,
        guidance: Guidance | None,
        frozen: Tensor | None,
    ) -> Pending:
        slot = cache.slot
        with self._enqueue, self._on_stream(1) as stream:
            if stream is not None:
                stream.wait_event(self._ready[slot])
            actions = self.engine.denoise(
                cache, noise, steps=steps, guidance=guidance, frozen=frozen
            )
            if stream is None:
                return Pending(actions, None)
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
