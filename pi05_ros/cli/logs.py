"""Library logs on the terminal while a subcommand runs."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator

LIBRARY = "pi05_ros"


@contextlib.contextmanager
def library_logs(*, verbose: bool, debug: bool) -> Iterator[None]:
    """Write log records to stderr as ``LEVEL logger: text``; warnings and errors by default.

    Args:
        verbose: also what pi05_ros logs at level INFO.
        debug: also what it logs at level DEBUG.

    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    root, library = logging.getLogger(), logging.getLogger(LIBRARY)
    before = library.level
    library.setLevel(logging.DEBUG if debug else logging.INFO if verbose else logging.WARNING)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        library.setLevel(before)
