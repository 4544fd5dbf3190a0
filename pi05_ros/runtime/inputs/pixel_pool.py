"""Memory for decoded images that is used again: fresh memory costs a page fault for every 4 kB."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

import numpy as np

KEPT = 6
"""Images of one size made at once: two inferences of three cameras."""
PAGE = 4096
SIZES = 3
"""Sizes that are kept; the one that was not asked for longest is forgotten."""


def pageable(size: int) -> np.ndarray:
    """Uninitialized uint8 ``[size]`` of the process's own memory."""
    return np.empty(size, np.uint8)


class PixelPool:
    """Lends memory; `lend` from any thread.

    Args:
        make: makes uninitialized uint8 ``[size]``; called once for all images of a size, since
            page-locked memory holds up whoever uses the GPU meanwhile.

    """

    def __init__(self, make: Callable[[int], np.ndarray] = pageable) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._free: OrderedDict[int, list[np.ndarray]] = OrderedDict()

    def lend(self, size: int) -> np.ndarray:
        """Uninitialized uint8 ``[size]``; free again when nothing refers to it or a view of it."""
        with self._lock:
            free = self._free.setdefault(size, [])
            self._free.move_to_end(size)
            while len(self._free) > SIZES:
                self._free.popitem(last=False)
            if not free:
                step = -(-size // PAGE) * PAGE  # two images are written at a time
                block = self._make(KEPT * step)
                free += [block[start : start + size] for start in range(0, block.size, step)]
            return np.asarray(_Lent(self, free.pop()))

    def take_back(self, memory: np.ndarray) -> None:
        """Keep memory for the next one who asks; no lock, since any line of code may free it."""
        free = self._free.get(memory.size)
        if free is not None and len(free) < KEPT:
            free.append(memory)


class _Lent:
    """What the lent array is a view of."""

    def __init__(self, pool: PixelPool, memory: np.ndarray) -> None:
        self._pool = pool
        self._memory = memory
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:
        self._pool.take_back(self._memory)
