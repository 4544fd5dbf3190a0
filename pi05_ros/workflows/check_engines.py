"""Compare exported or compiled stages with the plain model, and keep the report."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from pi05_ros.backends.errors import BackendError
from pi05_ros.workflows.engine_requests import CheckRequest, Outlets, Say
from pi05_ros.workflows.export_graphs import export_subject
from pi05_ros.workflows.golden import Golden, golden_samples
from pi05_ros.workflows.subject import Subject, load_subject

DRY_RUN = "observations or ranges were made up; says nothing about a robot"


def check_subject(
    request: CheckRequest,
    subject: Subject,
    engine: Any,
    document: dict[str, Any],
    golden: Golden,
    outlets: Outlets,
    inspector: dict[str, Any] | None = None,
) -> tuple[Any, bool]:
    """Run the comparison.

    Args:
        request: names calibration and flow steps.
        subject: gives the reference.
        engine: under test.
        document: what was exported.
        golden: observations.
        outlets: for the progress.
        inspector: see `verify.check_engine`.

    Returns:
        The report, and whether it is of a dry run: observations or ranges were made up.

    """
    from pi05_ros.backends.export.artifacts import find_calibration
    from pi05_ros.backends.quantization.calibrate import reference_engine
    from pi05_ros.backends.verification.verify import check_engine

    # The reference is float32 to the last bit: TF32 is torch's default for convolutions.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    reference = reference_engine(subject.model, subject.shapes)
    fake = None
    made_up = golden.synthetic
    if document["quantised_stages"]:
        digest = document["calibration"]
        calibration = find_calibration(
            subject.weights, request.graphs.calibration, request.model.cache, digest
        )
        made_up |= bool(calibration.info.get("synthetic"))
        fake = reference_engine(
            subject.model,
            subject.shapes,
            calibration=calibration,
            quantized_stages=document["quantised_stages"],
            layout=document["layout"],
        )
    report = check_engine(
        engine,
        reference,
        fake,
        golden.samples,
        steps=request.samples.steps,
        inspector=inspector,
        progress=outlets.progress,
    )
    return report, made_up


def tell(report: Any, path: Path, say: Say) -> bool:
    """Say the verdict and where the report is; returns whether it passed."""
    cosines = [row["cosine"] for row in report.actions]
    worst = math.nan if None in cosines else min(cosines)
    say(f"{'passed' if report.ok else 'REFUSED'}: worst cosine of actions {worst:.6f}")
    for finding in report.failures[:10]:
        say(f"  {finding.item}: {finding.value:.6g}, limit {finding.limit:g}")
    say(f"report: {path}")
    return bool(report.ok)


def check_engines(
    request: CheckRequest,
    subject: Subject,
    engines: Any,
    export: Path,
    golden: Golden,
    outlets: Outlets,
    retry: str = "",
) -> bool:
    """Check a set of engines and keep the report with them; those that do not run have none.

    ``retry`` says why they are not what was asked for, if so; it stays with the report.
    """
    from pi05_ros.backends.export.export_document import read_export, verify_export
    from pi05_ros.backends.identity import machine_facts
    from pi05_ros.backends.tensorrt.binding import EngineFailedError
    from pi05_ros.backends.tensorrt.engine import TensorrtEngine
    from pi05_ros.backends.tensorrt.engine_report import kernel_facts, retry_of, write_report
    from pi05_ros.backends.tensorrt.engine_set import HOW_TO, UnverifiedEngineError, plan_digests
    from pi05_ros.backends.verification.report import write_files

    document = read_export(export)
    if document["graph_hash"] != engines.document["graph_hash"]:
        raise UnverifiedEngineError(
            f"the graphs in {export} are not those of the engines any more; {HOW_TO}"
        )
    verify_export(export, document)
    facts = kernel_facts(engines, export)
    device = _device(subject)
    plans = plan_digests(engines)  # of what is loaded now: a build may replace them meanwhile
    try:
        engine = TensorrtEngine(subject.model, engines, device)
        try:
            report, dry_run = check_subject(
                request, subject, engine, document, golden, outlets, facts
            )
        finally:
            engine.close()
    except EngineFailedError as error:
        (engines.folder / "check.json").unlink(missing_ok=True)  # what an earlier check found
        outlets.say(f"REFUSED: {error}")
        return False
    retry = retry or retry_of(engines)  # of the build, when this is a later check
    write_report(engines, report, golden.digest, plans, device, retry, dry_run=dry_run)
    path = write_files(
        report,
        engines.folder,
        {
            **({"second choice": retry} if retry else {}),
            **({"dry run": DRY_RUN} if dry_run else {}),
            "engine key": engines.folder.name,
            "preset": document["preset"] or "not quantized",
            "layout": document["layout"],
            engines.flavor.title: engines.document["tensorrt"],
            **({"target": engines.document["target"]} if engines.document["target"] else {}),
            **{f"machine {key}": value for key, value in machine_facts(device).items()},
        },
    )
    return tell(report, path, outlets.say)


def _device(subject: Subject) -> torch.device:
    from pi05_ros.backends.tensorrt import require_gpu

    return require_gpu(fp8=False, near=subject.model.device)


def simulated_engine(
    request: CheckRequest, subject: Subject, say: Say
) -> tuple[Any, dict[str, Any]]:
    """A calibration's engines simulated in torch, and what they stand for."""
    from pi05_ros.backends.export.artifacts import find_calibration
    from pi05_ros.backends.quantization.engine_arithmetic import compiled_engine

    stages = request.graphs.quantized_stages
    if not stages:
        raise BackendError("nothing to simulate: neither prefill nor denoise is quantized")
    calibration = find_calibration(
        subject.weights, request.graphs.calibration, request.model.cache
    )
    say(f"preset {calibration.preset}: {calibration.choice.summary}")
    engine = compiled_engine(
        subject.model,
        subject.shapes,
        calibration=calibration,
        quantized_stages=stages,
        layout=request.graphs.layout,
        backend=f"simulated {calibration.preset}",
    )
    digest = calibration.digest
    return engine, {
        "preset": calibration.preset,
        "quantised_stages": stages,
        "layout": request.graphs.layout,
        "calibration": digest,
    }


