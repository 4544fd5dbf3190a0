"""`pi05 export CHECKPOINT`: the stages as checked ONNX graphs."""

from __future__ import annotations

import argparse
from pathlib import Path

from pi05_ros.cli.engines.engine_options import (
    add_model_arguments,
    add_precision_arguments,
    graph_request,
    memory_named,
    model_request,
    positive,
)
from pi05_ros.workflows.engine_requests import ExportRequest


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
    from pi05_ros.workflows.export_graphs import export

    request = ExportRequest(model_request(args), graph_request(args), args.full_steps, args.out)
    with memory_named():
        export(request)
    return 0
