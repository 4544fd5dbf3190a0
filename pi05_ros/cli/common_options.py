"""Options that `pi05` and each of its subcommands take."""

from __future__ import annotations

import argparse
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
