"""Exported stages in ONNX Runtime sessions, as a staged engine.

ONNX Runtime's default optimization level refuses FP8 graphs (it rewrites Q/DQ pairs into
operators without an FP8 kernel); sessions here run at the basic level.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pi05_ros.backends.engine import ASKED_FOR, Precision
from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.export.export_document import (
    DTYPES,
    holds_fp4_products,
    stage_precision,
)
from pi05_ros.backends.export.mlp_only import join_runners
from pi05_ros.backends.onnx_runtime import load_runtime
from pi05_ros.backends.staged.engine import StagedEngine
from pi05_ros.backends.staged.shapes import StageShapes, graphs_of
from pi05_ros.model import Pi05

CUDA_PROVIDER = "CUDAExecutionProvider"


def _has_cuda() -> bool:
    return CUDA_PROVIDER in load_runtime().get_available_providers()


class OrtRunner:
    """One exported stage in an ONNX Runtime session."""

    def __init__(self, path: Path, device: torch.device, threads: int | None = None) -> None:
        onnxruntime = load_runtime()
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
    if holds_fp4_products(document):
        raise BackendError(
            "these graphs have NVFP4 products, for which ONNX Runtime has no operators; judge "
            "them with --backend simulated, build them with: pi05 build --flavor rtx"
        )
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
            f"{reason}; onnxruntime {load_runtime().__version__} on {where.type}, "
            f"{activation} graphs, {document['preset'] or 'not quantized'}"
        ),
        overlap=True,
    )
