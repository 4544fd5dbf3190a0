"""The last seconds of everything that was received, within bounds of time and memory."""

from __future__ import annotations

from collections import deque

from pi05_ros.bags.recording.episode_bag import KeptMessage

OVERHEAD = 400
"""Bytes that a message costs besides its own."""


class RingBuffer:
    """Keeps messages of the last `seconds`, at most `max_bytes` of them.

    Attributes:
        bytes: in it now.
        short: messages that bounds of memory pushed out before their time.

    """

    def __init__(self, seconds: float, max_bytes: int) -> None:
        self._span_ns = int(seconds * 1e9)
        self._max_bytes = max_bytes
        self._messages: deque[tuple[int, KeptMessage]] = deque()
        self.bytes = 0
        self.short = 0

    def add(self, message: KeptMessage, steady_ns: int) -> None:
        """Append a message received at a time of a clock that always runs."""
        self._messages.append((steady_ns, message))
        self.bytes += len(message.raw) + OVERHEAD
        while self._messages and steady_ns - self._messages[0][0] > self._span_ns:
            self._drop()
        while self._messages and self.bytes > self._max_bytes:
            self._drop()
            self.short += 1

    def messages(self) -> list[KeptMessage]:
        """What is in it, oldest first."""
        return [message for _, message in self._messages]

    @property
    def seconds(self) -> float:
        """Time between its oldest and newest message."""
        if not self._messages:
            return 0.0
        return (self._messages[-1][0] - self._messages[0][0]) / 1e9

    def clear(self) -> None:
        """Forget everything."""
        self._messages.clear()
        self.bytes = 0

    def _drop(self) -> None:
        _, message = self._messages.popleft()
        self.bytes -= len(message.raw) + OVERHEAD
