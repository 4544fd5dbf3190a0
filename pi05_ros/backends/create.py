"""Choose and build an engine; a backend's module is imported only when it is asked for."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch

from pi05_ros.backends.choices import BACKENDS, PRECISIONS
from pi05_ros.backends.engine import ASKED_FOR, Engine, Precision
from pi05_ros.backends.errors import BackendError
from pi05_ros.model import Pi05

log = logging.getLogger(__name__)

# backend -> (module, callable with the arguments of `create_engine` and the reason of the choice).
# The module may also have usable() -> (bool, why), asked before anything is built.
_FACTORIES = {
    "eager": ("pi05_ros.backends.eager", "EagerEngine"),
    "cuda": ("pi05_ros.backends.cuda", "create"),
    "onnx": ("pi05_ros.backends.onnx", "create"),
    "tensorrt": ("pi05_ros.backends.tensorrt", "create"),
}
# backend -> (module, class that takes an engine and runs its halves side by side).
_PIPELINES = {"cuda": ("pi05_ros.backends.cuda.pipeline", "Pipeline")}
assert ("auto", *_FACTORIES) == BACKENDS


def parse_precision(precision: Precision | Mapping[str, str] | str | None) -> Precision:
    """Precision of each stage from a `Precision`, a mapping of stages, or one word for all.

    Raises:
        BackendError: an unknown stage or precision.

    """
    if precision is None:
        return Precision()
    if isinstance(precision, Precision):
        return precision
    if isinstance(precision, str):
        precision = dict.fromkeys(("vision", "prefill", "denoise"), precision)
    unknown = [str(key) for key in precision if key not in ("vision", "prefill", "denoise")]
    if unknown:
        raise BackendError(
            f"precision names the stage {unknown[0]!r}; accepted: vision, prefill, denoise, "
            f"each one of {', '.join(PRECISIONS)}"
        )
    try:
        return Precision(**precision)
    except ValueError as error:
        raise BackendError(str(error)) from error


def create_engine(
    model: Pi05,
    backend: str = "auto",
    precision: Precision | Mapping[str, str] | str | None = None,
    views: int = 2,
    horizon: int = 50,
    max_prompt_tokens: int = 200,
    allow_fallback: bool = False,
    **options: Any,
) -> Engine:
    """Build an engine for a loaded model.

    Args:
        model: weights, on the device the engine shall use.
        backend: one of BACKENDS. "auto" is tensorrt where engines of this very checkpoint and
            machine have passed their check, else cuda where a CUDA device and the backend are
            there, otherwise eager; ``engine.reason`` says why.
        precision: arithmetic of each stage.
        views: cameras to prepare for; fewer valid ones are always accepted.
        horizon: steps of a chunk to prepare for.
        max_prompt_tokens: longest prompt to prepare for.
        allow_fallback: if the backend that was asked for cannot be used, take what "auto" would;
            ``engine.reason`` then starts with "fallback".
        options: the backend's own.

    Raises:
        BackendError: unknown or unusable here; says what is accepted or missing.

    """
    stages = parse_precision(precision)
    check_backend(backend)
    sizes = {"views": views, "horizon": horizon, "max_prompt_tokens": max_prompt_tokens}
    reason = ASKED_FOR
    if backend == "auto":
        backend, reason = _choose(model, stages, views, horizon, max_prompt_tokens)
        if backend == "eager":
            options = {}
    try:
        engine = _build(backend, model, stages, sizes, options, reason)
    except BackendError as error:
        if not allow_fallback:
            raise
        other, _ = _choose(model, Precision(), views, horizon, max_prompt_tokens, backend)
        log.error("backend %s cannot be used, %s is: %s", backend, other, error)
        reason = f"fallback from {backend}: {error}"
        engine = _build(other, model, Precision(), sizes, {}, reason)
    log.info("backend %s: %s", engine.backend, engine.reason)
    return engine


def _build(
    backend: str,
    model: Pi05,
    precision: Precision,
    sizes: Mapping[str, int],
    options: Mapping[str, Any],
    reason: str,
) -> Engine:
    module, reason_not = _usable(backend)
    if module is None:
        raise BackendError(
            f"backend {backend!r} cannot run here: {reason_not}; backend 'eager' always can"
        )
    factory = getattr(module, _FACTORIES[backend][1])
    parameters = inspect.signature(factory).parameters.values()
    accepted = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    unknown = [name for name in options if name not in accepted]
    if "reason" in options:  # of the choice; ours to give
        raise BackendError(f"backend {backend!r} has no option 'reason'")
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters):
        raise BackendError(
            f"backend {backend!r} has no option {unknown[0]!r}; it has {', '.join(accepted)}"
        )
    engine: Engine = factory(model, precision=precision, reason=reason, **sizes, **options)
    return engine


def check_backend(backend: str) -> None:
    """Raise BackendError unless a backend is known and part of this installation."""
    if backend not in BACKENDS:
        raise BackendError(f"backend {backend!r} is unknown; accepted: {', '.join(BACKENDS)}")
    if backend != "auto" and not _exists(_FACTORIES[backend][0]):
        there = [b for b, (module, _) in _FACTORIES.items() if _exists(module)]
        raise BackendError(
            f"backend {backend!r} is not part of this installation; there: {', '.join(there)}"
        )


def _exists(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _usable(backend: str) -> tuple[ModuleType | None, str]:
    """Module of a backend that can run here, or None and why not."""
    name, factory = _FACTORIES[backend]
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: a shared library that does not load
        return None, str(error)
    if not hasattr(module, factory):
        return None, "it is not part of this installation"
    able, why = module.usable() if hasattr(module, "usable") else (True, "")
    return (module, why) if able else (None, why)


def _choose(
    model: Pi05,
    precision: Precision,
    views: int,
    horizon: int,
    max_prompt_tokens: int,
    without: str = "",
) -> tuple[str, str]:
    """Best usable backend for a model where it is, and why; ``without`` one that has failed."""
    if model.device.type != "cuda":
        if torch.cuda.is_available():
            return "eager", f"the model is on {model.device.type}; cuda needs it on a CUDA device"
        return "eager", "no CUDA device"
    module, why = _usable("tensorrt") if without != "tensorrt" else (None, "it has failed")
    if module is not None:
        verified, why = module.verified(model, precision, views, horizon, max_prompt_tokens)
        if verified:
            return "tensorrt", why
    log.info("backend auto: not tensorrt: %s", why)
    if not _exists(_FACTORIES["cuda"][0]):
        return "eager", "the cuda backend is not part of this installation"
    module, why = _usable("cuda") if without != "cuda" else (None, "it has failed")
    if module is None:
        return "eager", f"the cuda backend cannot run here: {why}"
    return "cuda", f"CUDA device {torch.cuda.get_device_name(model.device)}"


def overlapped(engine: Engine) -> Engine:
    """Engine whose `prefill` may run in one thread while another one is in `denoise`.

    More frames per second, each of them later: both halves share the processors, and a finished
    KV cache waits until the denoising before it has ended. See `Capabilities.overlap`.

    Raises:
        BackendError: the backend's halves cannot run at the same time.

    """
    if engine.capabilities.overlap:
        return engine
    if engine.backend in _PIPELINES:
        module, name = _PIPELINES[engine.backend]
        pipeline: Engine = getattr(importlib.import_module(module), name)(engine)
        return pipeline
    raise BackendError(
        f"backend {engine.backend!r} cannot overlap prefill and denoise (its stages share "
        "scratch memory); accepted: cuda, eager, onnx"
    )
