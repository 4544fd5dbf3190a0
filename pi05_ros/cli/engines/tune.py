"""`pi05 tune`: choose the cuda backend's tile sizes on this GPU."""

from __future__ import annotations

import argparse

from pi05_ros.cli.common_options import add_options
from pi05_ros.request_options import filled
from pi05_ros.workflows.engine_requests import TuneRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_options(parser, TuneRequest)


def run(args: argparse.Namespace) -> int:
    """Tune each precision in turn and write the user's file."""
    from pi05_ros.workflows.tune_kernels import tune_kernels

    tune_kernels(filled(TuneRequest, args))
    return 0
