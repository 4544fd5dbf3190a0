"""One replay at a time writes to a folder: a second one would throw away the first's result."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from pi05_ros.bags.bag import BagError

LOCK = ".replay.lock"


@contextlib.contextmanager
def claim(out: Path) -> Iterator[None]:
    """Hold the folder for results; it is made if it does not exist.

    The lock ends with the process, whatever ends it.

    Raises:
        BagError: another process holds it, or it cannot be made.

    """
    path = out / LOCK
    try:
        out.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise BagError(f"cannot write {out}: {error.strerror or error}") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BagError(
                f"another replay is writing its results to {out}; give another --out"
            ) from error
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink()
    finally:
        os.close(handle)
