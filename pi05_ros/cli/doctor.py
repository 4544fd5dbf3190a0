"""`pi05 doctor`: report of what works here. Exit code 0 if the basic job can run."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

from pi05_ros.doctor.checks import Check, Level, guarded

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
        "--seconds", type=_seconds, default=3.0, help="time to listen to topics; 0 leaves them out"
    )
    parser.add_argument(
        "--max-age", type=_seconds, default=0.5, help="accepted age of header stamps in seconds"
    )
    parser.add_argument("--json", action="store_true", help="machine-readable report")


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
    from pi05_ros.doctor import assets, hardware, live_topics, software

    try:
        robot_checks, joints = assets.robot(args.robot)
    except Exception as error:  # a broken install: the other lines say what is wrong
        robot_checks, joints = [Check("robot profile", Level.FAIL, str(error))], ()
    jobs: list[tuple[str, Callable[[], list[Check]], bool]] = [
        ("Python", software.python, True),
        ("ROS 2", software.ros, True),
        ("torch", hardware.torch_and_gpu, True),
        ("TensorRT", hardware.tensorrt, False),
        ("modelopt", hardware.modelopt, False),
        ("rendering", hardware.rendering, False),
        ("checkpoint", lambda: assets.checkpoint(args.checkpoint), True),
        ("tokenizer", lambda: assets.tokenizer(args.tokenizer, args.checkpoint), False),
        ("robot profile", lambda: robot_checks, True),
    ]
    if args.seconds > 0:
        jobs.append(
            (
                "topics",
                lambda: live_topics.topics(args.namespace, args.seconds, joints, args.max_age),
                False,
            )
        )
    with ThreadPoolExecutor(max_workers=4) as pool:
        waiting = [pool.submit(guarded, name, check, required) for name, check, required in jobs]
        return [check for future in waiting for check in future.result()]


def run(args: argparse.Namespace) -> int:
    """Print the report; 1 if something the basic job needs is missing."""
    checks = examine(args)
    failed = [check for check in checks if check.level is Level.FAIL]
    if args.json:
        report = {"works": not failed, "checks": [asdict(check) for check in checks]}
        print(json.dumps(report, indent=2))
    else:
        _show(checks)
    return 1 if failed else 0


def _show(checks: list[Check]) -> None:
    """Table, then the fixes, then the verdict."""
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        for check in checks:
            fix = f"\n          fix: {check.fix}" if check.fix else ""
            print(f"{check.level.value:8} {check.name}: {check.detail}{fix}")
        return
    console = Console()
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, overflow="fold")
    table.add_column(overflow="fold")
    for check in checks:
        cell = Text(check.detail)
        if check.fix:
            style = "bold" if check.level in (Level.FAIL, Level.WARN) else "bright_black"
            cell.append(f"\n-> {check.fix}", style=style)
        table.add_row(Text(check.level.value, style=COLORS[check.level]), check.name, cell)
    console.print(table)
    failed = [check.name for check in checks if check.level is Level.FAIL]
    if failed:
        console.print(
            Text(f"\nThe basic job cannot run yet: fix {', '.join(failed)}.", style="bold red")
        )
    else:
        console.print(Text("\nThe basic job can run: try `pi05 demo`.", style="bold green"))