def check(request: CheckRequest, outlets: Outlets = Outlets()) -> bool:
    """Compare what `CheckRequest.backend` names with the plain model; True if it passed.

    Raises:
        BackendError, CalibrationError: it could not be checked.

    """
    if request.backend == "tensorrt":
        return _check_tensorrt(request, outlets)
    from pi05_ros.backends.files import require_writable
    from pi05_ros.backends.identity import machine_facts
    from pi05_ros.backends.verification.report import write_files, write_json

    if request.engine is not None:
        raise BackendError(f"--engine is for --backend tensorrt, not {request.backend}")
    require_writable(request.out)
    subject = load_subject(request.model, "fp32")
    engine, document = _engine_of(request, subject, outlets.say)
    golden = golden_samples(request, subject, document["calibration"], outlets)
    report, dry_run = check_subject(request, subject, engine, document, golden, outlets)
    facts = {
        **({"dry run": DRY_RUN} if dry_run else {}),
        "weights": subject.weights,
        "preset": document["preset"] or "not quantized",
        "layout": document["layout"],
        "golden": golden.digest,
        **machine_facts(subject.model.device),
    }
    path = write_files(report, request.out, facts)
    write_json(report, request.out / "check.json", facts)
    return tell(report, path, outlets.say)


def _engine_of(request: CheckRequest, subject: Subject, say: Say) -> tuple[Any, dict[str, Any]]:
    """Engine under test and what it was made from, for all backends but TensorRT."""
    if request.backend == "onnx":
        from pi05_ros.backends.onnx.engine import engine_of

        folder, document = export_subject(request.model, request.graphs, subject)
        return engine_of(subject.model, subject.shapes, folder, document), document
    if request.backend == "simulated":
        return simulated_engine(request, subject, say)
    from pi05_ros.backends.experimental.scaled_mm import scaled_mm_engine
    from pi05_ros.backends.experimental.torch_tensorrt import torch_tensorrt_engine
    from pi05_ros.backends.export.artifacts import find_calibration

    calibration = find_calibration(
        subject.weights, request.graphs.calibration, request.model.cache
    )
    whole = request.backend == "scaled_mm"
    make = scaled_mm_engine if whole else torch_tensorrt_engine
    return make(subject.model, subject.shapes, calibration), {
        "preset": calibration.preset,
        "quantised_stages": ["prefill", "denoise_step"],
        "layout": "stages" if whole else "mlp_only",
        "calibration": calibration.digest,
    }


def _check_tensorrt(request: CheckRequest, outlets: Outlets) -> bool:
    from pi05_ros.backends.export.export_document import read_export
    from pi05_ros.backends.files import model_folder
    from pi05_ros.backends.tensorrt.engine_set import (
        UnverifiedEngineError,
        export_of,
        open_set,
        require_match,
    )
    from pi05_ros.backends.tensorrt.flavor import require_any

    require_any()
    subject = load_subject(request.model, "fp32")
    folder = request.engine and request.engine.resolve()
    if folder is None:
        base = model_folder(subject.weights, request.model.cache) / "engines"
        found = sorted(base.glob("[!.]*/key.json"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise UnverifiedEngineError(f"no engines in {base}; build them with: pi05 build")
        folder = found[-1].parent
    engines = open_set(folder)
    require_match(engines, subject.weights, _device(subject))
    export = export_of(engines)
    golden = golden_samples(request, subject, read_export(export)["calibration"], outlets)
    return check_engines(request, subject, engines, export, golden, outlets)
