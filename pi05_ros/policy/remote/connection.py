"""One websocket to a policy server: dialed in the background, asked one request at a time.

A connection whose answer did not come in time is closed: the late answer must not be taken for
that of the next request. Dialing is repeated with growing pauses until it works.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pi05_ros.policy.remote import array_codec
from pi05_ros.policy.remote.errors import RemoteError, WireError

if TYPE_CHECKING:
    from pi05_ros.policy.remote.request_socket import RequestSocket

log = logging.getLogger("pi05_ros.remote")

MAX_ANSWER = 64 * 1024 * 1024
"""Bytes of an answer; a chunk has some kilobytes."""
LOOK_S = 1.0
"""How often a connection is looked at while nothing is asked: pings want an answer."""


@dataclass(frozen=True)
class DialOptions:
    """How to reach a server.

    Attributes:
        url: ``ws://host:port`` or ``wss://host:port``.
        api_key: sent as ``Authorization: Api-Key ...``; empty sends none.
        connect_s: how long one attempt to connect may take.
        first_pause_s, longest_pause_s: pauses between attempts; each is twice the one before.

    """

    url: str
    api_key: str = ""
    connect_s: float = 5.0
    first_pause_s: float = 0.2
    longest_pause_s: float = 5.0


class Connection:
    """Keeps one connection; use `ask` from one thread at a time.

    Args:
        options: see `DialOptions`.
        accept: called with each new connection's metadata; raises RemoteError to refuse it.

    """

    def __init__(self, options: DialOptions, accept: Callable[[dict[Any, Any]], None]) -> None:
        self._options = options
        self._accept = accept
        self._lock = threading.Lock()
        self._socket: RequestSocket | None = None
        self._packer = array_codec.FramePacker()
        self._why = "not connected yet"
        self._since = time.monotonic()
        self._wanted = threading.Event()
        self._closed = threading.Event()
        self._dialed = threading.Condition()
        self._attempts = 0
        self._dialer = threading.Thread(target=self._dial_on, name="pi05_dialer", daemon=True)
        self._dialer.start()
        self._wanted.set()

    @property
    def problem(self) -> str:
        """Why there is no connection, and for how long; empty if there is one."""
        if self._socket is not None:
            return ""
        return f"{self._options.url}: {self._why} ({time.monotonic() - self._since:.1f} s)"

    def wait(self, attempts: int, timeout_s: float) -> bool:
        """Wait for a connection, that many attempts or that long; whether there is one."""
        with self._dialed:
            self._dialed.wait_for(
                lambda: self._socket is not None or self._attempts >= attempts, timeout_s
            )
        return self._socket is not None

    def ask(self, request: dict[str, Any], timeout_s: float) -> Any:
        """Send a request and return the decoded answer.

        Raises:
            RemoteError: not connected, no answer in time, the connection broke, the server
                answered with an error, or with something that cannot be decoded.

        """
        with self._lock:
            found = self._socket
            if found is None:
                raise RemoteError(f"no connection to {self.problem}")
            end_s = time.monotonic() + timeout_s
            try:
                found.send(self._packer.pack(request), end_s)
                answer = found.receive(end_s)
            except Exception as error:  # websockets and sockets raise many kinds
                why = f"the connection broke: {_reason(error)}"
                if isinstance(error, TimeoutError) or time.monotonic() >= end_s:
                    why = f"no answer within {1e3 * timeout_s:.0f} ms"
                self._drop(why)
                raise RemoteError(f"{self._options.url}: {why}") from error
            if isinstance(answer, str):
                raise RemoteError(f"{self._options.url} answers: {_first_line(answer)}")
            try:
                return array_codec.unpack(answer).value
            except WireError as error:
                self._drop("the server answered with garbage")
                raise RemoteError(f"{self._options.url} answers with garbage: {error}") from error

    def drop(self, why: str) -> None:
        """Close the connection and dial again."""
        with self._lock:
            self._drop(why)

    def close(self) -> None:
        """Close for good."""
        self._closed.set()
        self._wanted.set()
        with self._lock:
            found, self._socket, self._why = self._socket, None, "closed"
        if found is not None:
            found.close()
        self._dialer.join(self._options.connect_s + 1.0)

    def _drop(self, why: str) -> None:
        found = self._socket
        if found is None:
            return
        self._socket, self._why, self._since = None, why, time.monotonic()
        log.warning("%s: %s; connecting again", self._options.url, why)
        # Closing waits for the peer, which may be hung.
        threading.Thread(target=found.close, daemon=True).start()
        self._wanted.set()

    def _look(self) -> None:
        """Between requests: answer pings, and notice that the server has gone."""
        if self._socket is not None and self._lock.acquire(blocking=False):
            try:
                if self._socket is not None:
                    self._socket.look()
            except Exception as error:  # websockets and sockets raise many kinds
                self._drop(f"the connection broke: {_reason(error)}")
            finally:
                self._lock.release()

    def _dial_on(self) -> None:
        pause_s = self._options.first_pause_s
        while True:
            if not self._wanted.wait(LOOK_S):
                self._look()
                continue
            if self._closed.is_set():
                return
            try:
                self._dial()
            except Exception as error:
                why = _one_line(str(error)) if isinstance(error, RemoteError) else _reason(error)
                if why != self._why:
                    log.warning("%s: %s", self._options.url, why)
                self._why = why
                self._count()
                self._closed.wait(pause_s)
                pause_s = min(2 * pause_s, self._options.longest_pause_s)
            else:
                pause_s = self._options.first_pause_s
                self._count()

    def _count(self) -> None:
        with self._dialed:
            self._attempts += 1
            self._dialed.notify_all()

    def _dial(self) -> None:
        from pi05_ros.policy.remote.request_socket import RequestSocket  # needs the extra `serve`

        options = self._options
        headers = {"Authorization": f"Api-Key {options.api_key}"} if options.api_key else None
        dialed = RequestSocket(options.url, headers, options.connect_s, MAX_ANSWER)
        try:
            first = dialed.receive(time.monotonic() + options.connect_s)
            if isinstance(first, str):
                raise RemoteError(f"the server refuses: {_first_line(first)}")
            metadata = array_codec.unpack(first).value
            if not isinstance(metadata, dict):
                raise RemoteError("the first frame is no map of metadata")
            self._accept(metadata)
            with self._lock:
                if self._closed.is_set():
                    raise RemoteError("closed")
                self._wanted.clear()
                self._socket, self._why = dialed, ""
        except BaseException:
            dialed.close()
            raise
        log.info("%s: connected", options.url)


def _reason(error: Exception) -> str:
    return f"{_first_line(str(error)) or type(error).__name__}"


def _first_line(text: str) -> str:
    """The last line of a traceback, which openpi's server sends, else the first line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return ""
    return _one_line(lines[-1] if lines[0].startswith("Traceback") else lines[0])[:300]


def _one_line(text: str) -> str:
    """Text of a peer without what would move a terminal's cursor."""
    return "".join(c if c.isprintable() else " " for c in text)
