"""One connection of the server: its requests are read, queued and answered in their order."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from pi05_ros.errors import Pi05Error
from pi05_ros.policy.remote import array_codec
from pi05_ros.policy.remote.errors import WireError
from pi05_ros.policy.robots.profile import RobotProfile
from pi05_ros.serving.direct_frames import DirectConnection
from pi05_ros.serving.errors import ServingError
from pi05_ros.serving.prometheus import ServerMetrics
from pi05_ros.serving.queue import DeadlineError, DrainingError, InferenceQueue, ReplacedError
from pi05_ros.serving.requests import Request, parse_request
from pi05_ros.serving.session import Answering

log = logging.getLogger("pi05_ros.serving")

BACKLOG = 8
"""Requests of one session that may be unanswered; reading goes on when one is."""
_INTERNAL = "internal error; the server's log has the traceback"


@dataclass
class SharedDesk:
    """What the conversations of one server share.

    Attributes:
        robot: whose observations are accepted.
        queue, metrics: of the server.
        max_frame: bytes of one request.
        deadline_ms: of requests that name none; None waits as long as it takes.
        unanswered: requests that were read and whose answer was not handed to a socket yet.
        broken: why the last inference failed, if none has succeeded since; for ``/healthz``.

    """

    robot: RobotProfile
    queue: InferenceQueue
    metrics: ServerMetrics
    max_frame: int
    deadline_ms: float | None
    unanswered: int = 0
    broken: str = ""


@dataclass(frozen=True)
class _Asked:
    """A request in the queue."""

    future: asyncio.Future[dict[str, Any]]
    dialect: str
    number: int
    request_id: int | str | None
    began: float


class Conversation:
    """Reads the requests of one connection and answers them in their order.

    Args:
        shared: of the server.
        connection: after the handshake.
        name: of the session, in logs and in the queue.
        session: its state.

    """

    def __init__(
        self, shared: SharedDesk, connection: DirectConnection, name: str, session: Answering
    ) -> None:
        self._shared = shared
        self._connection = connection
        self._name = name
        self._session = session
        self._answers: asyncio.Queue[_Asked | str] = asyncio.Queue(BACKLOG)
        self._number = 0
        self._sent = 0
        self._previous_ms: float | None = None
        self._reset_due = False

    async def run(self, first_frame: bytes) -> None:
        """Talk until the connection ends; raises ConnectionClosed if it ended with an error."""
        await self._connection.send(first_frame)
        sender = asyncio.create_task(self._send())
        try:
            async for frame in self._connection.frames():
                self._number += 1
                self._shared.unanswered += 1
                asked = self._ask(frame)  # parsed and queued at once and in order
                del frame
                await self._answers.put(asked)
        finally:
            sender.cancel()
            self._shared.unanswered -= self._number - self._sent
            while not self._answers.empty():
                left = self._answers.get_nowait()
                if isinstance(left, _Asked):
                    left.future.cancel()

    async def _send(self) -> None:
        while True:
            asked = await self._answers.get()
            answer = asked if isinstance(asked, str) else await self._finish(asked)
            await self._connection.send(answer)
            self._sent += 1
            self._shared.unanswered -= 1

    # one request ----------------------------------------------------------------------------

    def _ask(self, frame: str | bytes | memoryview) -> _Asked | str:
        """Queue a request; the text of an error if it is not as accepted."""
        began = time.monotonic()
        request_id = None
        try:
            request, dialect = self._parse(frame)
            request_id = request.request_id
            self._reset_due |= request.reset
            future = self._submit(request, began)
        except Pi05Error as error:
            return self._refused(error, self._number, request_id)
        except Exception as error:
            return self._failed(error, self._number, request_id)
        asked = _Asked(asyncio.wrap_future(future), dialect, self._number, request_id, began)
        asked.future.add_done_callback(lambda done: self._count(done, asked))
        return asked

    def _count(self, done: asyncio.Future[dict[str, Any]], asked: _Asked) -> None:
        """Log and count a request without an answer when that is known, not when it is told."""
        error = None if done.cancelled() else done.exception()
        if isinstance(error, Pi05Error):
            self._refused(error, asked.number, asked.request_id)
        elif isinstance(error, Exception):
            self._failed(error, asked.number, asked.request_id)

    def _parse(self, frame: str | bytes | memoryview) -> tuple[Request, str]:
        """A frame as request, and the dialect to answer in; raises WireError."""
        shared = self._shared
        if isinstance(frame, str):
            raise WireError("a request is a binary msgpack frame, not a text frame")
        shared.metrics.received.inc(len(frame))
        if len(frame) > shared.max_frame:
            raise WireError(
                f"the request has {len(frame)} bytes; accepted: up to {shared.max_frame}"
            )
        decoded = array_codec.unpack(frame)
        return parse_request(decoded.value, shared.robot), decoded.dialect

    def _submit(self, request: Request, began: float) -> Future[dict[str, Any]]:
        deadline_ms = request.deadline_ms
        if deadline_ms is None:
            deadline_ms = self._shared.deadline_ms
        deadline_s = None if deadline_ms is None else began + deadline_ms / 1e3
        return self._shared.queue.submit(self._name, lambda: self._compute(request), deadline_s)

    def _compute(self, request: Request) -> dict[str, Any]:
        """In the inference thread. A reset holds also if its own request was replaced or late."""
        if self._reset_due:
            self._reset_due = False
            request = dataclasses.replace(request, reset=True)
        return self._session.answer(request)

    async def _finish(self, asked: _Asked) -> str | bytes:
        """One answer frame: bytes, or text for an error."""
        shared = self._shared
        try:
            answer = await asked.future
        except Pi05Error as error:
            return _error(str(error), asked.request_id)
        except Exception:
            return _error(_INTERNAL, asked.request_id)
        try:
            timing = answer.setdefault("server_timing", {})
            shared.metrics.inference.observe(timing.get("infer_ms", 0.0) / 1e3)
            if self._previous_ms is not None:
                timing["prev_total_ms"] = self._previous_ms
            timing["total_ms"] = 1e3 * (time.monotonic() - asked.began)
            if asked.request_id is not None:
                answer["request_id"] = asked.request_id
            packed = array_codec.pack(answer, asked.dialect)
        except Pi05Error as error:
            return self._refused(error, asked.number, asked.request_id)
        except Exception as error:
            return self._failed(error, asked.number, asked.request_id)
        elapsed = time.monotonic() - asked.began
        shared.broken = ""
        self._previous_ms = 1e3 * elapsed
        shared.metrics.answered.inc()
        shared.metrics.total.observe(elapsed)
        if log.isEnabledFor(logging.DEBUG):
            log_event("answered", logging.DEBUG, session=self._name, request=asked.number,
                      id=asked.request_id, total_ms=round(self._previous_ms, 3))  # fmt: skip
        return packed

    def _failed(self, error: Exception, number: int, request_id: int | str | None) -> str:
        log.error("session %s, request %d", self._name, number, exc_info=error)
        self._shared.broken = f"inference fails: {type(error).__name__}"
        self._shared.metrics.requests.labels("failed").inc()
        return _error(_INTERNAL, request_id)

    def _refused(self, error: Pi05Error, number: int, request_id: int | str | None) -> str:
        kinds = ((ReplacedError, "replaced"), (DeadlineError, "late"), (DrainingError, "draining"),
                 (ServingError, "failed"))  # fmt: skip
        result = next((name for kind, name in kinds if isinstance(error, kind)), "refused")
        self._shared.metrics.requests.labels(result).inc()
        log_event(result, session=self._name, request=number, id=request_id, why=str(error))
        return _error(str(error), request_id)


def _error(text: str, request_id: int | str | None) -> str:
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if request_id is None else f"request {request_id}: {text}"


def log_event(what: str, level: int = logging.INFO, **facts: Any) -> None:
    """One log line: what happened, then its facts as JSON."""
    if log.isEnabledFor(level):
        log.log(level, "%s %s", what, json.dumps(facts, default=str))
