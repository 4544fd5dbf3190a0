"""`pi05 export CHECKPOINT`: the stages as checked ONNX graphs."""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path
from typing import Any

from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.staged.shapes import LAYOUTS
from pi05_ros.cli.engines.engine_options import (
    Subject,
    add_model_arguments,
    guarded,
    load_subject,
    positive,
)

PRECISIONS = ("fp8", "fp16", "fp32")


def add_precision_arguments(parser: argparse.ArgumentParser) -> None:
    """What the stages run in, shared with `pi05 build`."""
    parser.add_argument(
        "--precision",
        default="fp8",
        choices=PRECISIONS,
        help="fp8: vision fp16, prefill and denoise fp8 (or what the calibration says)",
    )
    parser.add_argument("--prefill", choices=("fp8", "fp16"), help="the prefill alone otherwise")
    parser.add_argument("--denoise", choices=("fp8", "fp16"), help="the denoise alone otherwise")
    parser.add_argument(
        "--layout",
        default="stages",
        choices=LAYOUTS,
        help="mlp_only: of the prefill only the MLPs, torch runs the attention between them",
    )
    parser.add_argument("--calibration", type=Path, help="folder of pi05 quantize")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_model_arguments(parser)
    add_precision_arguments(parser)
    parser.add_argument(
        "--full-steps",
        type=positive,
        help="also one graph of all stages with this many steps unrolled; needs --out",
    )
    parser.add_argument("--out", type=Path, help="folder instead of the cache")


def run(args: argparse.Namespace) -> int:
    """Export, check, print what was found."""
    return guarded(lambda: _run(args))


def quantized_by(args: argparse.Namespace) -> list[str]:
    """Stages that `add_precision_arguments` asks to quantize."""
    words = {"prefill": args.prefill, "denoise_step": args.denoise}
    return [stage for stage, word in words.items() if (word or args.precision) == "fp8"]


def export_subject(
    args: argparse.Namespace, subject: Subject, out: Path | None, full_steps: int | None = None
) -> tuple[Path, dict[str, Any]]:
    """Export into the cache or into ``out``; returns folder and content of export.json."""
    from pi05_ros.backends.export.artifacts import find_calibration, graphs_for
    from pi05_ros.backends.export.export import export_all

    activation = "fp32" if args.precision == "fp32" else "fp16"
    if activation == "fp32" and (args.prefill or args.denoise):
        raise BackendError("--prefill and --denoise go with --precision fp8 or fp16, not fp32")
    quantized = quantized_by(args)
    calibration = None
    if quantized:
        calibration = find_calibration(subject.weights, args.calibration, args.cache)
    if out is None:
        return graphs_for(
            subject.model,
            subject.weights,
            subject.shapes,
            activation,
            calibration,
            args.cache,
            quantized,
            args.layout,
        )
    document = export_all(
        subject.model,
        subject.weights,
        subject.shapes,
        out,
        activation=activation,
        calibration=calibration,
        full_steps=full_steps,
        quantized_stages=quantized,
        layout=args.layout,
    )
    return out, document


def _run(args: argparse.Namespace) -> int:
    from pi05_ros.backends.export.export import require_onnx
    from pi05_ros.backends.files import require_writable

    require_onnx()
    if args.full_steps and args.out is None:
        raise BackendError("--full-steps needs --out: the cache is for what backends load")
    if args.out is not None:
        require_writable(args.out)
    subject = load_subject(args, "fp32")
    started = time.perf_counter()
    folder, document = export_subject(args, subject, args.out, args.full_steps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    for stage, entry in document["stages"].items():
        products = ", ".join(f"{count} {kind}" for kind, count in sorted(entry["matmuls"].items()))
        size = entry["initializer_bytes"] / 2**20
        print(f"{stage}: products {products}; constants {size:.1f} MiB; {entry['seconds']} s")
    seconds = time.perf_counter() - started
    print(f"all graph checks passed; {seconds:.1f} s, peak memory {peak:.1f} GiB")
    print(f"written to {folder}")
    return 0
