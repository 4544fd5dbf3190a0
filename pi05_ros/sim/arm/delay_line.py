"""Items that come out a fixed time after they went in: an injected delay."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class DelayLine(Generic[T]):
    """First in, first out, ``delay_s`` later.

    Args:
        delay_s: 0 passes items through at once.

    """

    def __init__(self, delay_s: float) -> None:
        self._delay_ns = round(delay_s * 1e9)
        self._items: deque[tuple[int, T]] = deque()

    def put(self, item: T, now_ns: int) -> None:
        """Take an item."""
        self._items.append((now_ns + self._delay_ns, item))

    def due(self, now_ns: int) -> list[T]:
        """Items whose time has come."""
        found = []
        while self._items and self._items[0][0] <= now_ns:
            found.append(self._items.popleft()[1])
        return found

    def clear(self) -> None:
        """Forget what is inside."""
        self._items.clear()
