"""`pi05 bench NAME`: options of the benchmarks and how their figures are shown."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pi05_ros.bench.bench_requests import (
    BatchBenchRequest,
    CameraLoad,
    ModelBenchRequest,
    NodeBenchRequest,
    NodeGridRequest,
    ServeBenchRequest,
)
from pi05_ros.cli.common_options import add_common_options, add_options
from pi05_ros.cli.engines import bench_compare as compare
from pi05_ros.errors import InvalidValueError
from pi05_ros.request_options import filled


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One subcommand for each benchmark."""
    benches = parser.add_subparsers(dest="name", metavar="name", required=True)
    for name, text, add, run_bench in (
        ("model", "stages, totals and roofline of the cuda backend", _add_model, _run_model),
        ("compare", "two trees or settings in turn", compare.add_compare, compare.run_compare),
        ("table", "figures of a history as a table", compare.add_table, compare.run_table),
        ("node", "overhead, delivery, memory and CPU of the policy node", _add_node, _run_node),
        ("serve", "what the policy server adds; robots per GPU", _add_serve, _run_serve),
        ("batch", "requests in one call against one after the other", _add_batch, _run_batch),
        ("executor", "CPU time of a control period of the executor", _add_nothing, _run_executor),
        ("roofline", "copy bandwidth and product rates of this GPU", _add_json, _run_roofline),
    ):
        one = benches.add_parser(name, help=text, description=text)
        add_common_options(one)
        add(one)
        one.set_defaults(run_bench=run_bench)


def run(args: argparse.Namespace) -> int:
    """Run one benchmark."""
    return int(args.run_bench(args))


def _add_nothing(parser: argparse.ArgumentParser) -> None:
    """It has no options."""


def _run_executor(args: argparse.Namespace) -> int:
    from pi05_ros.bench import executor_tick

    return executor_tick.main()


def _add_model(parser: argparse.ArgumentParser) -> None:
    add_options(parser, ModelBenchRequest)
    parser.add_argument("--json", type=Path, help="also write the report to this file")
    parser.add_argument("--markdown", type=Path, help="also write the tables to this file")
    parser.add_argument("--plot", type=Path, help="PNG: stage bars and latency histogram")


def _run_model(args: argparse.Namespace) -> int:
    from pi05_ros.bench import model_report
    from pi05_ros.bench.model import measure_model
    from pi05_ros.bench.plain_model import measure_plain

    measure = measure_model if args.backend == "cuda" else measure_plain
    report = measure(filled(ModelBenchRequest, args))
    model_report.console(report)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    if args.markdown:
        args.markdown.write_text(model_report.markdown(report))
    if args.plot:
        model_report.plot(report, args.plot)
    return 0


def _add_node(parser: argparse.ArgumentParser) -> None:
    add_options(parser, NodeBenchRequest)
    add = parser.add_argument
    add(
        "--grid",
        help="camera settings WxH@HZ, separated by commas (3*WxH@HZ: three cameras, WxH@HZjpeg: "
        "compressed images): measures all --rates under each of them, beside the same call "
        "without load (instead of --width, --height, --camera-hz, --rate and --duration)",
    )
    add("--rates", default="10,30,60", help="with --grid: inferences per second")
    add_options(parser, NodeGridRequest)
    add("--json", action="store_true", help="print JSON")
    add("--markdown", action="store_true", help="print a Markdown table")
    add("--check", action="store_true", help="exit code 1 if a limit is not met")


def _run_node(args: argparse.Namespace) -> int:
    from pi05_ros.bench.node import measure_node, rows
    from pi05_ros.tables import markdown_table

    if args.grid is not None:
        return _run_grid(args)
    figures = measure_node(filled(NodeBenchRequest, args))
    limits = figures.limits()
    if args.json:
        print(json.dumps(asdict(figures) | {"limits": dict(limits)}, indent=2))
    elif args.markdown:
        print(f"{figures.setting}; {figures.machine}\n")
        print(markdown_table(("figure", "value"), rows(figures)), end="")
    else:
        print(f"{figures.setting}\n{figures.machine}")
        print("\n".join(f"{label:32} {value}" for label, value in rows(figures)))
        for text, met in limits:
            print(f"{'met' if met else 'NOT MET':32} {text}")
    return 1 if args.check and not all(met for _, met in limits) else 0


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", nargs="?", help="without one: a policy that answers at once")
    add_options(parser, ServeBenchRequest)
    _add_json(parser)


def _add_batch(parser: argparse.ArgumentParser) -> None:
    add_options(parser, BatchBenchRequest)


def _run_batch(args: argparse.Namespace) -> int:
    from pi05_ros.bench.batching import BatchRow, measure_batches

    request = filled(BatchBenchRequest, args)
    print("batch   vision  prefill  denoise    total ms   in turn ms   mean answer in turn ms")

    def show(row: BatchRow) -> None:
        print(f"{row.batch:5d} {row.vision:8.2f} {row.prefill:8.2f} {row.denoise:8.2f} "
              f"{row.total:11.2f} {row.in_turn:12.2f} {row.answer_in_turn:24.2f}",
              flush=True)  # fmt: skip

    measure_batches(request, show)
    return 0


def _run_serve(args: argparse.Namespace) -> int:
    from pi05_ros.bench.serve import Row, measure_serving

    request = filled(ServeBenchRequest, args)
    height, width = request.image
    print(f"{request.checkpoint or 'a policy that answers at once'}, {request.rate:g} Hz each, "
          f"two images {width}x{height}")  # fmt: skip
    print("robots requests errors missed   round trip p50/p99 ms   added p50/p99 ms   "
          "policy ms   server CPU ms")  # fmt: skip

    def show(row: Row) -> None:
        trip, added = row.round_trip_ms, row.added_ms
        print(f"{row.robots:6d} {row.requests:8d} {row.errors:6d} {row.missed:6d}   "
              f"{trip[0]:10.2f} / {trip[1]:8.2f}   {added[0]:7.2f} / {added[1]:6.2f}   "
              f"{row.infer_ms:9.2f}   {row.server_cpu_ms:13.2f}", flush=True)  # fmt: skip

    rows = measure_serving(request, show)
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return 0


def _run_grid(args: argparse.Namespace) -> int:
    from pi05_ros.bench.node_grid import measure_grid, write_table

    loads = tuple(CameraLoad.parse(word) for word in args.grid.split(",") if word.strip())
    try:
        rates = tuple(float(word) for word in args.rates.split(",") if word.strip())
    except ValueError:
        raise InvalidValueError(
            f"--rates {args.rates!r}; accepted: numbers separated by commas"
        ) from None
    figures = measure_grid(
        filled(NodeGridRequest, args, grid=loads, rates=rates),
        say=lambda text: None if args.json else print(text, flush=True),
    )
    text = write_table(figures, args.out / "grid.md")
    print(json.dumps(asdict(figures), indent=1) if args.json else "\n" + text)
    return 0


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, help="also write the figures to this file")


def _run_roofline(args: argparse.Namespace) -> int:
    from pi05_ros.bench import roofline

    report: dict[str, Any] = roofline.measure_ceilings()
    roofline.console(report)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0
