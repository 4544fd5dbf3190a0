"""The CUDA engine: packed weights, static buffers, CUDA graphs per workload bucket.

A bucket is (camera image sizes, prompt bucket, horizon, steps). Inside a bucket the prompt
length is an integer on the device: keys behind it get no weight, so results equal those of the
exact size. A new bucket costs one capture, and on a new machine the compilation of other sizes.

Threads take turns on the host; on the device their calls must share a stream or be put in order,
as `pipeline.Pipeline` does: there is one set of buffers.
"""

from __future__ import annotations

import gc
import itertools
import logging
import threading
from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pi05_ros.backends.cuda.buffers import MAX_STEPS, CudaKVCache
from pi05_ros.backends.cuda.embedding_reuse import EmbeddingReuse
from pi05_ros.backends.cuda.graphs import Graphs, on_device
from pi05_ros.backends.cuda.inputs import (
    MAX_VIEWS,
    FrameInputs,
    PromptAndNoise,
    check_sizes,
    check_steps,
)
from pi05_ros.backends.cuda.monitor import GraphRunner, Monitor
from pi05_ros.backends.cuda.scales import ActivationScales, EngineScales, Saturation
from pi05_ros.backends.cuda.stages.assembly import Sizes, assemble, beside_prefill
from pi05_ros.backends.cuda.stages.launches import Kinds, Launches
from pi05_ros.backends.cuda.stages.modulation import Modulation, ModulationTables
from pi05_ros.backends.cuda.steering import CORRECTIONS, Steering
from pi05_ros.backends.cuda.stopwatch import Stopwatch
from pi05_ros.backends.cuda.tuning import load as load_tuning
from pi05_ros.backends.engine import (
    ASKED_FOR,
    Capabilities,
    Engine,
    EngineHealth,
    EngineTimings,
    Guidance,
    Images,
    Precision,
)
from pi05_ros.backends.errors import BackendError
from pi05_ros.model import Pi05
from pi05_ros.model.sampler import DENOISE_STEPS

log = logging.getLogger("pi05_ros.cuda")

MONITOR_EVERY = 200  # a recording call takes longer, so it must stay rarer than one in a hundred
BOTH = ("prefill", "denoise")
_FREED = ("weights", "buffers", "prefix_stages", "denoise_stage", "launches", "inputs",
          "call_inputs", "modulation_tables", "_kept", "_steering", "_runner")  # fmt: skip
_SERIALS = itertools.count(1)  # of all engines: a KV cache of one fits no other


