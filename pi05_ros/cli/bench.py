"""`pi05 bench NAME`: benchmarks, each imported only when asked for."""

from __future__ import annotations

import argparse
import importlib
import sys

# name -> (module with main(argv) -> exit code, one line of help)
BENCHES: dict[str, tuple[str, str]] = {
    "model": ("pi05_ros.bench.model", "stages, totals and roofline of the cuda backend"),
    "roofline": ("pi05_ros.bench.roofline", "copy bandwidth and product rates of this GPU"),
    "node": ("pi05_ros.bench.node", "overhead, delivery, memory and CPU of the policy node"),
    "prompt": ("pi05_ros.bench.prompt", "time to renew the prompt tokens at a tick"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Name of the benchmark; the rest is its own."""
    names = "; ".join(f"{name}: {text}" for name, (_, text) in BENCHES.items())
    parser.add_argument("name", choices=sorted(BENCHES), help=names)
    parser.add_argument(
        "rest", nargs=argparse.REMAINDER, metavar="...", help="options of that benchmark"
    )


def run(args: argparse.Namespace) -> int:
    """Run one benchmark."""
    module, _ = BENCHES[args.name]
    try:
        loaded = importlib.import_module(module)
    except ImportError as error:
        print(f"pi05 bench {args.name} cannot run here: {error}", file=sys.stderr)
        return 2
    return int(loaded.main(args.rest))
