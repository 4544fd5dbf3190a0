"""The answers of one connection, in the order of its requests, sent from the thread that has them.

The usual answer goes to the socket in the thread that computed it: waking the event loop for it
costs as much as sending it. What the socket does not take at once, the event loop sends, and then
everything behind it until nothing waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from websockets.exceptions import ConnectionClosed

from pi05_ros.serving.direct_frames import DirectConnection

BACKLOG = 8
"""Requests of one session that may be unanswered; reading goes on when one is."""


@dataclass(eq=False)
class Answer:
    """The place of one answer; bytes, or text for an error, once it is there."""

    frame: str | bytes | None = None


class Answers:
    """Answers of one connection.

    Args:
        connection: where they go.

    """

    def __init__(self, connection: DirectConnection) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._places: deque[Answer] = deque()
        self._slow = False  # the event loop sends
        self._over = False  # nothing can be sent any more
        self._to_send = asyncio.Event()
        self._sent = asyncio.Event()
        self._reader_waits = False

    def __len__(self) -> int:
        """Answers that were not handed to the socket yet."""
        return len(self._places)

    def place(self) -> Answer:
        """The next place; in the order of the requests."""
        answer = Answer()
        with self._lock:
            self._places.append(answer)
        return answer

    def give(self, answer: Answer, frame: str | bytes) -> None:
        """Fill a place, and send what can be sent; from any thread."""
        with self._lock:
            answer.frame = frame
            if self._slow:
                return
            while self._places and (head := self._places[0].frame) is not None:
                if not self._connection.write_now(head):
                    self._slow = True
                    self._call(self._to_send.set)
                    break
                self._places.popleft()
            if self._reader_waits:
                self._call(self._sent.set)

    async def room(self) -> None:
        """Wait until fewer than BACKLOG answers are due."""
        while len(self._places) >= BACKLOG and not self._over:
            self._reader_waits = True
            self._sent.clear()
            if len(self._places) >= BACKLOG:  # none was sent before the flag was seen
                await self._sent.wait()
            self._reader_waits = False

    async def send_slowly(self) -> None:
        """Send what the socket does not take at once, until the connection ends."""
        try:
            while True:
                await self._to_send.wait()
                self._to_send.clear()
                await self._send_what_waits()
        except ConnectionClosed:
            self._over = True
            self._sent.set()

    async def _send_what_waits(self) -> None:
        while True:
            with self._lock:
                head = self._places[0].frame if self._places else None
                if head is None:
                    self._slow = False
                    return
            await self._connection.send(head)
            with self._lock:
                self._places.popleft()
            self._sent.set()

    def _call(self, what: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(what)
