"""Memory for decoded images that is used again: fresh memory costs a page fault for every 4 kB."""

from __future__ import annotations

from collections import deque

import numpy as np

KEPT = 6
"""Buffers without a user that are kept, of whatever size: two inferences of three cameras."""


class PixelPool:
    """Lends memory; `lend` from any thread."""

    def __init__(self) -> None:
        self._free: deque[np.ndarray] = deque(maxlen=KEPT)  # the oldest is dropped

    def lend(self, size: int) -> np.ndarray:
        """Uninitialized uint8 ``[size]``; free again when nothing refers to it or a view of it."""
        for _ in range(len(self._free)):
            try:
                memory = self._free.popleft()
            except IndexError:  # another thread has it
                break
            if memory.size == size:
                return np.asarray(_Lent(self, memory))
            self._free.append(memory)
        return np.asarray(_Lent(self, np.empty(size, np.uint8)))

    def take_back(self, memory: np.ndarray) -> None:
        """Keep memory for the next one who asks."""
        self._free.append(memory)


class _Lent:
    """What the lent array is a view of."""

    def __init__(self, pool: PixelPool, memory: np.ndarray) -> None:
        self._pool = pool
        self._memory = memory
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:
        self._pool.take_back(self._memory)
