"""`pi05 check CHECKPOINT`: compare exported or compiled stages with the plain model."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.quantization.samples import (
    Sample,
    edge_cases,
    load_samples,
    require_fit,
    require_real,
    set_digest,
)
from pi05_ros.cli.engines.engine_options import (
    Subject,
    add_model_arguments,
    add_sample_arguments,
    add_steps_argument,
    collect_samples,
    guarded,
    load_subject,
    show_progress,
)
from pi05_ros.cli.engines.export import add_precision_arguments, export_subject, quantized_by
from pi05_ros.small_files import MIB, read_text

PASSED, REFUSED = 0, 1
DRY_RUN = "observations or ranges were made up; says nothing about a robot"
BACKENDS = ("tensorrt", "onnx", "simulated", "scaled_mm", "torch_tensorrt")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_model_arguments(parser)
    add_precision_arguments(parser)
    add_sample_arguments(parser)
    parser.add_argument(
        "--backend",
        default="tensorrt",
        choices=BACKENDS,
        help="tensorrt: the newest engines; onnx: the graphs in ONNX Runtime; simulated: the "
        "calibration's arithmetic in torch, which judges any preset anywhere; scaled_mm: the same "
        "FP8 scales on this GPU's FP8 units through torch; torch_tensorrt: prefill MLPs and "
        "denoise step compiled by torch-tensorrt (experimental). Precision and layout can be "
        "chosen for onnx and simulated; engines bring their own",
    )
    parser.add_argument("--engine", type=Path, help="engine folder instead of the newest")
    add_steps_argument(parser)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("out/check"),
        help="folder of the report (%(default)s); that of engines always lies with them",
    )


def run(args: argparse.Namespace) -> int:
    """Check; exit code 0 passed, 1 refused, 2 could not be checked."""
    return guarded(lambda: _run(args))


@dataclass(frozen=True)
class Golden:
    """What a check runs on.

    Attributes:
        samples: observations, edge cases last.
        digest: of the observations.
        synthetic: some were made up.

    """

    samples: list[Sample]
    digest: str
    synthetic: bool


def golden_samples(args: argparse.Namespace, subject: Subject, digest: str | None) -> Golden:
    """Samples given on the command line, else those of the calibration; edge cases added.

    Args:
        args: the command line.
        subject: what is checked.
        digest: of the calibration of what is checked, if it has one.

    Raises:
        BackendError, CalibrationError: none, too few, made up without permission, or unfit.

    """
    from pi05_ros.backends.export.artifacts import find_golden

    if args.observations or args.bag or args.allow_synthetic:
        samples = collect_samples(args, subject)
    else:
        path = find_golden(subject.weights, args.calibration, args.cache, digest)
        samples, _ = load_samples(path)
        require_fit(samples, subject.shapes, subject.model.config.vocab)
    require_real(samples, allow_synthetic=args.allow_synthetic)
    return Golden(
        [*samples, *edge_cases(samples, subject.shapes.prompt_tokens)],
        set_digest(samples),
        any(sample.synthetic for sample in samples),
    )


def check_subject(
    args: argparse.Namespace,
    subject: Subject,
    engine: Any,
    document: dict[str, Any],
    golden: Golden,
    inspector: dict[str, Any] | None = None,
) -> tuple[Any, bool]:
    """Run the comparison.

    Args:
        args: the command line.
        subject: gives the reference.
        engine: under test.
        document: what was exported.
        golden: observations.
        inspector: see `prove.check_engine`.

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
        calibration = find_calibration(subject.weights, args.calibration, args.cache, digest)
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
        steps=args.steps,
        inspector=inspector,
        progress=show_progress,
    )
    return report, made_up


def tell(report: Any, path: Path) -> int:
    """Print the verdict and where the report is."""
    cosines = [row["cosine"] for row in report.actions]
    worst = math.nan if None in cosines else min(cosines)
    print(f"{'passed' if report.ok else 'REFUSED'}: worst cosine of actions {worst:.6f}")
    for finding in report.failures[:10]:
        print(f"  {finding.item}: {finding.value:.6g}, limit {finding.limit:g}")
    print(f"report: {path}")
    return PASSED if report.ok else REFUSED


