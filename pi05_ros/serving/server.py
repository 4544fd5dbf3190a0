"""The policy server: websocket sessions in front of one inference thread.

Speaks openpi's protocol: the first frame is msgpack metadata, then one binary answer per binary
request; a text frame is an error. Unlike openpi's server an error ends neither the session nor
shows a traceback. ``/healthz`` and ``/metrics`` answer plain HTTP on the same port.
"""

from __future__ import annotations

import asyncio
import dataclasses
import http
import itertools
import json
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

from pi05_ros.errors import Pi05Error
from pi05_ros.policy.remote import array_codec
from pi05_ros.policy.remote.errors import WireError
from pi05_ros.policy.robots.profile import RobotProfile
from pi05_ros.serving.access import Access, check_exposure
from pi05_ros.serving.errors import ServingError
from pi05_ros.serving.prometheus import ServerMetrics
from pi05_ros.serving.queue import DeadlineError, DrainingError, InferenceQueue, ReplacedError
from pi05_ros.serving.requests import Request, parse_request
from pi05_ros.serving.session import Answering

log = logging.getLogger("pi05_ros.serving")

HARD_LIMIT_FACTOR = 4
"""A frame up to this many times `ServerOptions.max_frame` is refused and the session lives; a
larger one cannot be skipped without reading it, so it ends the connection (code 1009)."""
SEND_S = 1.0
"""How long answers may take to go out at a stop."""
BACKLOG = 8
"""Requests of one session that may be unanswered; reading goes on when one is."""


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
        self._robot = robot
        self._metadata = metadata
        self._new_session = new_session
        self._queue = InferenceQueue(
            lambda seconds: self.metrics.wait.observe(seconds), self._options.workers
        )
        self.metrics = ServerMetrics(lambda: self._queue.length)
        self._ids = itertools.count(1)
        self._open = 0
        self._draining = False
        self.unanswered = 0
        """Requests that were read and whose answer was not handed to a socket yet."""
        self.broken = ""
        """Why the last inference failed, if no inference has succeeded since; for ``/healthz``."""
        self.port = 0
        """Port in use while the server runs."""

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
        ) as server:
            self.port = _port(server)
            listening(self.port)
            _event("listening", host=options.host, port=self.port, tls=options.tls is not None)
            await stop.wait()
            self._draining = True
            _event("draining", waiting=self._queue.length)
            clean = await asyncio.to_thread(self._queue.drain, options.drain_s)
            end = time.monotonic() + SEND_S
            while self.unanswered and time.monotonic() < end:
                await asyncio.sleep(0.01)  # answers go out before the connections close
        _event("stopped", clean=clean)
        return clean

    # connections ----------------------------------------------------------------------------

    async def _before_handshake(
        self, connection: ServerConnection, request: HttpRequest
    ) -> Response | None:
        """Answer plain HTTP, refuse who may not come in; None goes on with the handshake."""
        path = request.path.partition("?")[0]
        if path == "/healthz":
            why = "shutting down" if self._draining else self.broken
            status = http.HTTPStatus.SERVICE_UNAVAILABLE if why else http.HTTPStatus.OK
            return connection.respond(status, f"{why or 'OK'}\n")
        if not self._options.access.allows(request.headers.get("Authorization")):
            self.metrics.refused.labels("unauthorized").inc()
            return connection.respond(
                http.HTTPStatus.UNAUTHORIZED, "send the header Authorization: Api-Key KEY\n"
            )
        if path == "/metrics":
            return _plain(self.metrics.text())
        if self._draining or self._open >= self._options.max_sessions:
            reason = "draining" if self._draining else "full"
            self.metrics.refused.labels(reason).inc()
            return connection.respond(
                http.HTTPStatus.SERVICE_UNAVAILABLE,
                "shutting down\n" if self._draining else f"{self._open} sessions are open\n",
            )
        return None

    async def _connection(self, connection: ServerConnection) -> None:
        name = f"s{next(self._ids)}"
        if self._open >= self._options.max_sessions:  # others shook hands at the same time
            self.metrics.refused.labels("full").inc()
            await connection.close(1013, f"{self._open} sessions are open")
            return
        self._open += 1
        self.metrics.sessions.inc()
        _event("session opened", session=name, peer=str(connection.remote_address))
        try:
            await _Conversation(self, connection, name, self._new_session()).run()
        except ConnectionClosed:
            pass
        except Exception:
            log.exception("session %s failed", name)
        finally:
            self._queue.forget(name)
            self._open -= 1
            self.metrics.sessions.dec()
            _event("session closed", session=name)

    # used by conversations ------------------------------------------------------------------

    async def first_frame(self) -> bytes:
        """Packed metadata."""
        return array_codec.pack(await asyncio.to_thread(self._metadata))

    def parse(self, frame: str | bytes) -> tuple[Request, str]:
        """A frame as request, and the dialect to answer in; raises WireError."""
        if isinstance(frame, str):
            raise WireError("a request is a binary msgpack frame, not a text frame")
        self.metrics.received.inc(len(frame))
        if len(frame) > self._options.max_frame:
            raise WireError(
                f"the request has {len(frame)} bytes; accepted: up to {self._options.max_frame}"
            )
        decoded = array_codec.unpack(frame)
        return parse_request(decoded.value, self._robot), decoded.dialect

    async def infer(
        self,
        name: str,
        answer: Callable[[Request], dict[str, Any]],
        request: Request,
        began: float,
    ) -> Any:
        """Queue a request of a session and wait for its answer."""
        deadline_ms = request.deadline_ms
        if deadline_ms is None:
            deadline_ms = self._options.deadline_ms
        deadline_s = None if deadline_ms is None else began + deadline_ms / 1e3
        future = self._queue.submit(name, lambda: answer(request), deadline_s)
        found = await asyncio.wrap_future(future)
        self.metrics.inference.observe(found.get("server_timing", {}).get("infer_ms", 0.0) / 1e3)
        return found


