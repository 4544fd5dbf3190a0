"""Export the stages of a checkpoint as checked ONNX graphs."""

from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import Any

from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.export.artifacts import find_calibration, graphs_for
from pi05_ros.backends.export.export import export_all, require_onnx
from pi05_ros.backends.export.export_document import GraphPlan
from pi05_ros.backends.files import require_writable
from pi05_ros.workflows.engine_requests import ExportRequest, GraphRequest, ModelRequest, Say
from pi05_ros.workflows.subject import Subject, load_subject


def export_subject(
    model: ModelRequest,
    graphs: GraphRequest,
    subject: Subject,
    out: Path | None = None,
    full_steps: int | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Export into the cache or into ``out``; returns folder and content of export.json."""
    activation = "fp32" if graphs.precision == "fp32" else "fp16"
    quantized = graphs.quantized_stages
    calibration = None
    if quantized:
        calibration = find_calibration(subject.weights, graphs.calibration, model.cache)
    plan = GraphPlan(activation, calibration, quantized, graphs.layout, full_steps)
    if out is None:
        return graphs_for(subject.model, subject.weights, subject.shapes, plan, model.cache)
    return out, export_all(subject.model, subject.weights, subject.shapes, out, plan)


def export(request: ExportRequest, say: Say = print) -> Path:
    """Export, check, say what was found; returns the folder.

    Raises:
        BackendError: packages, ranges or room are missing, or a graph breaks a rule.

    """
    require_onnx()
    if request.full_steps and request.out is None:
        raise BackendError("--full-steps needs --out: the cache is for what backends load")
    if request.out is not None:
        require_writable(request.out)
    subject = load_subject(request.model, "fp32")
    started = time.perf_counter()
    folder, document = export_subject(
        request.model, request.graphs, subject, request.out, request.full_steps
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    for stage, entry in document["stages"].items():
        products = ", ".join(f"{count} {kind}" for kind, count in sorted(entry["matmuls"].items()))
        size = entry["initializer_bytes"] / 2**20
        say(f"{stage}: products {products}; constants {size:.1f} MiB; {entry['seconds']} s")
    seconds = time.perf_counter() - started
    say(f"all graph checks passed; {seconds:.1f} s, peak memory {peak:.1f} GiB")
    say(f"written to {folder}")
    return folder
