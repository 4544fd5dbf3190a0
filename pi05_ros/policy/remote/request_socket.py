"""A websocket that asks and waits: no thread of its own, no copy of a picture more than needed.

`websockets` dials (addresses, proxies, TLS, redirects, handshake) and interprets what comes. Its
blocking client hands every answer from a thread to another and copies what is sent three times;
at a robot's rate, where nothing is in a cache any more, that is half of a round trip.
"""

from __future__ import annotations

import contextlib
import secrets
import select
import socket
import ssl
import time
from typing import Any

import numpy as np
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.sync.client import ClientConnection, connect

from pi05_ros.errors import Pi05Error

_ROOM = 16  # before the payload: the largest frame header has 14 bytes
_READ = 64 * 1024
_LOOKS = 8  # reads between two requests; a server that pings without end gets no more of them
_CONTROL_S = 0.25  # for a pong or the end to be taken by the system


class UnaskedError(Pi05Error):
    """The peer sent a message that answers nothing."""


class _Dialed(ClientConnection):
    """A connection whose thread ends with the handshake; what came with it is kept."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.early: list[Any] = []
        super().__init__(*args, **options)

    def recv_events(self) -> None:
        """Read until there is an answer to the handshake."""
        try:
            while self.response is None and self.protocol.handshake_exc is None:
                data = self.socket.recv(_READ)
                with self.protocol_mutex:
                    if data:
                        self.protocol.receive_data(data)
                    else:
                        self.protocol.receive_eof()
                    events = self.protocol.events_received()
                for event in events:
                    if isinstance(event, Response):
                        self.response = event
                    else:
                        self.early.append(event)
                if not data:
                    break
        except (OSError, EOFError):
            with self.protocol_mutex:
                self.protocol.receive_eof()  # which the handshake reports
        finally:
            watcher = getattr(self, "shutdown_watcher", None)  # of what the thread would do else
            if watcher is not None:
                watcher.close()
            self.response_rcvd.set()

    def close_socket(self) -> None:
        """Close, and end the thread if it still waits for the handshake."""
        _shut(self.socket)
        super().close_socket()


class RequestSocket:
    """One connection; use it from one thread at a time.

    Args:
        url: ``ws://host:port`` or ``wss://host:port``.
        headers: further ones of the handshake.
        connect_s: how long connecting may take.
        max_size: bytes of a message that is received.

    Raises:
        OSError, TimeoutError, WebSocketException: it cannot be reached or refuses.

    """

    def __init__(
        self, url: str, headers: dict[str, str] | None, connect_s: float, max_size: int
    ) -> None:
        dialing = connect(
            url,
            compression=None,
            max_size=max_size,
            additional_headers=headers,
            open_timeout=connect_s,
            ping_interval=None,
            create_connection=_Dialed,
        )
        dialed = dialing.__enter__()
        assert isinstance(dialed, _Dialed)
        dialed.recv_events_thread.join()  # it has set what `connect` waited for
        self._dialed = dialed
        self._protocol = dialed.protocol
        self._socket: socket.socket = dialed.socket
        self._poll = select.poll()  # asking it raises nothing, as a read of nothing does
        self._poll.register(self._socket, select.POLLIN)
        self._came: list[Frame] = []  # of messages
        self._sort(dialed.early)
        self._parts: list[bytes] = []
        self._opcode = Opcode.BINARY
        self._out = np.empty(0, np.uint8)

    def send(self, payload: bytes | memoryview, end_s: float) -> None:
        """Send a binary message; raises TimeoutError at ``end_s`` of `time.monotonic`.

        Raises:
            UnaskedError: something came that was not asked for.
            OSError, ConnectionClosed: the connection has ended.

        """
        self.look()
        frame = self._masked(payload)
        self._socket.settimeout(_left(end_s))
        self._socket.sendall(frame)

    def receive(self, end_s: float) -> str | bytes:
        """Wait for a message; raises TimeoutError at ``end_s``, see `send`."""
        while True:
            message = self._next()
            if message is not None:
                return message
            self._socket.settimeout(_left(end_s))
            self._read()

    def look(self) -> None:
        """Answer pings, and notice an end or what was not asked for, without waiting."""
        for _ in range(_LOOKS):
            if self._came or not self._readable():
                break
            self._socket.settimeout(0.0)
            with contextlib.suppress(ssl.SSLWantReadError):  # a part of a record
                self._read()
        if self._came or self._parts:
            raise UnaskedError("the server sent a message that answers nothing")

    def close(self, wait_s: float = 1.0) -> None:
        """End the connection, politely for ``wait_s`` at most; from any thread, raises nothing."""
        end_s = time.monotonic() + wait_s
        with contextlib.suppress(Exception):
            self._socket.settimeout(wait_s)
            if self._protocol.state is State.OPEN:
                self._protocol.send_close(1000)
                self._flush()
                while True:
                    self._socket.settimeout(_left(end_s))
                    self._came.clear()
                    self._read()
        self._dialed.close_socket()

    # the wire -----------------------------------------------------------------------------------

    def _read(self) -> None:
        """Take what there is, waiting as the socket's timeout says."""
        data = self._socket.recv(_READ)
        if data:
            self._protocol.receive_data(data)
            self._sort(self._protocol.events_received())
            self._flush()
        if not data or (self._protocol.state is not State.OPEN and not self._came):
            self._protocol.receive_eof()
            raise self._protocol.close_exc

    def _readable(self) -> bool:
        if isinstance(self._socket, ssl.SSLSocket) and self._socket.pending():
            return True
        return bool(self._poll.poll(0))

    def _sort(self, events: list[Any]) -> None:
        self._came += [e for e in events if isinstance(e, Frame) and e.opcode in _DATA]

    def _flush(self) -> None:
        """Send what the protocol answers: pongs and closing."""
        for data in self._protocol.data_to_send():
            if data:
                self._socket.settimeout(_CONTROL_S)
                self._socket.sendall(data)

    def _next(self) -> str | bytes | None:
        """The first whole message of what has come, if there is one."""
        while self._came:
            frame = self._came.pop(0)
            if frame.opcode is not Opcode.CONT:
                self._opcode = frame.opcode
            self._parts.append(bytes(frame.data))
            if frame.fin:
                whole, self._parts = b"".join(self._parts), []
                return whole.decode() if self._opcode is Opcode.TEXT else whole
        return None

    def _masked(self, payload: bytes | memoryview) -> memoryview:
        """A whole frame in memory that is kept for the next one."""
        size = len(payload)
        if len(self._out) < _ROOM + size:
            self._out = np.empty(_ROOM + size + size // 8, np.uint8)
        out, mask = self._out, secrets.token_bytes(4)
        words = size // 8
        key = np.frombuffer(2 * mask, np.uint64)[0]
        if words:
            body = out[_ROOM : _ROOM + 8 * words].view(np.uint64)
            np.bitwise_xor(np.frombuffer(payload, np.uint64, words), key, out=body)
        for i in range(8 * words, size):
            out[_ROOM + i] = payload[i] ^ mask[i % 4]
        if size < 126:
            head = bytes((0x82, 0x80 | size))
        elif size < 1 << 16:
            head = b"\x82\xfe" + size.to_bytes(2, "big")
        else:
            head = b"\x82\xff" + size.to_bytes(8, "big")
        head += mask
        out[_ROOM - len(head) : _ROOM] = np.frombuffer(head, np.uint8)
        return out.data[_ROOM - len(head) : _ROOM + size]


_DATA = (Opcode.TEXT, Opcode.BINARY, Opcode.CONT)


def _shut(connected: socket.socket) -> None:
    with contextlib.suppress(OSError):
        # That of TLS sockets would take their state from a thread that uses it.
        socket.socket.shutdown(connected, socket.SHUT_RDWR)


def _left(end_s: float) -> float:
    """Seconds until then; raises TimeoutError if there are none, since 0 would not wait at all."""
    left_s = end_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("no time is left")
    return left_s
