"""Backend `onnx`: the exported stages through ONNX Runtime, on CPU or CUDA.

The same graphs that TensorRT gets, so the whole policy can run and be judged on them without
TensorRT. Graphs are exported on first use and kept in the cache folder of the checkpoint.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

from pi05_ros.backends.engine import ASKED_FOR, Engine, Precision
from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.onnx_runtime import load_runtime
from pi05_ros.model import Pi05

__all__ = ["create", "usable"]

INSTALL = "pip install onnx onnxruntime onnxscript (pins: requirements/tensorrt.txt)"


def usable() -> tuple[bool, str]:
    """Whether this backend can run here, and why not."""
    for package in ("onnxruntime", "onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            return False, f"{package} is not installed: {INSTALL}"
    try:
        onnxruntime = load_runtime()
    except ImportError as error:  # built for another numpy, say
        return False, f"onnxruntime is there but does not load: {error}"
    return True, f"onnxruntime {onnxruntime.__version__}"


def choose_precision(precision: Precision) -> tuple[Precision, str]:
    """What the graphs are exported in: the stages' precision and the type of activations.

    "auto" is fp32. One type of activations runs through all stages, so fp32 and fp16 stages do
    not mix; FP8 stages take the type of the vision stage.
    """
    wanted = {stage: getattr(precision, stage) for stage in ("vision", "prefill", "denoise")}
    vision = "fp32" if wanted["vision"] == "auto" else wanted["vision"]
    if vision not in ("fp32", "fp16"):
        raise BackendError(f"precision.vision {vision!r}: the onnx backend has fp32 and fp16")
    resolved = {"vision": vision}
    for stage in ("prefill", "denoise"):
        value = vision if wanted[stage] == "auto" else wanted[stage]
        if value not in (vision, "fp8"):
            raise BackendError(
                f"precision.{stage} {value!r} does not go with precision.vision {vision!r}; "
                f"accepted: {vision}, fp8"
            )
        resolved[stage] = value
    return Precision(**resolved), vision


def create(
    model: Pi05,
    precision: Precision,
    views: int,
    horizon: int,
    max_prompt_tokens: int,
    reason: str = ASKED_FOR,
    *,
    device: torch.device | str | None = None,
    graphs: str | Path | None = None,
    calibration: str | Path | None = None,
    cache: str | Path | None = None,
    threads: int | None = None,
) -> Engine:
    """Make a `StagedEngine` on ONNX Runtime.

    Args:
        model, precision, views, horizon, max_prompt_tokens: as of `create_engine`; precision is
            fp32, fp16, or (prefill and denoise) fp8.
        reason: why this backend was chosen.
        device: "cpu" or a CUDA device; None takes the model's, or the CPU if this onnxruntime has
            no CUDA.
        graphs: folder with exported graphs (`pi05 export`), which then decide what precision
            "auto" means; None exports into the cache.
        calibration: folder of a calibration (`pi05 calibrate --for onnx`) for fp8; None takes
            the newest of this checkpoint.
        cache: root of the cache folder.
        threads: CPU threads; None takes torch's number.

    Raises:
        BackendError: packages or calibration missing, graphs that do not fit.

    """
    works, why = usable()
    if not works:
        raise BackendError(f"backend onnx cannot be used: {why}")
    from pi05_ros.backends.export.artifacts import find_calibration, given_graphs, graphs_for
    from pi05_ros.backends.export.export_document import QUANTIZED, GraphPlan
    from pi05_ros.backends.identity import weights_id
    from pi05_ros.backends.onnx.engine import engine_of
    from pi05_ros.backends.staged.shapes import StageShapes

    shapes = StageShapes.of(model.config, views, max_prompt_tokens, horizon)
    root = Path(cache) if cache is not None else None
    identity = weights_id(model)
    if graphs is not None:
        folder = Path(graphs)
        document = given_graphs(folder, identity, shapes, precision)
        return engine_of(model, shapes, folder, document, device, threads, reason)
    resolved, activation = choose_precision(precision)
    quantized = [
        stage
        for stage, word in (("prefill", resolved.prefill), ("denoise_step", resolved.denoise))
        if word == "fp8"
    ]
    ranges = find_calibration(identity, calibration, root) if quantized else None
    plan = GraphPlan(activation, ranges, quantized or QUANTIZED)
    folder, document = graphs_for(model, identity, shapes, plan, root)
    return engine_of(model, shapes, folder, document, device, threads, reason)
