"""`pi05 build CHECKPOINT`: export, compile with TensorRT, check, keep the report."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pi05_ros.cli.engines.check import PASSED, REFUSED
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
from pi05_ros.workflows.engine_requests import FLAVORS, BuildRequest

if TYPE_CHECKING:
    from rich.progress import TaskID

    from pi05_ros.workflows.build_engines import Phases


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_model_arguments(parser)
    add_precision_arguments(parser)
    add_sample_arguments(parser)
    parser.add_argument(
        "--optimization-level",
        type=int,
        help="0 to 5; default 3, and 2 if the check refuses that (after that, unless --prefill is "
        "given, the prefill in fp16)",
    )
    parser.add_argument(
        "--flavor",
        default=FLAVORS[0],
        choices=FLAVORS,
        help="tensorrt, or rtx: TensorRT for RTX (default: what suits the GPU of this machine)",
    )
    parser.add_argument(
        "--target",
        default=(),
        type=lambda text: tuple(text.split(",")),
        metavar="sm89,sm120",
        help="with --flavor rtx: GPUs to compile for, on a machine that has none of them",
    )
    parser.add_argument("--workspace-mib", type=int, default=0, help="scratch memory limit")
    parser.add_argument("--no-check", action="store_true", help="engines stay unusable until then")


def build_request(args: argparse.Namespace) -> BuildRequest:
    """What the options ask for."""
    return filled(
        BuildRequest,
        args,
        model=model_request(args),
        graphs=graph_request(args),
        samples=sample_request(args),
        check=not args.no_check,
        targets=args.target,
    )


def run(args: argparse.Namespace) -> int:
    """Build; exit code 0 verified (or built with --no-check), 1 refused, 2 neither."""
    from pi05_ros.workflows.build_engines import build

    with memory_named():
        return PASSED if build(build_request(args), terminal(), _phases) else REFUSED


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
