"""Keeps the resident memory of a node that receives pictures flat."""

from __future__ import annotations

import ctypes

# Of mallopt(3). A raw picture is 0.2 MB (224x224) to 6 MB (1080p).
_M_MMAP_THRESHOLD = -3
_THRESHOLD_BYTES = 512 * 1024


def return_large_buffers() -> bool:
    """Have malloc map large buffers one by one and give them back when they are freed.

    glibc raises its threshold with the first large buffer that is freed and then takes pictures
    from the heap, between small objects that live longer; the heap grows by a picture now and then
    for hours. Costs page faults, about 0.1 ms for a 640x480 picture.

    Returns:
        False where the C library has no mallopt (musl); nothing is changed then.

    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _THRESHOLD_BYTES))
