"""Backend `tensorrt`: FP16 vision, FP8 prefill, FP8 denoise as engines verified on this machine.

calibrate -> export -> build -> check -> run. An engine is only used with a passing report for
exactly this checkpoint, machine, TensorRT release and build.
"""

from __future__ import annotations

from pathlib import Path

import torch

from pi05_ros.backends.engine import ASKED_FOR, Engine, Precision
from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.tensorrt.binding import require_gpu, usable
from pi05_ros.model import Pi05

__all__ = ["create", "usable", "verified"]


def create(
    model: Pi05,
    precision: Precision,
    views: int,
    horizon: int,
    max_prompt_tokens: int,
    reason: str = ASKED_FOR,
    *,
    cache: str | Path | None = None,
    cuda_graph: bool = True,
) -> Engine:
    """Load the verified engines of this checkpoint.

    Args:
        model, precision, views, horizon, max_prompt_tokens: as of `create_engine`; precision
            "auto" takes what was verified.
        reason: why this backend was chosen.
        cache: root of the cache folder.
        cuda_graph: run the flow loop as one CUDA graph.

    Raises:
        BackendError: no TensorRT or GPU; UnverifiedEngineError: no engine that may be used, with
            the reason and what to run.

    """
    fp8 = "fp8" in (precision.prefill, precision.denoise)
    device = require_gpu(fp8=fp8, near=model.device)
    from pi05_ros.backends.identity import weights_id
    from pi05_ros.backends.staged.shapes import StageShapes
    from pi05_ros.backends.tensorrt.engine import TensorrtEngine
    from pi05_ros.backends.tensorrt.engine_report import dry_run_of, retry_of
    from pi05_ros.backends.tensorrt.engine_store import find_verified

    shapes = StageShapes.of(model.config, views, max_prompt_tokens, horizon)
    root = Path(cache) if cache is not None else None
    engines = find_verified(weights_id(model), shapes, precision, device, root)
    preset = engines.document["flags"]["preset"] or "not quantized"
    name = engines.folder.name[:12]
    title = f"{engines.flavor.title} {engines.document['tensorrt']}"
    reason += f"; {title}, engine {name} ({preset}) with a passing report"
    retry = retry_of(engines)
    if retry:
        reason += f"; second choice, {retry}"
    if dry_run_of(engines):
        reason += "; a DRY RUN: checked with made-up observations or ranges"
    return TensorrtEngine(model, engines, device, cuda_graph=cuda_graph, reason=reason)


def verified(
    model: Pi05,
    precision: Precision,
    views: int,
    horizon: int,
    max_prompt_tokens: int,
    cache: str | Path | None = None,
) -> tuple[bool, str]:
    """Whether verified engines exist for a policy, and why not: the first step of backend auto."""
    works, why = usable()
    if not works:
        return False, why
    from pi05_ros.backends.identity import weights_id
    from pi05_ros.backends.staged.shapes import StageShapes
    from pi05_ros.backends.tensorrt.engine_store import find_verified

    root = Path(cache) if cache is not None else None
    try:
        device = require_gpu(fp8=False, near=model.device)
        shapes = StageShapes.of(model.config, views, max_prompt_tokens, horizon)
        engines = find_verified(weights_id(model), shapes, precision, device, root)
    except (BackendError, ValueError) as error:
        return False, str(error)
    title = f"{engines.flavor.title} {engines.document['tensorrt']}"
    name = engines.folder.name[:12]
    return True, f"{title} on {torch.cuda.get_device_name(device)}, engine {name}"
