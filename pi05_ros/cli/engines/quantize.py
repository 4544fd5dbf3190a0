"""`pi05 quantize CHECKPOINT`: earlier name of `pi05 calibrate --for onnx` and `--for tensorrt`."""

from __future__ import annotations

import argparse
from pathlib import Path

from pi05_ros.cli.common_options import add_options
from pi05_ros.cli.engines.calibrate import add_stage_arguments, run_stages
from pi05_ros.workflows.engine_requests import ModelRequest, SampleRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_options(parser, ModelRequest)
    add_options(parser, SampleRequest)
    add_stage_arguments(parser)
    parser.add_argument("--out", type=Path, help="folder instead of the cache")


def run(args: argparse.Namespace) -> int:
    """Calibrate and keep ranges, samples and report."""
    return run_stages(args)
