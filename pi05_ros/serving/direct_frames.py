"""A websocket connection that reads large frames straight into the memory they stay in.

`websockets` copies what it receives four times: into a growing buffer, out of it, unmasked, and
joined. For raw pictures that is most of what a request costs. Here a large binary frame is
received into one array and unmasked there while the rest is still on its way; `websockets` is
given a small frame in its place, so that order, flow control and closing stay its own business.
All other bytes go to it unchanged. Where nothing is before it, a large frame is taken by
`DirectConnection.taker` at once, without that detour.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
from websockets.asyncio.server import ServerConnection
from websockets.protocol import State

_SMALL = 64 * 1024  # of the buffer for everything else
_HANDSHAKE = 4 * 1024  # of that buffer before there is a session, of which there may be thousands
_WHOLE_BINARY = 0x82  # FIN and opcode 2
_LAST = (0x80, 0x81, 0x82)  # FIN and opcodes of messages
_TOKEN = 32
_MOST_UNREAD = 256 * 1024


class DirectConnection(ServerConnection, asyncio.BufferedProtocol):
    """A `ServerConnection` whose messages are read with `frames`.

    Attributes:
        smallest, largest: bytes of the payloads that are read directly; others take
            `websockets`' way, which knows its own limit.
        taker: gets large frames as soon as they are there; False leaves one to `frames`.

    """

    smallest = 32 * 1024
    largest = 32 * 1024 * 1024
    taker: Callable[[memoryview], bool] | None = None

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
        self._begun = self._taken = 0  # messages that take `websockets`' way
        self._wire = threading.Lock()  # around all that is written
        self._file = -1  # of the socket, our own; -1 where bytes are not written to it as they are
        self._reading = False  # what is sent answers control frames
        self._unread = 0  # bytes of such answers that wait to be written
        self._rest = b""  # of a frame that the socket has taken in part

    async def frames(self) -> AsyncIterator[str | bytes | memoryview]:
        """Messages in their order until the connection ends; raises ConnectionClosed on errors."""
        async for frame in self:
            yield self._payloads.popleft() if frame == self._token else frame
            self._taken += 1  # behind yield: it has been dealt with

    # writing ---------------------------------------------------------------------------------

    def write_now(self, message: str | bytes) -> bool:
        """Send a message from any thread, unless that has to wait; whether it is on its way."""
        text = isinstance(message, str)
        payload = message.encode() if isinstance(message, str) else message
        frame = _unmasked_head(0x81 if text else _WHOLE_BINARY, len(payload)) + payload
        with self._wire:
            open_ = self._file >= 0 and self.protocol.state is State.OPEN
            if not open_ or self._rest or self._buffered():
                return False
            try:
                count = os.write(self._file, frame)
            except OSError:  # full, or gone; `send` finds out
                return False
            if count < len(frame):
                self._rest = frame[count:]
                self.loop.call_soon_threadsafe(self.send_data)
            return True

    def send_data(self) -> None:
        """Send what `websockets` has; nothing comes between the parts of a frame.

        A connection that pings and never reads the pongs is ended.
        """
        with self._wire:
            if self._rest:
                self.transport.write(self._rest)
                self._rest = b""
            if not self._reading:
                super().send_data()
                return
            before = self.transport.get_write_buffer_size()
            super().send_data()
            more = self.transport.get_write_buffer_size() - before
            self._unread = self._unread + more if self.paused else 0
            if self._unread > _MOST_UNREAD:
                self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Have `websockets` read and answer what it answers itself."""
        self._reading = True
        super().data_received(data)
        self._reading = False

    def write_directly(self) -> None:
        """Let `write_now` write, for as long as the connection lives; not through TLS.

        It gets a file of its own: the number of one that was closed may be another robot's by now.
        """
        plain = self.transport.get_extra_info("ssl_object") is None
        if plain and self.protocol.state is State.OPEN:
            with contextlib.suppress(OSError):  # no more files
                self._file = os.dup(self.transport.get_extra_info("socket").fileno())

    def connection_lost(self, exc: Exception | None) -> None:
        """Give up what was kept."""
        with self._wire:
            if self._file >= 0:
                os.close(self._file)
            self._file = -1
        super().connection_lost(exc)

    def _buffered(self) -> bool:
        """Whether the event loop has still to write what was sent before."""
        with contextlib.suppress(RuntimeError):  # it changes just now
            return self.transport.get_write_buffer_size() > 0
        return True

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
            whole = payload.data[: self._length]
            self._payload = None
            nothing_before = self._begun == self._taken and self.protocol.state is State.OPEN
            if nothing_before and self.taker is not None and self.taker(whole):
                return
            self._begun += 1
            self._payloads.append(whole)
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
            self._begun += data[at] & 0x8F in _LAST
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


def _unmasked_head(first: int, size: int) -> bytes:
    if size < 126:
        return bytes((first, size))
    if size < 1 << 16:
        return bytes((first, 126)) + size.to_bytes(2, "big")
    return bytes((first, 127)) + size.to_bytes(8, "big")
