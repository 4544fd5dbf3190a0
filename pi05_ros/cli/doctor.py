"""`pi05 doctor`: report of what works here. Exit code 0 if the basic job can run.

With `--conformance`: whether the nodes that run keep the promises of the documentation.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

from pi05_ros.doctor.checks import Check, Level, guarded
from pi05_ros.errors import InvalidValueError

TOPICS_S, CONFORMANCE_S = 3.0, 30.0
COLORS = {
    Level.OK: "green",
    Level.INFO: "cyan",
    Level.MISSING: "bright_black",
    Level.WARN: "yellow",
    Level.FAIL: "bold red",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--checkpoint", help="check this checkpoint too (a path, or random:tiny)")
    parser.add_argument("--tokenizer", help="check this tokenizer")
    parser.add_argument("--robot", help="robot profile (name or YAML) to hold joint names against")
    parser.add_argument("--namespace", default="", help="look at topics below this namespace only")
    parser.add_argument(
        "--seconds",
        type=_seconds,
        help="time to listen to topics; 0 leaves them out (default 3, with --conformance 30)",
    )
    parser.add_argument(
        "--max-age", type=_seconds, default=0.5, help="accepted age of header stamps in seconds"
    )
    parser.add_argument("--json", action="store_true", help="machine-readable report")
    parser.add_argument(
        "--conformance",
        action="store_true",
        help="only this: listen to the nodes that run and check what the documentation promises",
    )
    parser.add_argument(
        "--active",
        action="store_true",
        help="with --conformance: also stop and resume executors, reset policies, send a chunk "
        "that must be refused; the arm brakes, then goes on",
    )


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 <= value <= 3600.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted: 0 to 3600")
    return value


def examine(args: argparse.Namespace) -> list[Check]:
    """Run all checks, those that wait at the same time."""
    from pi05_ros.doctor import assets, hardware, live_topics, security, software

    try:
        robot_checks, joints = assets.robot(args.robot)
    except Exception as error:  # a broken install: the other lines say what is wrong
        robot_checks, joints = [Check("robot profile", Level.FAIL, str(error))], ()
    jobs: list[tuple[str, Callable[[], list[Check]], bool]] = [
        ("Python", software.python, True),
        ("ROS 2", software.ros, True),
        ("DDS security", security.security, False),
        ("torch", hardware.torch_and_gpu, True),
        ("TensorRT", hardware.tensorrt, False),
        ("modelopt", hardware.modelopt, False),
        ("rendering", hardware.rendering, False),
        ("checkpoint", lambda: assets.checkpoint(args.checkpoint), True),
        ("tokenizer", lambda: assets.tokenizer(args.tokenizer, args.checkpoint), False),
        ("robot profile", lambda: robot_checks, True),
    ]
    seconds = TOPICS_S if args.seconds is None else args.seconds
    if seconds > 0:
        jobs.append(
            (
                "topics",
                lambda: live_topics.topics(args.namespace, seconds, joints, args.max_age),
                False,
            )
        )
    with ThreadPoolExecutor(max_workers=4) as pool:
        waiting = [pool.submit(guarded, name, check, required) for name, check, required in jobs]
        return [check for future in waiting for check in future.result()]


def run(args: argparse.Namespace) -> int:
    """Print the report; 1 if something the basic job needs is missing, or a promise is broken."""
    if args.conformance:
        return _conformance(args)
    if args.active:
        raise InvalidValueError("--active is for --conformance")
    checks = examine(args)
    failed = [check for check in checks if check.level is Level.FAIL]
    if args.json:
        report = {"works": not failed, "checks": [asdict(check) for check in checks]}
        print(json.dumps(report, indent=2))
    elif failed:
        names = ", ".join(check.name for check in failed)
        _show(checks, f"The basic job cannot run yet: fix {names}.", "bold red")
    else:
        _show(checks, "The basic job can run: try `pi05 demo`.", "bold green")
    return 1 if failed else 0


def _conformance(args: argparse.Namespace) -> int:
    """Report of the conformance client; 1 if a promise is broken or nothing was there to check."""
    from pi05_ros.doctor import live_conformance

    seconds = CONFORMANCE_S if args.seconds is None else args.seconds
    rows = live_conformance.findings(args.namespace, seconds, args.active)
    verdict, kept = live_conformance.verdict(rows)
    if args.json:
        print(json.dumps({"kept": kept, "findings": rows}, indent=2))
    else:
        _show(live_conformance.checks(rows), verdict, "bold green" if kept else "bold red")
    return 0 if kept else 1


def _show(checks: list[Check], verdict: str, style: str) -> None:
    """Table, then the verdict."""
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        for check in checks:
            fix = f"\n          fix: {check.fix}" if check.fix else ""
            print(f"{check.level.value:8} {check.name}: {check.detail}{fix}")
        print(f"\n{verdict}")
        return
    console = Console()
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, overflow="fold")
    table.add_column(overflow="fold")
    for check in checks:
        cell = Text(check.detail)
        if check.fix:
            loud = check.level in (Level.FAIL, Level.WARN)
            cell.append(f"\n-> {check.fix}", style="bold" if loud else "bright_black")
        table.add_row(Text(check.level.value, style=COLORS[check.level]), check.name, cell)
    console.print(table)
    console.print(Text(f"\n{verdict}", style=style))
