"""`pi05 export CHECKPOINT`: the stages as checked ONNX graphs."""

from __future__ import annotations

import argparse

from pi05_ros.cli.common_options import add_options
from pi05_ros.cli.engines.engine_options import memory_named
from pi05_ros.request_options import filled
from pi05_ros.workflows.engine_requests import ExportRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_options(parser, ExportRequest)


def run(args: argparse.Namespace) -> int:
    """Export, check, print what was found."""
    from pi05_ros.workflows.export_graphs import export

    with memory_named():
        export(filled(ExportRequest, args))
    return 0
