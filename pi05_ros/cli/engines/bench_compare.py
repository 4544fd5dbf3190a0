"""`pi05 bench compare` and `pi05 bench table`: options, and how the outcome is shown."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from pi05_ros.bench.bench_requests import CompareRequest
from pi05_ros.cli.common_options import add_options
from pi05_ros.errors import InvalidValueError
from pi05_ros.request_options import filled

_SHOWN = ("vision", "prefill", "denoise", "graph")


def add_compare(parser: argparse.ArgumentParser) -> None:
    """Sides, settings, number of pairs, what to write and what to demand."""
    add = parser.add_argument
    add("trees", nargs="*", metavar="A B", help="source folders or git revisions (default: these)")
    add_options(parser, CompareRequest)
    add(
        "--at-most",
        type=float,
        metavar="RATIO",
        help="exit code 1 unless the whole interval of B / A is at or below this",
    )
    add("--json", type=Path, help="also write ratios and records to this file")


def run_compare(args: argparse.Namespace) -> int:
    """Run both sides in turn and print the ratio."""
    from pi05_ros.bench.comparison.side_by_side import compare
    from pi05_ros.small_files import write_atomically

    request = filled(CompareRequest, args)
    outcome = compare(request)
    for side in "AB":
        print(f"{side}  {request.row} ms: {' '.join(f'{t:.3f}' for t in outcome.p50s(side))}")
    for name in dict.fromkeys((request.row, *_SHOWN)):
        if name in outcome.ratios:
            print(f"{name:8} B / A {outcome.ratios[name]}")
    if args.json:
        ratios = {name: asdict(ratio) for name, ratio in outcome.ratios.items()}
        document = {"row": request.row, "ratios": ratios, "records": outcome.records}
        write_atomically(args.json, json.dumps(document, indent=1) + "\n")
    if args.at_most is None or outcome.ratio.within(args.at_most):
        return 0
    print(
        f"not shown to be at most {args.at_most:g}: the interval ends at {outcome.ratio.high:.4f}"
    )
    return 1


def add_table(parser: argparse.ArgumentParser) -> None:
    """History and page."""
    parser.add_argument("history", type=Path, help="file that bench compare wrote")
    parser.add_argument("--into", type=Path, help="page with the two marker lines of the table")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit code 1 if the page differs"
    )


def run_table(args: argparse.Namespace) -> int:
    """Print the table, or put it into a page."""
    from pi05_ros.bench.comparison.history_file import read_history
    from pi05_ros.bench.comparison.model_table import place_table, placed, render
    from pi05_ros.small_files import read_text, require_regular

    require_regular(args.history)
    table = render(read_history(args.history))
    if args.into is None:
        if args.check:
            raise InvalidValueError("--check compares a page: name it with --into")
        print(table, end="")
        return 0
    if args.check:
        page = read_text(args.into)
        same = placed(page, table, str(args.into)) == page
        print(f"{args.into}: the table {'is' if same else 'is NOT'} that of {args.history}")
        return 0 if same else 1
    changed = place_table(args.into, table)
    print(f"{args.into}: {'written' if changed else 'as it was'}")
    return 0
