"""Options that the engine commands share, and the requests they make. Imports no torch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pi05_ros.cli.common_options import progress
from pi05_ros.runtime.parameter_specs import filled
from pi05_ros.workflows.engine_requests import (
    LAYOUTS,
    PRECISIONS,
    GraphRequest,
    ModelRequest,
    SampleRequest,
)

if TYPE_CHECKING:
    from pi05_ros.workflows.outlets import Outlets

_SAMPLES = SampleRequest()


def positive(text: str) -> int:
    """Argument type: a whole number from 1."""
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted: a whole number from 1")
    return int(text)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Checkpoint, robot, sizes, device, cache."""
    parser.add_argument("checkpoint", help="checkpoint folder or file, or random:tiny")
    parser.add_argument("--robot", help="robot profile: decides cameras, horizon and prompt")
    parser.add_argument("--tokenizer", help="tokenizer file")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--views", type=positive, help="camera slots (default: the robot's)")
    parser.add_argument("--max-prompt-tokens", type=positive, help="prompt slots")
    parser.add_argument("--cache", type=Path, help="cache root instead of ~/.cache/pi05_ros/trt")


def add_precision_arguments(parser: argparse.ArgumentParser) -> None:
    """What the stages run in."""
    parser.add_argument(
        "--precision",
        default=PRECISIONS[0],
        choices=PRECISIONS,
        help="fp8: vision fp16, prefill and denoise fp8 (or what the calibration says)",
    )
    parser.add_argument("--prefill", choices=("fp8", "fp16"), help="the prefill alone otherwise")
    parser.add_argument("--denoise", choices=("fp8", "fp16"), help="the denoise alone otherwise")
    parser.add_argument(
        "--layout",
        default=LAYOUTS[0],
        choices=LAYOUTS,
        help="mlp_only: of the prefill only the MLPs, torch runs the attention between them",
    )
    parser.add_argument(
        "--calibration", type=Path, help="folder of pi05 calibrate --for onnx or tensorrt"
    )


def add_sample_arguments(parser: argparse.ArgumentParser) -> None:
    """Where observations come from, and how often the flow is stepped through."""
    parser.add_argument(
        "--observations",
        type=Path,
        nargs="+",
        default=[],
        help="saved observations (.safetensors files or folders), or a golden.safetensors",
    )
    parser.add_argument("--bag", type=Path, nargs="+", default=[], help="recorded bags")
    parser.add_argument(
        "--map", action="append", default=[], metavar="INPUT=TOPIC", help="topics of the bag"
    )
    parser.add_argument("--prompt", help="prompt of observations that bring none")
    parser.add_argument(
        "--samples",
        type=positive,
        default=_SAMPLES.count,
        help="observations to take (default %(default)s)",
    )
    parser.add_argument(
        "--allow-synthetic",
        action="store_true",
        help="random images instead of recorded ones: dry runs only, never for a robot",
    )
    parser.add_argument(
        "--steps",
        type=positive,
        default=_SAMPLES.steps,
        help="flow steps per observation (%(default)s)",
    )


def model_request(args: argparse.Namespace) -> ModelRequest:
    """Options of `add_model_arguments`, and the prompt where there is one."""
    return filled(ModelRequest, args)


def graph_request(args: argparse.Namespace) -> GraphRequest:
    """Options of `add_precision_arguments`."""
    return filled(GraphRequest, args)


def sample_request(args: argparse.Namespace) -> SampleRequest:
    """Options of `add_sample_arguments`."""
    return filled(
        SampleRequest, args, bags=tuple(args.bag), topics=tuple(args.map), count=args.samples
    )


def warn(text: str) -> None:
    """Write a line on standard error."""
    print(text, file=sys.stderr)


def terminal() -> Outlets:
    """Results on stdout, warnings and progress on stderr."""
    from pi05_ros.workflows.outlets import Outlets

    return Outlets(print, warn, progress("observations"))


@contextmanager
def memory_named() -> Iterator[None]:
    """Running out of memory is an error of one line."""
    from pi05_ros.workflows.subject import named_out_of_memory

    guard: AbstractContextManager[None] = named_out_of_memory()
    with guard:
        yield
