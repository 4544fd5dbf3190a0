"""`pi05 check CHECKPOINT`: compare exported or compiled stages with the plain model."""

from __future__ import annotations

import argparse

from pi05_ros.cli.common_options import add_options
from pi05_ros.cli.engines.engine_options import memory_named, terminal
from pi05_ros.request_options import filled
from pi05_ros.workflows.engine_requests import CheckRequest

PASSED, REFUSED = 0, 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_options(parser, CheckRequest)


def run(args: argparse.Namespace) -> int:
    """Check; exit code 0 passed, 1 refused, 2 (from `main`) could not be checked."""
    from pi05_ros.workflows.check_engines import check

    with memory_named():
        return PASSED if check(filled(CheckRequest, args), terminal()) else REFUSED
