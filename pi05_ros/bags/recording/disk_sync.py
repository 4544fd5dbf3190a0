"""Asks the disk to keep what was written, without waiting for it.

A slow disk takes seconds for that. Meanwhile the recorder goes on writing: what a killed process
has written is safe in any case, this is for losses of power.
"""

from __future__ import annotations

import os
import threading


class DiskSync:
    """Runs fdatasync in a thread of its own, one at a time.

    Attributes:
        problem: the last error, empty if none.

    """

    def __init__(self) -> None:
        self.problem = ""
        self._thread: threading.Thread | None = None

    def ask(self, descriptor: int) -> None:
        """Begin, unless the one before still runs."""
        if self._thread is not None and self._thread.is_alive():
            return
        own = os.dup(descriptor)  # the file may be closed meanwhile
        self._thread = threading.Thread(target=self._run, args=(own,), name="sync", daemon=True)
        self._thread.start()

    def _run(self, descriptor: int) -> None:
        try:
            os.fdatasync(descriptor)
        except OSError as error:
            self.problem = f"the disk did not keep what was written: {error.strerror}"
        finally:
            os.close(descriptor)