class _Conversation:
    """Reads the requests of one connection and answers them in their order."""

    def __init__(
        self, server: PolicyServer, connection: ServerConnection, name: str, session: Answering
    ) -> None:
        self._server = server
        self._connection = connection
        self._name = name
        self._session = session
        self._answers: asyncio.Queue[asyncio.Task[str | bytes]] = asyncio.Queue(BACKLOG)
        self._number = 0
        self._sent = 0
        self._previous_ms: float | None = None
        self._reset_due = False

    async def run(self) -> None:
        await self._connection.send(await self._server.first_frame())
        sender = asyncio.create_task(self._send())
        try:
            async for frame in self._connection:
                self._number += 1
                self._server.unanswered += 1
                # The request is parsed and queued here, at once and in order.
                task = asyncio.create_task(self._answer(frame, self._number, time.monotonic()))
                await self._answers.put(task)
                await asyncio.sleep(0)
        finally:
            sender.cancel()
            self._server.unanswered -= self._number - self._sent
            while not self._answers.empty():
                self._answers.get_nowait().cancel()

    async def _send(self) -> None:
        while True:
            answer = await (await self._answers.get())
            await self._connection.send(answer)
            self._sent += 1
            self._server.unanswered -= 1

    async def _answer(self, frame: str | bytes, number: int, began: float) -> str | bytes:
        """One answer frame: bytes, or text for an error."""
        request_id: int | str | None = None
        try:
            request, dialect = self._server.parse(frame)
            del frame
            request_id = request.request_id
            self._reset_due |= request.reset
            answer = await self._server.infer(self._name, self._compute, request, began)
            timing = answer.setdefault("server_timing", {})
            if self._previous_ms is not None:
                timing["prev_total_ms"] = self._previous_ms
            timing["total_ms"] = 1e3 * (time.monotonic() - began)
            if request_id is not None:
                answer["request_id"] = request_id
            packed = array_codec.pack(answer, dialect)
        except Pi05Error as error:
            return self._refused(error, number, request_id)
        except Exception as error:
            log.exception("session %s, request %d", self._name, number)
            self._server.broken = f"inference fails: {type(error).__name__}"
            self._server.metrics.requests.labels("failed").inc()
            return _error("internal error; the server's log has the traceback", request_id)
        elapsed = time.monotonic() - began
        self._server.broken = ""
        self._previous_ms = 1e3 * elapsed
        self._server.metrics.requests.labels("answered").inc()
        self._server.metrics.total.observe(elapsed)
        _event("answered", logging.DEBUG, session=self._name, request=number, id=request_id,
               total_ms=round(self._previous_ms, 3))  # fmt: skip
        return packed

    def _compute(self, request: Request) -> dict[str, Any]:
        """In the inference thread. A reset holds also if its own request was replaced or late."""
        if self._reset_due:
            self._reset_due = False
            request = dataclasses.replace(request, reset=True)
        return self._session.answer(request)

    def _refused(self, error: Pi05Error, number: int, request_id: int | str | None) -> str:
        kinds = ((ReplacedError, "replaced"), (DeadlineError, "late"), (DrainingError, "draining"),
                 (ServingError, "failed"))  # fmt: skip
        result = next((name for kind, name in kinds if isinstance(error, kind)), "refused")
        self._server.metrics.requests.labels(result).inc()
        _event(result, session=self._name, request=number, id=request_id, why=str(error))
        return _error(str(error), request_id)


def _error(text: str, request_id: int | str | None) -> str:
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if request_id is None else f"request {request_id}: {text}"


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


def _event(what: str, level: int = logging.INFO, **facts: Any) -> None:
    """One log line: what happened, then its facts as JSON."""
    if log.isEnabledFor(level):
        log.log(level, "%s %s", what, json.dumps(facts, default=str))