class CudaEngine(Engine):
    """pi0.5 at batch 1 on one GPU; see `create` in the package for the arguments."""

    backend = "cuda"

    def __init__(
        self,
        model: Pi05,
        precision: Precision,
        horizon: int = 50,
        max_prompt_tokens: int = 200,
        views: int = 2,
        calibration: str | Path | ActivationScales | None = None,
        release_model: bool = False,
        monitor_every: int = MONITOR_EVERY,
        slots: int = 2,
        dependent_launch: bool | None = None,
        tuning: dict[str, Any] | None = None,
        reason: str = ASKED_FOR,
    ) -> None:
        check_sizes(horizon, views, max_prompt_tokens, slots, monitor_every)
        if model.config.vlm.num_kv_heads != 1:
            raise BackendError("the cuda backend needs one K/V head, as pi0.5 has")
        self._closed = False
        self.reason = reason
        self.device = model.device
        self.precision = precision
        self.horizon = horizon
        self.tuning = load_tuning(self.device, tuning)
        with self._on_device():
            parts = assemble(
                model,
                precision,
                self.tuning,
                Sizes(MAX_VIEWS, max_prompt_tokens, horizon, slots),
                release=release_model,
                dependent=dependent_launch,
            )
            self.graphs = Graphs(self.device)
        self.weights = parts.weights
        self.buffers = parts.buffers
        self.prefix_stages = parts.prefix
        self.denoise_stage = parts.denoise
        self.inputs = FrameInputs(self.device, model.config.vision.image_size)
        self.call_inputs = PromptAndNoise(self.buffers, model.config.vocab, max_prompt_tokens)
        beside = beside_prefill(self.weights, self.tuning, self.device)
        self.launches = Launches(self.prefix_stages, self.denoise_stage, self.inputs, beside)
        self.modulation_tables = ModulationTables(self.weights)
        self._serial = [0] * slots
        self._lock = threading.RLock()
        self._kept = EmbeddingReuse(self.inputs, self.launches, self.graphs, MAX_VIEWS)
        self._steering = Steering(self.buffers, model.config.clock)
        self._watch = Stopwatch(self.device)
        self.monitor = Monitor.of(monitor_every, self.weights, self.buffers)
        self._runner = GraphRunner(self.graphs, self.monitor, self.prefix_stages)
        self.scales = EngineScales(self.weights, self.buffers)
        if any(self.weights.inputs):
            self.scales.prepare(calibration)

    def sample(
        self,
        images: Images,
        tokens: Tensor,
        noise: Tensor | None = None,
        steps: int = DENOISE_STEPS,
        *,
        seed: int | None = None,
        frozen: Tensor | None = None,
    ) -> Tensor:
        """One graph from images to actions ``[H, A]`` float32; see `Engine.sample`.

        Args:
            images: see `Engine.prefill`.
            tokens: int64 ``[n]``.
            noise: ``[H, A]``, or None to draw it in the graph from `seed`.
            steps: Euler steps, 1 to 20.
            seed: seed of the noise where none is given (then H is the engine's horizon).
            frozen: ``[d, A]`` normalized actions of the frozen prefix (training-time RTC).

        """
        with self._lock, self._on_device():
            check_steps(steps, MAX_STEPS)
            views = self.inputs.views(images, MAX_VIEWS)
            horizon = self._load_noise(noise, seed, frozen)
            # last, because it writes the slot's length: a KV cache stays valid if this call fails
            _, bucket = self.call_inputs.load_prompt(tokens, len(views), 0)
            for camera, view in enumerate(views):
                self.inputs.load(camera, view)
            self._kept.forget()
            self._serial[0] = next(_SERIALS)
            kinds = tuple(view.kind for view in views)
            drawn = noise is None
            mod = self.modulation_tables(steps)
            if self.scales.first_runs:
                if drawn:
                    self.launches.noise(horizon)
                self._calibrate_here(kinds, bucket, horizon, mod, 0)

            def launch() -> None:
                self.launches.inference(kinds, bucket, horizon, mod, drawn)

            self._watch.forget("prefix", "prefill", "denoised")
            self._watch.mark("sample")
            self._runner.run(("sample", kinds, bucket, horizon, steps, drawn), launch, BOTH)
            self._watch.mark("sampled")
            self.inputs.give_back()
            return self.buffers.actions[:horizon].clone()

    def prefill(
        self,
        images: Images,
        tokens: Tensor,
        *,
        camera_keys: Sequence[Hashable] | None = None,
        slot: int = 0,
    ) -> CudaKVCache:
        """Vision and prefill into a KV slot; see `Engine.prefill`.

        Args:
            images: see there.
            tokens: see there.
            camera_keys: one per image, for example its stamp: a camera whose key equals that of
                the call before is not encoded again, nor is an unchanged prompt.
            slot: where to write; KV caches in other slots stay valid.

        """
        with self._lock, self._on_device():
            views = self.inputs.views(images, MAX_VIEWS)
            if not 0 <= slot < len(self._serial):
                raise BackendError(f"slot {slot}; accepted: 0 to {len(self._serial) - 1}")
            if camera_keys is not None and len(camera_keys) != len(views):
                raise BackendError(f"{len(camera_keys)} camera keys for {len(views)} images")
            n, bucket = self.call_inputs.load_prompt(tokens, len(views), slot)
            kinds = tuple(view.kind for view in views)
            self._serial[slot] = next(_SERIALS)
            cache = CudaKVCache(slot, self._serial[slot], len(views), bucket, n)
            if self.scales.first_runs:
                for camera, view in enumerate(views):
                    self.inputs.load(camera, view)
                self._load_noise(None, 0, None)
                self.launches.noise(self.horizon)
                self._calibrate_here(
                    kinds, bucket, self.horizon, self.modulation_tables(DENOISE_STEPS), slot
                )
                self._kept.forget()
            self._watch.forget("sampled", "prefill", "denoised")
            self._watch.mark("prefix")
            if camera_keys is None:
                for camera, view in enumerate(views):
                    self.inputs.load(camera, view)
                self._kept.forget()
                self._runner.run(
                    ("prefix", kinds, bucket, slot),
                    lambda: self.launches.prefix(kinds, bucket, slot),
                    BOTH[:1],
                )
            else:
                self._kept.renew(views, tokens, camera_keys, bucket, slot)
                self._watch.mark("prefill")
                self._runner.run(
                    ("prefill", len(views), bucket, slot),
                    lambda: self.launches.prefill(len(views), bucket, slot),
                    BOTH[:1],
                )
            self._watch.mark("prefilled")
            self.inputs.give_back()
            return cache

    def denoise(
        self,
        cache: CudaKVCache,
        noise: Tensor | None = None,
        *,
        steps: int = DENOISE_STEPS,
        seed: int | None = None,
        guidance: Guidance | None = None,
        frozen: Tensor | None = None,
    ) -> Tensor:
        """Noise to actions over a KV cache; see `Engine.denoise` and `sample`."""
        with self._lock, self._on_device():
            check_steps(steps, MAX_STEPS)
            if cache.serial not in self._serial:
                raise BackendError(
                    "this KV cache was overwritten by a later one in its slot, or is of another "
                    "engine"
                )
            horizon = self._load_noise(noise, seed, frozen)
            drawn = noise is None
            guided = self._steering.guide(guidance, horizon, steps)
            mod = self.modulation_tables(steps)
            rows = self.buffers.rows_of(cache)

            def launch() -> None:
                self.launches.denoise(horizon, mod, cache.slot, rows, guided, drawn=drawn)

            self._watch.forget("sampled")
            self._watch.mark("denoise")
            key = ("denoise", rows, horizon, steps, cache.slot, drawn, guided)
            self._runner.run(key, launch, BOTH[1:])
            self._watch.mark("denoised")
            return self.buffers.actions[:horizon].clone()

    def holds(self, cache: CudaKVCache) -> bool:
        """Whether no later prefill or sample has written to the slot of a KV cache."""
        return cache.serial in self._serial

    @property
    def capabilities(self) -> Capabilities:
        """Guidance without a backward pass, a frozen prefix, reuse of image tokens."""
        return Capabilities(CORRECTIONS, frozen=True, camera_keys=True)

    @property
    def timings(self) -> EngineTimings:
        """Device times of the last call; the total of what ran as one graph."""
        return self._watch.timings()

    def health(self) -> EngineHealth:
        """What the saturation monitor has found; callable from any thread, waits for nothing."""
        return self.monitor.health(self.scales.source)

    def use_calibration(self, calibration: str | Path | ActivationScales) -> None:
        """Take activation scales from a file; refused where they belong to other weights."""
        self.scales.use(calibration)

    def start_calibration(self) -> None:
        """Forget the largest magnitudes seen so far."""
        self.scales.start()

    def observe(
        self, images: Images, tokens: Tensor, noise: Tensor, steps: int = DENOISE_STEPS
    ) -> None:
        """Run one observation with the recorder of magnitudes on (for `calibration`)."""
        with self._lock, self._runner.observing():
            self.sample(images, tokens, noise, steps)

    def calibration(self, observations: int) -> ActivationScales:
        """What was recorded since `start_calibration`."""
        return self.scales.recorded(observations)

    def saturation(self) -> list[Saturation]:
        """Sites that left the range of their codes in monitored calls since the last report."""
        with self._lock:
            return self.monitor.report()

    def close(self) -> None:
        """Free device memory."""
        with self._lock:
            self._closed = True
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)  # replays of any stream use what is freed
            self.graphs.clear()
            self.scales.release()
            for name in _FREED:
                self.__dict__.pop(name, None)
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _on_device(self) -> AbstractContextManager[None]:
        if self._closed:
            raise BackendError("this engine is closed")
        return on_device(self.device)

    def _load_noise(self, noise: Tensor | None, seed: int | None, frozen: Tensor | None) -> int:
        horizon = self.call_inputs.load_noise(noise, seed, self.horizon)
        if frozen is not None and noise is None:
            raise BackendError("frozen actions need noise given, not a seed")
        self._steering.freeze(frozen, horizon)
        return horizon

    def _calibrate_here(
        self, kinds: Kinds, bucket: int, horizon: int, mod: Modulation, slot: int
    ) -> None:
        """One of the first runs, which set the scales where no calibration was given."""
        rows = len(kinds) * self.buffers.tokens + bucket

        def record() -> None:
            with self.prefix_stages.recording():
                self.launches.prefix(kinds, bucket, slot)
                self.launches.denoise(horizon, mod, slot, rows)

        self.scales.first_run(record)
