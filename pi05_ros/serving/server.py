"""The policy server: websocket sessions in front of one inference thread.

Speaks openpi's protocol: the first frame is msgpack metadata, then one binary answer per binary
request; a text frame is an error. Unlike openpi's server an error ends neither the session nor
shows a traceback. ``/healthz`` and ``/metrics`` answer plain HTTP on the same port.
"""

from __future__ import annotations

import asyncio
import http
import itertools
import logging
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response

from pi05_ros.policy.remote import array_codec
from pi05_ros.policy.robots.profile import RobotProfile
from pi05_ros.serving.access import Access, check_exposure
from pi05_ros.serving.conversation import Conversation, SharedDesk, log_event
from pi05_ros.serving.direct_frames import DirectConnection
from pi05_ros.serving.prometheus import ServerMetrics
from pi05_ros.serving.queue import InferenceQueue
from pi05_ros.serving.session import Answering

log = logging.getLogger("pi05_ros.serving")

HARD_LIMIT_FACTOR = 4
"""A frame up to this many times `ServerOptions.max_frame` is refused and the session lives; a
larger one cannot be skipped without reading it, so it ends the connection (code 1009)."""
SEND_S = 1.0
"""How long answers may take to go out at a stop."""


@dataclass(frozen=True)
class ServerOptions:
    """How a server listens and what it bounds.

    Attributes:
        host, port: where to listen; port 0 takes a free one.
        access: API keys.
        tls: server context, or None for plain ``ws://``.
        max_frame: bytes of one request.
        max_sessions: connections at a time.
        deadline_ms: of requests that name none; None waits as long as it takes.
        drain_s: how long running and waiting requests may take after a stop.
        workers: requests of different sessions under way at a time; 1 for one policy.

    """

    host: str = "127.0.0.1"
    port: int = 8000
    access: Access = field(default_factory=Access)
    tls: ssl.SSLContext | None = None
    max_frame: int = 32 * 1024 * 1024
    max_sessions: int = 64
    deadline_ms: float | None = None
    drain_s: float = 5.0
    workers: int = 1


class PolicyServer:
    """Serves one policy; use `run`.

    Args:
        robot: whose observations are accepted.
        metadata: makes the first frame of a connection; called in a thread of its own.
        new_session: makes the state of one connection.
        options: see `ServerOptions`.

    Raises:
        ServingError: it would listen beyond this machine without keys.

    """

    def __init__(
        self,
        robot: RobotProfile,
        metadata: Callable[[], dict[str, Any]],
        new_session: Callable[[], Answering],
        options: ServerOptions | None = None,
    ) -> None:
        self._options = options or ServerOptions()
        check_exposure(self._options.host, self._options.access)
        self._metadata = metadata
        self._new_session = new_session
        self._queue = InferenceQueue(
            lambda seconds: self.metrics.wait.observe(seconds), self._options.workers
        )
        self.metrics = ServerMetrics(lambda: self._queue.length)
        self._shared = SharedDesk(
            robot, self._queue, self.metrics, self._options.max_frame, self._options.deadline_ms
        )
        self._ids = itertools.count(1)
        self._open = 0
        self._draining = False
        self.port = 0
        """Port in use while the server runs."""

    @property
    def unanswered(self) -> int:
        """Requests that were read and whose answer was not handed to a socket yet."""
        return self._shared.unanswered

    async def run(
        self, stop: asyncio.Event, listening: Callable[[int], None] = lambda port: None
    ) -> bool:
        """Serve until ``stop`` is set, then drain; False if requests had to be left behind.

        Args:
            stop: ends the server.
            listening: called with the port once connections are accepted.

        Raises:
            OSError: the address cannot be listened on.

        """
        options = self._options
        async with serve(
            self._connection,
            options.host,
            options.port,
            ssl=options.tls,
            compression=None,
            max_size=HARD_LIMIT_FACTOR * options.max_frame,
            max_queue=1,
            process_request=self._before_handshake,
            server_header=None,
            create_connection=DirectConnection,
        ) as server:
            self.port = _port(server)
            listening(self.port)
            log_event("listening", host=options.host, port=self.port, tls=options.tls is not None)
            await stop.wait()
            self._draining = True
            log_event("draining", waiting=self._queue.length)
            clean = await asyncio.to_thread(self._queue.drain, options.drain_s)
            end = time.monotonic() + SEND_S
            while self.unanswered and time.monotonic() < end:
                await asyncio.sleep(0.01)  # answers go out before the connections close
        log_event("stopped", clean=clean)
        return clean

    # connections ----------------------------------------------------------------------------

    async def _before_handshake(
        self, connection: ServerConnection, request: HttpRequest
    ) -> Response | None:
        """Answer plain HTTP, refuse who may not come in; None goes on with the handshake."""
        path = request.path.partition("?")[0]
        if path == "/healthz":
            why = "shutting down" if self._draining else self._shared.broken
            status = http.HTTPStatus.SERVICE_UNAVAILABLE if why else http.HTTPStatus.OK
            return connection.respond(status, f"{why or 'OK'}\n")
        access = self._options.access
        if not access.allows(_only(request.headers, "Authorization")):
            self.metrics.refused.labels("unauthorized").inc()
            return connection.respond(
                http.HTTPStatus.UNAUTHORIZED, "send the header Authorization: Api-Key KEY\n"
            )
        if path == "/metrics":
            return _plain(self.metrics.text())
        origin, host = (_only(request.headers, name) for name in ("Origin", "Host"))
        if not access.allows_page(origin, host):
            self.metrics.refused.labels("origin").inc()
            return connection.respond(
                http.HTTPStatus.FORBIDDEN, "web pages of other sites may not connect\n"
            )
        if self._draining or self._open >= self._options.max_sessions:
            reason = "draining" if self._draining else "full"
            self.metrics.refused.labels(reason).inc()
            return connection.respond(
                http.HTTPStatus.SERVICE_UNAVAILABLE,
                "shutting down\n" if self._draining else f"{self._open} sessions are open\n",
            )
        return None

    async def _connection(self, connection: ServerConnection) -> None:
        assert isinstance(connection, DirectConnection)
        name = f"s{next(self._ids)}"
        if self._open >= self._options.max_sessions:  # others shook hands at the same time
            self.metrics.refused.labels("full").inc()
            await connection.close(1013, f"{self._open} sessions are open")
            return
        self._open += 1
        self.metrics.sessions.inc()
        log_event("session opened", session=name, peer=str(connection.remote_address))
        try:
            first_frame = array_codec.pack(await asyncio.to_thread(self._metadata))
            conversation = Conversation(self._shared, connection, name, self._new_session())
            await conversation.run(first_frame)
        except ConnectionClosed:
            pass
        except Exception:
            log.exception("session %s failed", name)
        finally:
            self._queue.forget(name)
            self._open -= 1
            self.metrics.sessions.dec()
            log_event("session closed", session=name)


def _only(headers: Headers, name: str) -> str | None:
    """A header that is there once; one that contradicts itself is as good as a wrong one."""
    found = headers.get_all(name)
    return found[0] if len(found) == 1 else "; ".join(found) or None


def _plain(body: bytes) -> Response:
    headers = Headers(
        {
            "Content-Type": "text/plain; version=0.0.4; charset=utf-8",
            "Content-Length": str(len(body)),
            "Connection": "close",
        }
    )
    return Response(200, "OK", headers, body)


def _port(server: Server) -> int:
    return int(next(iter(server.sockets)).getsockname()[1])
