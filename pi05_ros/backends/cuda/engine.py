"""The CUDA engine: packed weights, static buffers, CUDA graphs per workload bucket.

A bucket is (camera picture sizes, prompt bucket, horizon, steps). Inside a bucket the prompt
length is an integer on the device: keys behind it get no weight, so results equal those of the
exact size. A new bucket costs one capture, and on a new machine the compilation of other sizes.

Threads take turns on the host; on the device their calls must share a stream or be put in order,
as `pipeline.Pipeline` does: there is one set of buffers.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pi05_ros.backends.cuda import scales
from pi05_ros.backends.cuda.buffers import ACTION_ROWS, MAX_STEPS, CudaKVCache
from pi05_ros.backends.cuda.graphs import Graphs
from pi05_ros.backends.cuda.inputs import (
    FrameInputs,
    check_noise,
    check_range,
    check_steps,
    check_tokens,
)
from pi05_ros.backends.cuda.kept_inputs import EmbeddingReuse
from pi05_ros.backends.cuda.monitor import Monitor
from pi05_ros.backends.cuda.scales import ActivationScales, Saturation
from pi05_ros.backends.cuda.stages import modulation
from pi05_ros.backends.cuda.stages.assembly import Sizes, assemble
from pi05_ros.backends.cuda.stages.launches import Launches
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

PROMPT_BUCKETS = (32, 64, 128, 200)
MAX_VIEWS = 3
FIRST_RUNS = 3  # observations that set the FP8 scales where no calibration was given
MONITOR_EVERY = 200  # a recording call takes longer, so it must stay rarer than one in a hundred
BOTH = ("prefill", "denoise")
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
        check_range("horizon", horizon, 1, ACTION_ROWS)
        check_range("views", views, 0, MAX_VIEWS)
        check_range("max_prompt_tokens", max_prompt_tokens, 1)
        check_range("slots", slots, 1)
        check_range("monitor_every", monitor_every, 0)
        if model.config.vlm.num_kv_heads != 1:
            raise BackendError("the cuda backend needs one K/V head, as pi0.5 has")
        self._closed = False
        self.reason = reason
        self.device = model.device
        self.precision = precision
        self.horizon = horizon
        self.max_prompt_tokens = max_prompt_tokens
        self.prompt_buckets = PROMPT_BUCKETS
        self.tuning = load_tuning(self.device, tuning)
        if dependent_launch is None:
            dependent_launch = self.tuning.flag("dependent_launch")
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
        self.launches = Launches(self.prefix_stages, self.inputs)
        self._modulation: dict[int, modulation.Modulation] = {}
        self._serial = [0] * slots
        self._length = [-1] * slots
        self._lock = threading.RLock()
        self._kept = EmbeddingReuse(self.inputs, self.launches, self.graphs, MAX_VIEWS)
        self._steering = Steering(self.buffers, model.config.clock)
        self._watch = Stopwatch(self.device)
        self._observing = False
        if not any(self.weights.quantized):
            monitor_every = 0
        self.monitor = Monitor(
            monitor_every, self.weights.sites, self.buffers.amax, self.buffers.scales
        )
        self.scales_source = "the first observations"
        self.first_runs = 0  # observations that are still to set the FP8 scales
        if "fp8" in (precision.vision, precision.prefill, precision.denoise):
            self.first_runs = FIRST_RUNS
            if calibration is not None:
                self.use_calibration(calibration)
            else:
                self._find_calibration()

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
        """One graph from pictures to actions ``[H, A]`` float32; see `Engine.sample`.

        Args:
            images: see `Engine.prefill`.
            tokens: int64 ``[n]``.
            noise: ``[H, A]``, or None to draw it in the graph from `seed`.
            steps: Euler steps, 1 to 20.
            seed: seed of the noise where none is given (then H is the engine's horizon).
            frozen: ``[d, A]`` normalized actions that are already decided (training-time RTC).

        """
        with self._lock, self._on_device():
            check_steps(steps, MAX_STEPS)
            views = self.inputs.views(images, MAX_VIEWS)
            horizon = self._load_noise(noise, seed, frozen)
            # last, because it writes the slot's length: a KV cache stays valid if this call fails
            _, bucket = self._load_prompt(tokens, len(views), 0)
            for camera, view in enumerate(views):
                self.inputs.load(camera, view)
            self._kept.forget()
            self._serial[0] = next(_SERIALS)
            kinds = tuple(view.kind for view in views)
            drawn = noise is None
            rows = len(views) * self.buffers.tokens + bucket
            mod = self.modulation_tables(steps)
            if self.first_runs:
                if drawn:
                    self.launches.noise(horizon)
                self._calibrate_here(kinds, bucket, horizon, mod, 0)

            def launch() -> None:
                self.launches.prefix(kinds, bucket, 0)
                if drawn:
                    self.launches.noise(horizon)
                self.denoise_stage.run(horizon, mod, self.buffers.slots[0], rows)

            self._watch.forget("prefix", "prefill", "denoised")
            self._watch.mark("sample")
            self._run(("sample", kinds, bucket, horizon, steps, drawn), launch, BOTH)
            self._watch.mark("sampled")
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
            n, bucket = self._load_prompt(tokens, len(views), slot)
            kinds = tuple(view.kind for view in views)
            self._serial[slot] = next(_SERIALS)
            cache = CudaKVCache(slot, self._serial[slot], len(views), bucket, n)
            if self.first_runs:
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
                self._run(
                    ("prefix", kinds, bucket, slot),
                    lambda: self.launches.prefix(kinds, bucket, slot),
                    BOTH[:1],
                )
            else:
                self._kept.renew(views, tokens, camera_keys, bucket, slot)
                self._watch.mark("prefill")
                self._run(
                    ("prefill", len(views), bucket, slot),
                    lambda: self.launches.prefill(len(views), bucket, slot),
                    BOTH[:1],
                )
            self._watch.mark("prefilled")
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
            slot = self.buffers.slots[cache.slot]

            def launch() -> None:
                if drawn:
                    self.launches.noise(horizon)
                self.denoise_stage.run(horizon, mod, slot, rows, guided)

            self._watch.forget("sampled")
            self._watch.mark("denoise")
            key = ("denoise", rows, horizon, steps, cache.slot, drawn, guided)
            self._run(key, launch, BOTH[1:])
            self._watch.mark("denoised")
            return self.buffers.actions[:horizon].clone()

    @property
    def capabilities(self) -> Capabilities:
        """Guidance without a backward pass, a frozen prefix, reuse of image tokens."""
        return Capabilities(CORRECTIONS, frozen=True, camera_keys=True)

    @property
    def timings(self) -> EngineTimings:
        """Device times of the last call; kept image tokens take none.

        `sample` is one graph, so only its total is known; so is `prefill` without camera keys.
        """
        return self._watch.timings()

    def health(self) -> EngineHealth:
        """What the saturation monitor has found; callable from any thread, waits for nothing."""
        found = self.monitor.health()
        return EngineHealth({"fp8_scales": self.scales_source, **found.values}, found.warning)

    def use_calibration(self, calibration: str | Path | ActivationScales) -> None:
        """Take activation scales from a file; refused where they belong to other weights."""
        if not isinstance(calibration, ActivationScales):
            calibration = ActivationScales.load(Path(calibration))
        w = self.weights
        amax = calibration.amax_for(w.sites, w.fingerprint, w.quantized)
        self.buffers.scales.copy_(scales.scale_of(amax).to(self.device))
        self.first_runs = 0
        self.scales_source = f"{calibration.observations} observations"

    def start_calibration(self) -> None:
        """Forget the largest magnitudes seen so far."""
        self.buffers.amax.zero_()

    def observe(
        self, images: Images, tokens: Tensor, noise: Tensor, steps: int = DENOISE_STEPS
    ) -> None:
        """Run one observation with the recorder of magnitudes on (for `calibration`)."""
        with self._lock:
            self._observing = True
            try:
                self.sample(images, tokens, noise, steps)
            finally:
                self._observing = False

    def calibration(self, observations: int) -> ActivationScales:
        """What was recorded since `start_calibration`."""
        return ActivationScales(
            tuple(self.weights.sites),
            self.buffers.amax.to("cpu", copy=True),
            self.weights.fingerprint,
            observations,
        )

    def saturation(self) -> list[Saturation]:
        """Sites that left their FP8 range in monitored calls since the last report."""
        with self._lock:
            return self.monitor.report()

    def close(self) -> None:
        """Free device memory."""
        with self._lock:
            self._closed = True
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)  # replays of any stream use what is freed
            self.graphs.clear()
            parts = "weights buffers prefix_stages denoise_stage launches inputs _kept _steering"
            for name in parts.split():
                self.__dict__.pop(name, None)
            self._modulation.clear()
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    @contextlib.contextmanager
    def _on_device(self) -> Iterator[None]:
        """FrameInputs that require gradients must not tie static buffers to their history.

        Raises:
            BackendError: the engine is closed.

        """
        if self._closed:
            raise BackendError("this engine is closed")
        on_gpu = self.device.type == "cuda"
        with torch.no_grad(), torch.cuda.device(self.device) if on_gpu else nullcontext():
            yield

    def _load_prompt(self, tokens: Tensor, views: int, slot: int) -> tuple[int, int]:
        n = check_tokens(tokens, self.max_prompt_tokens, self.weights.config.vocab)
        longest = self.max_prompt_tokens
        bucket = min(next((size for size in self.prompt_buckets if n <= size), longest), longest)
        self.buffers.prompt[:n].copy_(tokens, non_blocking=True)
        length = views * self.buffers.tokens + n
        if self._length[slot] != length:
            self.buffers.slots[slot].length.fill_(length)
            self._length[slot] = length
        return n, bucket

    def _load_noise(self, noise: Tensor | None, seed: int | None, frozen: Tensor | None) -> int:
        b = self.buffers
        A = self.weights.config.action_dim
        if noise is None:
            if seed is None:
                raise BackendError("give noise or a seed")
            horizon = self.horizon
            b.seed.fill_(seed)
        else:
            horizon = check_noise(noise, A, ACTION_ROWS)
            b.noise[:horizon].copy_(noise, non_blocking=True)
        if frozen is not None and noise is None:
            raise BackendError("frozen actions need noise given, not a seed")
        self._steering.freeze(frozen, horizon)
        return horizon

    def modulation_tables(self, steps: int) -> modulation.Modulation:
        """The expert's modulation for a number of steps, computed on first use."""
        if steps not in self._modulation:
            with torch.no_grad():
                self._modulation[steps] = modulation.build(self.weights, steps)
        return self._modulation[steps]

    def _find_calibration(self) -> None:
        """Take the scales that `pi05 calibrate` left for these weights, if there are any."""
        path = scales.default_path(self.weights.fingerprint)
        try:
            if scales.files_of(path)[1].is_file():
                self.use_calibration(path)
                log.info("FP8 scales from %s", path)
        except BackendError as error:
            log.warning("FP8 scales come from the first observations: %s", error)

    def _run(self, key: Hashable, launch: Callable[[], None], parts: Sequence[str]) -> None:
        """Replay or capture; with the monitor on, now and then the recording form."""

        def recording() -> None:
            with self.prefix_stages.recording():
                launch()

        if self._observing:
            self.graphs.run((key, "observing"), recording)
            return
        due = self.monitor.due(parts)
        self.graphs.run(key, launch, recording if self.monitor.every else None, due)
        if due:
            self.monitor.drain(parts)

    def _calibrate_here(
        self,
        kinds: tuple[tuple[str, int, int], ...],
        bucket: int,
        horizon: int,
        mod: modulation.Modulation,
        slot: int,
    ) -> None:
        """One of the first runs, which set the scales where no calibration was given."""
        rows = len(kinds) * self.buffers.tokens + bucket

        def record() -> None:
            with self.prefix_stages.recording():
                self.launches.prefix(kinds, bucket, slot)
                self.denoise_stage.run(horizon, mod, self.buffers.slots[slot], rows)

        first = self.first_runs == FIRST_RUNS
        scales.first_run(self.buffers.amax, self.buffers.scales, record, first)
        if first:
            log.info("no calibration given: FP8 scales come from the first observations")
        self.first_runs -= 1

    @contextlib.contextmanager
    def first_runs_kept(self) -> Iterator[None]:
        """Runs within set FP8 scales and do not count as observations that did."""
        left = self.first_runs
        try:
            yield
        finally:
            self.first_runs = left
