"""Messages between node and engine process: msgpack maps on a socket, each after its length.

Requests: ``load``, ``infer``, ``close``. Answers: ``ready``, ``chunk``, ``error``. At any time
from the engine: ``log``. Images do not travel here, see `shared_images`.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import Any

import msgpack

from pi05_ros.runtime.isolation.errors import IsolationError

_LENGTH = struct.Struct("<I")
MAX_BYTES = 64 * 2**20


class Channel:
    """One end of the socket; `send` may be called from any thread, `receive` from one.

    Args:
        end: connected stream socket, owned from now on.

    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._lock = threading.Lock()

    def send(self, op: str, **values: Any) -> None:
        """Send one message.

        Raises:
            OSError: the other end is gone.
            IsolationError: the message is too long.

        """
        body = msgpack.packb({"op": op, **values})
        if len(body) > MAX_BYTES:
            raise IsolationError(f"message {op} has {len(body)} bytes; accepted: {MAX_BYTES}")
        with self._lock:
            self._socket.sendall(_LENGTH.pack(len(body)) + body)

    def receive(self) -> dict[str, Any] | None:
        """Wait for the next message; None when the other end is gone."""
        head = self._exactly(_LENGTH.size)
        if head is None:
            return None
        (length,) = _LENGTH.unpack(head)
        if length > MAX_BYTES:
            raise IsolationError(f"a message of {length} bytes was announced")
        body = self._exactly(length)
        if body is None:
            return None
        message = msgpack.unpackb(body)
        if not isinstance(message, dict) or not isinstance(message.get("op"), str):
            raise IsolationError("a message is no map with an op")
        return message

    def close(self) -> None:
        """Close this end; wakes a thread that waits in `receive`."""
        with contextlib.suppress(OSError):  # the other end was first
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _exactly(self, count: int) -> bytes | None:
        parts = bytearray()
        while len(parts) < count:
            try:
                part = self._socket.recv(count - len(parts))
            except OSError:
                return None
            if not part:
                return None
            parts += part
        return bytes(parts)
