"""Where malloc takes large buffers from: mapped one by one, or from the heap.

glibc raises its threshold for mapping with the first large buffer that is freed. Images then come
from the heap, between small objects that live longer, and the heap grows by an image now and then
for hours. So large buffers are mapped and given back, which costs a page fault for every 4 kB:
1.1 ms of a 1280x720 image. Messages that are filled again and again in one place need not pay
that: their buffers are freed and taken at once, so that nothing can get between.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from types import TracebackType

# Of mallopt(3). A raw image is 0.2 MB (224x224) to 6 MB (1080p).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_MAPPED_BYTES = 512 * 1024
_KEPT_BYTES = 32 * 2**20  # the most that glibc takes from the heap

_mallopt: Callable[[int, int], int] | None = None  # once large buffers are mapped


def return_large_buffers() -> bool:
    """Have malloc map large buffers one by one and give them back when they are freed.

    Returns:
        False where the C library has no mallopt (musl); nothing is changed then.

    """
    global _mallopt
    try:
        # Keeps the GIL: the calls take about 1 us, waiting for the GIL would take longer.
        mallopt = ctypes.PyDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    if not mallopt(_MMAP_THRESHOLD, _MAPPED_BYTES):
        return False
    _mallopt = mallopt
    return True


class LargeBuffersInHeap:
    """While entered, malloc takes buffers of up to 32 MB from the heap.

    For a call that frees such a buffer and takes one of the same size. Nothing is changed in
    processes that never called `return_large_buffers`.
    """

    def __enter__(self) -> None:
        if _mallopt is not None:
            # Else a buffer at the end of the heap would go back and forth with its pages.
            _mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
            _mallopt(_MMAP_THRESHOLD, _KEPT_BYTES)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if _mallopt is not None:
            _mallopt(_MMAP_THRESHOLD, _MAPPED_BYTES)
