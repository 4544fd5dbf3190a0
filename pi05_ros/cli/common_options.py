"""Options that `pi05` and each of its subcommands take, and their progress on stderr."""

from __future__ import annotations

import argparse
import atexit
import sys
from collections.abc import Callable
from typing import Any


def add_common_options(parser: argparse.ArgumentParser, default: Any = argparse.SUPPRESS) -> None:
    """Add ``--verbose`` and ``--debug``.

    Args:
        parser: of the command or of a subcommand.
        default: False for the outermost parser; suppressed below, so that a subcommand does not
            take back what was given before it.

    """
    parser.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        default=default,
        help="show what the library logs, not only its warnings",
    )
    parser.add_argument(
        "--debug",
        action="store_true",
        default=default,
        help="show debug logs, and a traceback for every error",
    )


def progress(what: str) -> Callable[[int, int], None]:
    """Takes how many of how many ``what`` are done, and shows it on stderr."""
    if not sys.stderr.isatty():
        return lambda done, total: _line(what, done, total)
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True))
    atexit.register(bar.stop)  # an error may come before the last step
    task = bar.add_task(what)

    def show(done: int, total: int) -> None:
        bar.start()
        bar.update(task, completed=done, total=total)
        if done == total:
            bar.stop()

    return show


def _line(what: str, done: int, total: int) -> None:
    if done == total or done % max(1, total // 10) == 0:
        print(f"{done}/{total} {what}", file=sys.stderr)
