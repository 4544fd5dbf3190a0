"""`pi05 build CHECKPOINT`: export, compile with TensorRT, check, keep the report."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pi05_ros.cli.common_options import add_options
from pi05_ros.cli.engines.check import PASSED, REFUSED
from pi05_ros.cli.engines.engine_options import memory_named, terminal
from pi05_ros.request_options import filled
from pi05_ros.workflows.engine_requests import BuildRequest

if TYPE_CHECKING:
    from rich.progress import TaskID

    from pi05_ros.workflows.build_engines import Phases


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_options(parser, BuildRequest)


def run(args: argparse.Namespace) -> int:
    """Build; exit code 0 verified (or built with --no-check), 1 refused, 2 neither."""
    from pi05_ros.workflows.build_engines import build

    with memory_named():
        return PASSED if build(filled(BuildRequest, args), terminal(), _phases) else REFUSED


@contextmanager
def _phases() -> Iterator[Phases]:
    """TensorRT's build phases as progress bars."""
    from rich.progress import Progress

    with Progress(transient=True) as progress:
        tasks: dict[tuple[str, str], TaskID] = {}

        def show(stage: str, phase: str, step: int, steps: int) -> None:
            key = (stage, phase)
            if key not in tasks:
                tasks[key] = progress.add_task(f"{stage}: {phase}", total=steps)
            progress.update(tasks[key], completed=step, visible=step < steps)

        yield show
