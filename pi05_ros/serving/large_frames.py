"""Less work for requests of some megabytes, which raw pictures are.

Of what two raw 640x480 pictures cost the server, a third were page faults: glibc gives the memory
of a frame back to the system and takes it again for the next one, several times a request.
"""

from __future__ import annotations

import contextlib
import ctypes

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of mallopt(3)
LARGEST = 32 * 1024 * 1024
"""Bytes up to which memory comes from the heap; glibc accepts no more."""
KEPT = 64 * 1024 * 1024
"""Bytes of free memory that the process keeps."""
GROWTH = 1024 * 1024
"""Bytes that the heap grows by."""


def keep_memory() -> None:
    """Have this process keep the memory of frames; without effect where there is no glibc."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in (
            (_MMAP_THRESHOLD, LARGEST),
            (_TRIM_THRESHOLD, KEPT),
            (_TOP_PAD, GROWTH),
        ):
            mallopt(option, value)
