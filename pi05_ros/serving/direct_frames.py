"""A websocket connection that reads large frames straight into the memory they stay in.

`websockets` copies what it receives four times: into a growing buffer, out of it, unmasked, and
joined. For raw pictures that is most of what a request costs. Here a large binary frame is
received into one array and unmasked there while the rest is still on its way; `websockets` is
given a small frame in its place, so that order, flow control and closing stay its own business.
All other bytes go to it unchanged.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from websockets.asyncio.server import ServerConnection
from websockets.protocol import State

_SMALL = 64 * 1024  # of the buffer for everything else
_HANDSHAKE = 4 * 1024  # of that buffer before there is a session, of which there may be thousands
_WHOLE_BINARY = 0x82  # FIN and opcode 2
_TOKEN = 32


class DirectConnection(ServerConnection, asyncio.BufferedProtocol):
    """A `ServerConnection` whose messages are read with `frames`.

    Attributes:
        smallest, largest: bytes of the payloads that are read directly; others take
            `websockets`' way, which knows its own limit.

    """

    smallest = 32 * 1024
    largest = 32 * 1024 * 1024

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._small = np.empty(_HANDSHAKE, np.uint8)
        self._http: bytes | None = b""  # end of what came of the handshake; None behind it
        self._head = b""  # of a frame's header that is not complete
        self._left = 0  # bytes to pass on of the payload that has begun
        self._fragmented = False
        self._mask = np.zeros(8, np.uint8)
        self._payload: np.ndarray | None = None  # padded to 8 bytes
        self._length = self._at = self._unmasked = 0
        self._token = secrets.token_bytes(_TOKEN)  # no client knows it
        self._payloads: deque[memoryview] = deque()

    async def frames(self) -> AsyncIterator[str | bytes | memoryview]:
        """Messages in their order until the connection ends; raises ConnectionClosed on errors."""
        async for frame in self:
            yield self._payloads.popleft() if frame == self._token else frame

    # asyncio.BufferedProtocol ----------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        if self._payload is None:
            return self._small.data
        return self._payload.data[self._at : self._length]

    def buffer_updated(self, nbytes: int) -> None:
        """Sort what has come."""
        if self._payload is None:
            self._sort(self._small[:nbytes].tobytes())
        else:
            self._advance(nbytes)

    def _advance(self, count: int) -> None:
        """``count`` more bytes of the large payload are in its memory."""
        payload = self._payload
        assert payload is not None
        self._at += count
        end = len(payload) if self._at == self._length else self._at & ~7
        part = payload[self._unmasked : end].view(np.uint64)
        part ^= self._mask.view(np.uint64)
        self._unmasked = end
        if self._at == self._length:
            self._payloads.append(payload.data[: self._length])
            self._payload = None
            self.data_received(bytes((_WHOLE_BINARY, 0x80 | _TOKEN, 0, 0, 0, 0)) + self._token)

    def _sort(self, data: bytes) -> None:
        if self._http is not None:
            seen = self._http + data
            end = seen.find(b"\r\n\r\n") + 4
            if end < 4:
                self._http = seen[-3:]
                self.data_received(data)
                return
            end -= len(self._http)
            self._http = None
            self._small = np.empty(_SMALL, np.uint8)
            self.data_received(data[:end])
            data = data[end:]
        data, self._head = self._head + data, b""
        begin = at = 0  # what is before begin has been passed on
        while at < len(data):
            if self._left:
                count = min(self._left, len(data) - at)
                self._left -= count
                at += count
                continue
            header = _header(data, at)
            if header is None:
                self._head = data[at:]
                break
            size, length = header
            if self._direct(data[at], data[at + 1], length):
                if at > begin:
                    self.data_received(data[begin:at])
                rest = data[at + size : at + size + length]
                self._begin(data[at + size - 4 : at + size], length, rest)
                at += size + len(rest)
                begin = at
                continue
            self._left = length
            at += size
        if at > begin:
            self.data_received(data[begin:at])

    def _direct(self, first: int, second: int, length: int) -> bool:
        """Whether the frame that begins here is read directly; keeps track of fragments."""
        fragmented, opcode, fin = self._fragmented, first & 0x0F, first & 0x80
        if opcode < 8:
            self._fragmented = not fin
        return (
            first == _WHOLE_BINARY
            and second & 0x80 != 0
            and not fragmented
            and self.smallest <= length <= self.largest
            and self.protocol.state is State.OPEN
        )

    def _begin(self, mask: bytes, length: int, payload: bytes) -> None:
        self._payload = np.empty((length + 7) & ~7, np.uint8)
        self._mask[:] = np.frombuffer(2 * mask, np.uint8)
        self._length, self._at, self._unmasked = length, 0, 0
        self._payload[: len(payload)] = np.frombuffer(payload, np.uint8)
        self._advance(len(payload))


def _header(data: bytes, at: int) -> tuple[int, int] | None:
    """Bytes of the frame header at ``at`` and of its payload; None if it is not complete."""
    if len(data) < at + 2:
        return None
    short = data[at + 1] & 0x7F
    extra = {126: 2, 127: 8}.get(short, 0)
    size = 2 + extra + (4 if data[at + 1] & 0x80 else 0)
    if len(data) < at + size:
        return None
    return size, int.from_bytes(data[at + 2 : at + 2 + extra], "big") if extra else short
