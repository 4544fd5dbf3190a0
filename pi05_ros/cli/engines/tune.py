"""`pi05 tune`: choose the cuda backend's tile sizes on this GPU."""

from __future__ import annotations

import argparse

from pi05_ros.runtime.parameter_specs import filled
from pi05_ros.workflows.engine_requests import TuneRequest

_DEFAULT = TuneRequest()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--preset", default=_DEFAULT.preset, help="sizes of the model")
    parser.add_argument(
        "--views", type=int, nargs="+", default=list(_DEFAULT.views), help="one for each workload"
    )
    parser.add_argument(
        "--tokens", type=int, nargs="+", default=list(_DEFAULT.tokens), help="prompt tokens, too"
    )
    parser.add_argument("--horizon", type=int, default=_DEFAULT.horizon)
    parser.add_argument(
        "--precision",
        nargs="+",
        default=list(_DEFAULT.precisions),
        help="auto, bf16, fp8, fp8-w8a16, int8, int8-w8a16",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=_DEFAULT.seconds,
        help="time for each precision (default %(default)g)",
    )


def run(args: argparse.Namespace) -> int:
    """Tune each precision in turn and write the user's file."""
    from pi05_ros.workflows.tune_kernels import tune_kernels

    tune_kernels(filled(TuneRequest, args, precisions=tuple(args.precision)))
    return 0
