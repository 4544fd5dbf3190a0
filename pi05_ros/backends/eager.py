"""The plain model as an engine: runs everywhere, and is what other engines are compared with."""

from __future__ import annotations

import copy
import time
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from pi05_ros.backends.engine import (
    ASKED_FOR,
    Capabilities,
    Engine,
    EngineTimings,
    Guidance,
    Images,
    Precision,
    StageClock,
)
from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.resize import resize_with_pad, to_model_range
from pi05_ros.model import KVCache, Pi05, flow_sample
from pi05_ros.model.dtypes import parameter_dtype
from pi05_ros.model.guidance import CORRECTIONS, guided, sample_frozen
from pi05_ros.model.sampler import DENOISE_STEPS

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_STAGE_PARTS = {"vision": ("vision", "projector"), "prefill": ("vlm",), "denoise": ("expert",)}


class EagerEngine(Engine):
    """`Pi05` stage by stage, at batch 1.

    Args:
        model: weights; left as they are. A stage at another precision gets its own copy.
        precision: "fp32" or "bf16" (openpi's mixed policy) per stage; "auto" keeps the model's.
        views, horizon, max_prompt_tokens: not needed here; any size runs.
        reason: why this backend was chosen.
        options: none are accepted.

    """

    backend = "eager"

    def __init__(
        self,
        model: Pi05,
        precision: Precision | None = None,
        views: int = 2,
        horizon: int | None = None,
        max_prompt_tokens: int = 200,
        reason: str = ASKED_FOR,
        **options: Any,
    ) -> None:
        if options:
            raise BackendError(
                f"backend 'eager' has no option {next(iter(options))!r}; it has none"
            )
        self.reason = reason
        self.precision = resolve_precision(model, precision or Precision())
        self.model = _at_precision(model, self.precision)
        self.device = model.device
        self.horizon = model.config.horizon if horizon is None else horizon
        self._threads = torch.get_num_threads()
        self._clock = StageClock()
        self._kept: list[tuple[Hashable, Tensor]] = []  # key and image tokens by camera

    @property
    def timings(self) -> EngineTimings:
        """Of the last `prefill` and of the `denoise` since."""
        return self._clock.timings

    @property
    def capabilities(self) -> Capabilities:
        """All of them."""
        return Capabilities(CORRECTIONS, frozen=True, camera_keys=True, overlap=True)

    @torch.no_grad()
    def prefill(
        self, images: Images, tokens: Tensor, *, camera_keys: Sequence[Hashable] | None = None
    ) -> KVCache:
        """Vision and prefill; see `Engine.prefill`. A `KVCache` of one row."""
        model = self.model
        self._keep_thread_count()
        start = self._now()
        prompt = model.embed_prompt(tokens.to(self.device))[None]  # [1, n, D]
        parts = [prompt]
        seen = self._encode(images, camera_keys)
        if seen is not None:
            parts.insert(0, seen.flatten(0, 1)[None].to(prompt.dtype))
        vision = self._now()
        embeddings = torch.cat(parts, dim=1)
        mask = torch.ones(embeddings.shape[:2], dtype=torch.bool, device=self.device)
        cache = model.prefill_embedded(embeddings, mask, compact=False)
        if self.precision.denoise != self.precision.prefill:
            dtype = _DTYPES[self.precision.denoise]
            cache = KVCache(
                [k.to(dtype) for k in cache.k],
                [v.to(dtype) for v in cache.v],
                cache.mask,
                cache.length,
            )
        end = self._now()
        self._clock.prefill_done(1e3 * (vision - start), 1e3 * (end - vision))
        return cache

    @torch.no_grad()
    def denoise(
        self,
        cache: KVCache,
        noise: Tensor,
        *,
        steps: int = DENOISE_STEPS,
        guidance: Guidance | None = None,
        frozen: Tensor | None = None,
    ) -> Tensor:
        """Flow from noise ``[H, 32]`` to normalized actions; see `Engine.denoise`."""
        self._keep_thread_count()
        start = self._now()
        x = noise.to(self.device, torch.float32)[None]
        clock = self.model.config.clock
        _check_continuation(tuple(noise.shape), guidance, frozen)

        def velocity(x_t: Tensor, t: float | Tensor) -> Tensor:
            return self.model.velocity(x_t, t, cache)

        if frozen is not None:
            given = torch.zeros_like(x)
            given[0, : len(frozen)] = frozen.to(x)
            actions = sample_frozen(velocity, x, given, len(frozen), steps, clock)[0]
        elif guidance is not None:
            pulled = guided(
                velocity, guidance.target, guidance.weights, guidance.correction, guidance.max_gain
            )
            actions = flow_sample(pulled, x, steps, clock)[0]
        else:
            actions = flow_sample(velocity, x, steps, clock)[0]
        self._clock.denoise_done(1e3 * (self._now() - start))
        return actions

    def close(self) -> None:
        """Drop the weights."""
        del self.model

    def _keep_thread_count(self) -> None:
        """Pin torch's intra-op thread count in every calling thread.

        Torch keeps the number per thread, and sums over other shares round differently: a chunk
        would depend on the thread that computes it.
        """
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _encode(self, images: Images, keys: Sequence[Hashable] | None) -> Tensor | None:
        """Image tokens ``[V, P, D]``; those of cameras with the key they had are kept ones."""
        if keys is None:
            self._kept = []
            pixels = self._pixels(images)
            return None if pixels is None else self.model.embed_images(pixels)
        if len(keys) != len(images):
            raise BackendError(f"{len(keys)} camera keys for {len(images)} images")
        before, self._kept = self._kept, []
        for camera, key in enumerate(keys):
            if camera < len(before) and key is not None and before[camera][0] == key:
                self._kept.append(before[camera])
                continue
            pixels = self._pixels(images[camera : camera + 1])
            assert pixels is not None
            self._kept.append((key, self.model.embed_images(pixels)[0]))
        return torch.stack([tokens for _, tokens in self._kept]) if self._kept else None

    def _pixels(self, images: Images) -> Tensor | None:
        """Cameras as float ``[V, 3, S, S]`` in [-1, 1] on the device; None without cameras."""
        size = self.model.config.vision.image_size
        views: list[Tensor] = []
        for image in images:
            view = image[0] if image.ndim == 4 and image.shape[0] == 1 else image
            if 0 in view.shape:
                raise BackendError(f"image is empty: {list(view.shape)}")
            if view.dtype == torch.uint8 and view.ndim == 3 and view.shape[-1] == 3:
                if self.device.type == "cuda":
                    view = view.to(self.device)
                views.append(to_model_range(resize_with_pad(view, size)).to(self.device))
            elif view.is_floating_point() and tuple(view.shape) == (3, size, size):
                views.append(view.to(self.device, torch.float32))
            else:
                raise BackendError(
                    f"image is {view.dtype} {list(view.shape)}; accepted: uint8 [H, W, 3] or "
                    f"float [3, {size}, {size}] in [-1, 1]"
                )
        return torch.stack(views) if views else None


