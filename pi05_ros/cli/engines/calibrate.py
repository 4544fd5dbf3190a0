"""`pi05 calibrate CHECKPOINT --for BACKEND`: ranges or scales from recorded observations."""

from __future__ import annotations

import argparse
from pathlib import Path

from pi05_ros.cli.common_options import add_options
from pi05_ros.cli.engines.engine_options import memory_named, terminal, warn
from pi05_ros.errors import InvalidValueError
from pi05_ros.request_options import filled
from pi05_ros.workflows.engine_requests import (
    CudaCalibrationRequest,
    ModelRequest,
    SampleRequest,
    StageCalibrationRequest,
)

TARGETS = ("cuda", "onnx", "tensorrt")
OWN_OPTIONS = {"cuda": ("vision",), "onnx": ("preset", "experimental")}
"""Options that only one kind of target has; None or False when they are not given."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_options(parser, ModelRequest)
    add_options(parser, SampleRequest)
    parser.add_argument(
        "--for",
        dest="target",
        choices=TARGETS,
        default=TARGETS[0],
        help="backend that is calibrated (default %(default)s): cuda: FP8 activation scales; onnx "
        "and tensorrt (one and the same): ranges, golden observations and a report per layer",
    )
    cuda = parser.add_argument_group("only for cuda")
    cuda.add_argument(
        "--vision", choices=("bf16", "fp8"), help="precision of the vision tower (default bf16)"
    )
    add_stage_arguments(parser.add_argument_group("only for onnx and tensorrt"))
    parser.add_argument(
        "--out",
        type=Path,
        help="folder, for cuda NAME of NAME.safetensors and .json; default: the cache, where "
        "engines find it",
    )


def add_stage_arguments(parser: argparse._ActionsContainer) -> None:
    """What is quantized, for the backends onnx and tensorrt."""
    parser.add_argument(
        "--preset",
        metavar="PRESET",
        help="fp8 (default), fp8_attention, fp8_tensor, int8_smoothquant, w8a16 or nvfp4; "
        "docs/engines.md describes them",
    )
    parser.add_argument(
        "--experimental", action="store_true", help="take a preset marked experimental"
    )


def run(args: argparse.Namespace) -> int:
    """Calibrate and keep the result."""
    kind = "cuda" if args.target == "cuda" else "onnx"
    for other, names in OWN_OPTIONS.items():
        for name in names:
            if other != kind and getattr(args, name) not in (None, False):
                raise InvalidValueError(f"--{name} is not for --for {args.target}")
    return _run_cuda(args) if kind == "cuda" else run_stages(args)


def _run_cuda(args: argparse.Namespace) -> int:
    from pi05_ros.workflows.calibrate_cuda import calibrate_cuda

    request = filled(CudaCalibrationRequest, args, vision=args.vision or "bf16")
    with memory_named():
        calibrate_cuda(request, warn=warn)
    return 0


def run_stages(args: argparse.Namespace) -> int:
    """Calibrate for the backends onnx and tensorrt."""
    from pi05_ros.workflows.calibrate_stages import calibrate_stages

    request = filled(StageCalibrationRequest, args, preset=args.preset or "fp8")
    with memory_named():
        calibrate_stages(request, terminal())
    return 0
