"""`pi05 check CHECKPOINT`: compare exported or compiled stages with the plain model."""

from __future__ import annotations

import argparse
from pathlib import Path

from pi05_ros.cli.engines.engine_options import (
    add_model_arguments,
    add_precision_arguments,
    add_sample_arguments,
    graph_request,
    memory_named,
    model_request,
    sample_request,
    terminal,
)
from pi05_ros.runtime.parameter_specs import filled
from pi05_ros.workflows.engine_requests import CHECKED_BACKENDS, CheckRequest

PASSED, REFUSED = 0, 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_model_arguments(parser)
    add_precision_arguments(parser)
    add_sample_arguments(parser)
    parser.add_argument(
        "--backend",
        default=CHECKED_BACKENDS[0],
        choices=CHECKED_BACKENDS,
        help="tensorrt: the newest engines; onnx: the graphs in ONNX Runtime; simulated: the "
        "calibration's arithmetic in torch, which judges any preset anywhere; scaled_mm: the same "
        "FP8 scales on this GPU's FP8 units through torch; torch_tensorrt: prefill MLPs and "
        "denoise step compiled by torch-tensorrt (experimental). Precision and layout can be "
        "chosen for onnx and simulated; engines bring their own",
    )
    parser.add_argument("--engine", type=Path, help="engine folder instead of the newest")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("out/check"),
        help="folder of the report (%(default)s); that of engines always lies with them",
    )


def run(args: argparse.Namespace) -> int:
    """Check; exit code 0 passed, 1 refused, 2 (from `main`) could not be checked."""
    from pi05_ros.workflows.check_engines import check

    request = filled(
        CheckRequest,
        args,
        model=model_request(args),
        graphs=graph_request(args),
        samples=sample_request(args),
    )
    with memory_named():
        return PASSED if check(request, terminal()) else REFUSED
