"""What the engine commands share. Imports no torch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from pi05_ros.cli.common_options import progress

if TYPE_CHECKING:
    from pi05_ros.workflows.outlets import Outlets


def warn(text: str) -> None:
    """Write a line on standard error."""
    print(text, file=sys.stderr)


def terminal() -> Outlets:
    """Results on stdout, warnings and progress on stderr."""
    from pi05_ros.workflows.outlets import Outlets

    return Outlets(print, warn, progress("observations"))


@contextmanager
def memory_named() -> Iterator[None]:
    """Running out of memory is an error of one line."""
    from pi05_ros.workflows.subject import named_out_of_memory

    guard: AbstractContextManager[None] = named_out_of_memory()
    with guard:
        yield
