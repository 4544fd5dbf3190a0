"""What the engine commands share. Imports no torch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pi05_ros.cli.common_options import progress
from pi05_ros.workflows.engine_requests import Outlets


def warn(text: str) -> None:
    """Write a line on standard error."""
    print(text, file=sys.stderr)


def terminal() -> Outlets:
    """Results on stdout, warnings and progress on stderr."""
    return Outlets(print, warn, progress("observations"))


@contextmanager
def memory_named() -> Iterator[None]:
    """Running out of memory is an error of one line."""
    from pi05_ros.workflows.subject import named_out_of_memory

    with named_out_of_memory():
        yield