def _check_continuation(
    shape: tuple[int, ...], guidance: Guidance | None, frozen: Tensor | None
) -> None:
    """Raise BackendError unless what continues a chunk fits noise of a shape ``(H, A)``.

    Torch would spread one row, column or weight over all.
    """
    H, A = shape
    if frozen is not None:
        if guidance is not None:
            raise BackendError("give guidance or frozen actions, not both")
        if frozen.ndim != 2 or frozen.shape[1] != A or len(frozen) > H:
            raise BackendError(
                f"frozen actions have shape {list(frozen.shape)}; accepted: [0 to {H}, {A}]"
            )
    if guidance is not None:
        target, weights = tuple(guidance.target.shape), tuple(guidance.weights.shape)
        if target != shape or weights != (H,):
            raise BackendError(
                f"guidance has target {list(target)} and weights {list(weights)}; accepted: "
                f"{[H, A]} and [{H}]"
            )


def resolve_precision(model: Pi05, precision: Precision) -> Precision:
    """Replace "auto" by what each stage of the model is in.

    Raises:
        BackendError: a precision that eager does not have.

    """
    words = {}
    for stage, parts in _STAGE_PARTS.items():
        word = getattr(precision, stage)
        if word == "auto":
            weights = [
                p.dtype
                for part in parts
                for name, p in getattr(model, part).named_parameters(prefix=part)
                if parameter_dtype(name, torch.bfloat16) is torch.bfloat16
            ]
            word = "bf16" if torch.bfloat16 in weights else "fp32"
        if word not in _DTYPES:
            raise BackendError(
                f"backend 'eager' has no precision {word!r} for {stage}; "
                "accepted: auto, fp32, bf16"
            )
        words[stage] = word
    return Precision(**words)


def _at_precision(model: Pi05, precision: Precision) -> Pi05:
    """Return the model, with copies of those stages whose precision is another one."""
    now = resolve_precision(model, Precision())
    changed = [s for s in _STAGE_PARTS if getattr(now, s) != getattr(precision, s)]
    if not changed:
        return model
    mixed = copy.copy(model)
    mixed._modules = dict(model._modules)
    for stage in changed:
        dtype = _DTYPES[getattr(precision, stage)]
        for part in _STAGE_PARTS[stage]:
            module = copy.deepcopy(getattr(model, part))
            for name, parameter in module.named_parameters(prefix=part):
                parameter.data = parameter.data.to(parameter_dtype(name, dtype))
            mixed._modules[part] = module
    return mixed
