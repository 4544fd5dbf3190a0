"""The parser of every subcommand, options of all and of requests, and progress on stderr."""

from __future__ import annotations

import argparse
import atexit
import difflib
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, is_dataclass
from pathlib import Path
from typing import Any, NoReturn, get_args

from pi05_ros.errors import InvalidValueError
from pi05_ros.request_options import typed_fields


class CommandParser(argparse.ArgumentParser):
    """Says what was wrong, of the subcommand that was called, and where the options are listed."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """As argparse, but what is unknown is an error of this parser, not of the outermost."""
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            options = [word for word in unknown if word.startswith("-")]
            self.error("; ".join(self._refusal(word) for word in options or unknown))
        return namespace, unknown

    def error(self, message: str) -> NoReturn:
        """End with exit code 2; the whole usage would hide the message."""
        self.exit(2, f"{self.prog}: {message}\n{self.prog} --help lists what is accepted\n")

    def _refusal(self, word: str) -> str:
        if not word.startswith("-"):
            return f"{word!r} is one argument too many"
        name = word.partition("=")[0]
        close = difflib.get_close_matches(name, list(self._option_string_actions), n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        return f"there is no option {name}{hint}"


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


def add_options(parser: argparse._ActionsContainer, kind: type) -> None:
    """Add the options of a request and of those that it holds, but for those that are there."""
    there = {action.dest for action in parser._actions}
    for item, hint in typed_fields(kind):
        if is_dataclass(hint):
            add_options(parser, hint)  # type: ignore[arg-type]
        elif "flags" in item.metadata and item.name not in there:
            _add(parser, item, hint)


def _add(parser: argparse._ActionsContainer, item: Field[Any], hint: Any) -> None:
    word = item.name.replace("_", "-")
    flags = item.metadata["flags"] or (f"--{word}",)
    details: dict[str, Any] = {"help": item.metadata["text"]}
    of = next(iter(get_args(hint)), hint)  # int of int | None and of tuple[int, ...]
    if isinstance(item.default, bool):
        details["action"] = "store_false" if item.default else "store_true"
        flags = (f"--no-{word}",) if item.default else flags
    elif of in (int, float, Path):
        details["type"] = of
    details |= item.metadata["details"]
    if item.metadata["details"].get("type"):
        details["type"] = _named(details["type"])
    if item.default is MISSING:
        parser.add_argument(item.name, **details)
        return
    tuples = isinstance(item.default, tuple)
    default = list(item.default) if tuples else item.default
    parser.add_argument(*flags, dest=item.name, default=default, **details)


def _named(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    """Type of an option whose errors keep their text."""

    def read(text: str) -> Any:
        try:
            return convert(text)
        except InvalidValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


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
