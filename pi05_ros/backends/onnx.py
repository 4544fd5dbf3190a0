"""Backend `onnx`: the exported stages through ONNX Runtime, on CPU or CUDA.

The same graphs that TensorRT gets, so the whole policy can run and be judged on them without
TensorRT. Graphs are exported on first use and kept in the cache folder of the checkpoint.

ONNX Runtime's default optimization level refuses FP8 graphs (it rewrites Q/DQ pairs into
operators without an FP8 kernel); sessions here run at the basic level.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pi05_ros.backends.engine import ASKED_FOR, Precision
from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.export.artifacts import find_calibration, given_graphs, graphs_for
from pi05_ros.backends.export.export import DTYPES, QUANTIZED, stage_precision
from pi05_ros.backends.export.mlp_only import join_runners
from pi05_ros.backends.identity import weights_id
from pi05_ros.backends.staged.engine import StagedEngine
from pi05_ros.backends.staged.shapes import StageShapes, graphs_of
from pi05_ros.model import Pi05

INSTALL = "pip install onnx onnxruntime onnxscript (pins: requirements/tensorrt.txt)"
CUDA_PROVIDER = "CUDAExecutionProvider"
log = logging.getLogger(__name__)


def usable() -> tuple[bool, str]:
    """Whether this backend can run here, and why not."""
    for package in ("onnxruntime", "onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            return False, f"{package} is not installed: {INSTALL}"
    try:
        import onnxruntime
    except ImportError as error:  # built for another numpy, say
        return False, f"onnxruntime is there but does not load: {error}"
    return True, f"onnxruntime {onnxruntime.__version__}"


def _has_cuda() -> bool:
    import onnxruntime

    return CUDA_PROVIDER in onnxruntime.get_available_providers()


class OrtRunner:
    """One exported stage in an ONNX Runtime session."""

    def __init__(self, path: Path, device: torch.device, threads: int | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or torch.get_num_threads()
        providers: list[Any] = ["CPUExecutionProvider"]
        if device.type == "cuda":
            if not _has_cuda():
                raise BackendError(
                    "this onnxruntime has no CUDA provider; install onnxruntime-gpu or use "
                    "device cpu"
                )
            index = torch.cuda.current_device() if device.index is None else device.index
            providers.insert(0, (CUDA_PROVIDER, {"device_id": index}))
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # onnxruntime's own exception types share no base
            raise BackendError(f"ONNX Runtime refuses {path}: {error}") from error
        if device.type == "cuda" and CUDA_PROVIDER not in session.get_providers():
            # It goes on without, on the CPU, if CUDA's or cuDNN's libraries do not load.
            raise BackendError(
                "ONNX Runtime could not start its CUDA provider; its release wants a CUDA and a "
                "cuDNN of certain versions. Install them or use device cpu"
            )
        self.session: Any = session
        self.device = device
        self.inputs = [value.name for value in session.get_inputs()]
        self.outputs = [value.name for value in session.get_outputs()]

    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Run once; outputs are new tensors on the runner's device."""
        if self.session is None:
            raise BackendError("this engine is closed")
        feeds: dict[str, np.ndarray] = {
            name: inputs[name].detach().cpu().contiguous().numpy() for name in self.inputs
        }
        values = self.session.run(self.outputs, feeds)
        return {
            name: torch.from_numpy(value).to(self.device)
            for name, value in zip(self.outputs, values, strict=True)
        }

    def close(self) -> None:
        """Drop the session."""
        self.session = None


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
) -> StagedEngine:
    """Make a `StagedEngine` on ONNX Runtime.

    Args:
        model: the plain model: weights to export, prompt embeddings, modulation.
        precision: per stage fp32, fp16, or (prefill and denoise) fp8.
        views: camera slots.
        horizon: action steps.
        max_prompt_tokens: prompt slots.
        reason: why this backend was chosen.
        device: "cpu" or a CUDA device; None takes the model's, or the CPU if this onnxruntime has
            no CUDA.
        graphs: folder with exported graphs (`pi05 export`), which then decide what precision
            "auto" means; None exports into the cache.
        calibration: folder of a calibration (`pi05 quantize`) for fp8; None takes the newest of
            this checkpoint.
        cache: root of the cache folder.
        threads: CPU threads; None takes torch's number.

    Raises:
        BackendError: packages or calibration missing, graphs that do not fit.

    """
    works, why = usable()
    if not works:
        raise BackendError(f"backend onnx cannot be used: {why}")
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
    folder, document = graphs_for(
        model, identity, shapes, activation, ranges, root, quantized or QUANTIZED
    )
    return engine_of(model, shapes, folder, document, device, threads, reason)


def engine_of(
    model: Pi05,
    shapes: StageShapes,
    folder: Path,
    document: dict[str, Any],
    device: torch.device | str | None = None,
    threads: int | None = None,
    reason: str = ASKED_FOR,
) -> StagedEngine:
    """Make the engine of exported graphs; ``document`` is their ``export.json``.

    ``device``, ``threads`` and ``reason`` are as in `create`.
    """
    where = model.device if device is None else torch.device(device)
    if device is None and not _has_cuda():
        where = torch.device("cpu")
    activation = document["activation"]
    graphs = {
        name: OrtRunner(folder / f"{name}.onnx", where, threads)
        for name in graphs_of(document["layout"], shapes.depth)
    }
    runners = join_runners(model, shapes, DTYPES[activation], graphs)
    return StagedEngine(
        model,
        shapes,
        runners,
        backend="onnx",
        precision=Precision(**stage_precision(document)),
        dtype=DTYPES[activation],
        device=where,
        reason=(
            f"{reason}; {usable()[1]} on {where.type}, {activation} graphs, "
            f"{document['preset'] or 'not quantized'}"
        ),
        overlap=True,
    )