def check_engines(
    args: argparse.Namespace,
    subject: Subject,
    engines: Any,
    export: Path,
    golden: Golden,
    retry: str = "",
) -> int:
    """Check a set of engines and keep the report with them; those that do not run have none.

    ``retry`` says why they are not what was asked for, if so; it stays with the report.
    """
    from pi05_ros.backends.export.export import read_export, verify_export
    from pi05_ros.backends.quantization.presets import preset
    from pi05_ros.backends.tensorrt.binding import EngineFailedError
    from pi05_ros.backends.tensorrt.engine import TensorrtEngine
    from pi05_ros.backends.tensorrt.engine_store import (
        HOW_TO,
        UnprovenEngineError,
        plan_digests,
        retry_of,
        write_report,
    )
    from pi05_ros.backends.verification.inspector import quantized_products, read_layers
    from pi05_ros.backends.verification.report import write_files

    document = read_export(export)
    if document["graph_hash"] != engines.document["graph_hash"]:
        raise UnprovenEngineError(
            f"the graphs in {export} are not those of the engines any more; {HOW_TO}"
        )
    verify_export(export, document)
    facts = {}
    kind = preset(document["preset"]).weights if document["preset"] else "fp8"
    for stage in engines.graphs:
        expected = quantized_products(str(export / f"{stage}.onnx"))
        layers = engines.folder / f"layers_{stage}.json"
        try:
            found = read_layers(read_text(layers, 256 * MIB), expected, kind)
        except ValueError as error:
            raise UnprovenEngineError(f"{layers} cannot be read ({error}); {HOW_TO}") from None
        facts[stage] = (found, len(expected))
    plans = plan_digests(engines)  # of what is loaded now: a build may replace them meanwhile
    try:
        engine = TensorrtEngine(subject.model, engines, _device(subject))
        try:
            report, dry_run = check_subject(args, subject, engine, document, golden, facts)
        finally:
            engine.close()
    except EngineFailedError as error:
        (engines.folder / "check.json").unlink(missing_ok=True)  # what an earlier check found
        print(f"REFUSED: {error}")
        return REFUSED
    retry = retry or retry_of(engines)  # of the build, when this is a later check
    write_report(engines, report, golden.digest, plans, retry, dry_run=dry_run)
    machine = engines.document["machine"]
    path = write_files(
        report,
        engines.folder,
        {
            **({"second choice": retry} if retry else {}),
            **({"dry run": DRY_RUN} if dry_run else {}),
            "engine key": engines.folder.name,
            "preset": document["preset"] or "not quantized",
            "layout": document["layout"],
            "TensorRT": engines.document["tensorrt"],
            **{f"machine {key}": value for key, value in machine.items()},
        },
    )
    return tell(report, path)


def _device(subject: Subject) -> torch.device:
    from pi05_ros.backends.tensorrt import require_gpu

    return require_gpu(fp8=False, near=subject.model.device)


def simulated_engine(args: argparse.Namespace, subject: Subject) -> tuple[Any, dict[str, Any]]:
    """A calibration's quantization simulated in torch, and what it stands for."""
    from pi05_ros.backends.export.artifacts import find_calibration
    from pi05_ros.backends.quantization.calibrate import reference_engine

    stages = quantized_by(args)
    if not stages:
        raise BackendError("nothing to simulate: neither prefill nor denoise is quantized")
    calibration = find_calibration(subject.weights, args.calibration, args.cache)
    print(f"preset {calibration.preset}: {calibration.choice.summary}")
    engine = reference_engine(
        subject.model,
        subject.shapes,
        calibration=calibration,
        quantized_stages=stages,
        layout=args.layout,
        backend=f"simulated {calibration.preset}",
    )
    digest = calibration.digest
    return engine, {
        "preset": calibration.preset,
        "quantised_stages": stages,
        "layout": args.layout,
        "calibration": digest,
    }


def _run(args: argparse.Namespace) -> int:
    if args.backend == "tensorrt":
        return _run_tensorrt(args)
    from pi05_ros.backends.files import require_writable
    from pi05_ros.backends.identity import machine_facts
    from pi05_ros.backends.verification.report import write_files, write_json

    if args.engine is not None:
        raise BackendError(f"--engine is for --backend tensorrt, not {args.backend}")
    require_writable(args.out)
    subject = load_subject(args, "fp32")
    if args.backend == "onnx":
        from pi05_ros.backends.onnx.engine import engine_of

        folder, document = export_subject(args, subject, None)
        engine = engine_of(subject.model, subject.shapes, folder, document)
    elif args.backend == "simulated":
        engine, document = simulated_engine(args, subject)
    else:
        from pi05_ros.backends.experimental.scaled_mm import scaled_mm_engine
        from pi05_ros.backends.experimental.torch_tensorrt import torch_tensorrt_engine
        from pi05_ros.backends.export.artifacts import find_calibration

        calibration = find_calibration(subject.weights, args.calibration, args.cache)
        whole = args.backend == "scaled_mm"
        make = scaled_mm_engine if whole else torch_tensorrt_engine
        engine = make(subject.model, subject.shapes, calibration)
        document = {
            "preset": calibration.preset,
            "quantised_stages": ["prefill", "denoise_step"],
            "layout": "stages" if whole else "mlp_only",
            "calibration": calibration.digest,
        }
    golden = golden_samples(args, subject, document["calibration"])
    report, dry_run = check_subject(args, subject, engine, document, golden)
    facts = {
        **({"dry run": DRY_RUN} if dry_run else {}),
        "weights": subject.weights,
        "preset": document["preset"] or "not quantized",
        "layout": document["layout"],
        "golden": golden.digest,
        **machine_facts(subject.model.device),
    }
    path = write_files(report, args.out, facts)
    write_json(report, args.out / "check.json", facts)
    return tell(report, path)


def _run_tensorrt(args: argparse.Namespace) -> int:
    from pi05_ros.backends.export.export import read_export
    from pi05_ros.backends.files import model_folder
    from pi05_ros.backends.tensorrt.binding import require_tensorrt
    from pi05_ros.backends.tensorrt.engine_store import (
        UnprovenEngineError,
        export_of,
        open_set,
        require_match,
    )

    require_tensorrt()
    subject = load_subject(args, "fp32")
    folder = args.engine and args.engine.resolve()
    if folder is None:
        base = model_folder(subject.weights, args.cache) / "engines"
        found = sorted(base.glob("[!.]*/key.json"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise UnprovenEngineError(f"no engines in {base}; build them with: pi05 build")
        folder = found[-1].parent
    engines = open_set(folder)
    require_match(engines, subject.weights, _device(subject))
    export = export_of(engines)
    golden = golden_samples(args, subject, read_export(export)["calibration"])
    return check_engines(args, subject, engines, export, golden)
