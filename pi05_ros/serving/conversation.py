"""One connection of the server: its requests are read, queued and answered in their order."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from pi05_ros.errors import Pi05Error
from pi05_ros.policy.remote import array_codec
from pi05_ros.policy.remote.errors import WireError
from pi05_ros.policy.robots.profile import RobotProfile
from pi05_ros.serving.answers import BACKLOG, Answer, Answers
from pi05_ros.serving.direct_frames import DirectConnection
from pi05_ros.serving.errors import ServingError
from pi05_ros.serving.prometheus import ServerMetrics
from pi05_ros.serving.queue import DeadlineError, DrainingError, InferenceQueue, ReplacedError
from pi05_ros.serving.requests import Request, parse_request
from pi05_ros.serving.session import Answering

log = logging.getLogger("pi05_ros.serving")

_INTERNAL = "internal error; the server's log has the traceback"


@dataclass
class SharedDesk:
    """What the conversations of one server share.

    Attributes:
        robot: whose observations are accepted.
        queue, metrics: of the server.
        max_frame: bytes of one request.
        deadline_ms: of requests that name none; None waits as long as it takes.
        answers: of every open connection.
        broken: why the last inference failed, if none has succeeded since; for ``/healthz``.

    """

    robot: RobotProfile
    queue: InferenceQueue
    metrics: ServerMetrics
    max_frame: int
    deadline_ms: float | None
    answers: set[Answers] = field(default_factory=set)
    broken: str = ""

    @property
    def unanswered(self) -> int:
        """Requests that were read and whose answer was not handed to a socket yet."""
        return sum(map(len, self.answers))


@dataclass(frozen=True)
class _Asked:
    """A request that was read."""

    place: Answer
    number: int
    began: float
    dialect: str = "openpi"
    request_id: int | str | None = None


class Conversation:
    """Reads the requests of one connection and answers them in their order.

    Requests are checked in the thread of the event loop. Answers are packed and sent in that of
    the inference, unless the next robot waits for it.

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
        self._answers = Answers(connection)
        self._loop = asyncio.get_running_loop()
        self._number = 0
        self._previous_ms: float | None = None
        self._reset_due = False
        self._over = False

    async def run(self, first_frame: bytes) -> None:
        """Talk until the connection ends; raises ConnectionClosed if it ended with an error."""
        await self._connection.send(first_frame)
        sender = asyncio.create_task(self._answers.send_slowly())
        self._shared.answers.add(self._answers)
        self._connection.write_directly()
        self._connection.taker = self._take
        try:
            async for frame in self._connection.frames():
                await self._answers.room()
                self._ask(frame)
                del frame
        finally:
            self._over = True
            sender.cancel()
            self._shared.answers.discard(self._answers)

    def _take(self, frame: memoryview) -> bool:
        """A large frame in front of which there is nothing; False if it has to wait."""
        room = len(self._answers) < BACKLOG and not self._over
        if room:
            self._ask(frame)
        return room

    # one request ----------------------------------------------------------------------------

    def _ask(self, frame: str | bytes | memoryview) -> None:
        """Queue a request, or answer with an error if it is not as accepted."""
        self._number += 1
        asked = _Asked(self._answers.place(), self._number, time.monotonic())
        try:
            request, dialect = self._parse(frame)
            asked = dataclasses.replace(asked, dialect=dialect, request_id=request.request_id)
            self._reset_due |= request.reset
            future = self._submit(request, asked.began)
        except Exception as error:
            self._give(asked, self._told(error, asked))
            return
        future.add_done_callback(lambda done: self._done(done, asked))

    def _done(self, done: Future[dict[str, Any]], asked: _Asked) -> None:
        """The queue is through with a request; in any thread."""
        if self._shared.queue.length:  # the next robot waits for this thread
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._finish, done, asked)
        else:
            self._finish(done, asked)

    def _finish(self, done: Future[dict[str, Any]], asked: _Asked) -> None:
        if self._over:
            return
        try:
            frame: str | bytes = self._packed(done.result(), asked)
        except BaseException as error:  # whatever ended the work, its client is told
            frame = self._told(error, asked)
        self._give(asked, frame)

    def _give(self, asked: _Asked, frame: str | bytes) -> None:
        self._answers.give(asked.place, frame)

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

    def _packed(self, answer: dict[str, Any], asked: _Asked) -> bytes:
        """An answer as frame; counts it."""
        shared = self._shared
        timing = answer.setdefault("server_timing", {})
        shared.metrics.inference.observe(timing.get("infer_ms", 0.0) / 1e3)
        if self._previous_ms is not None:
            timing["prev_total_ms"] = self._previous_ms
        timing["total_ms"] = 1e3 * (time.monotonic() - asked.began)
        if asked.request_id is not None:
            answer["request_id"] = asked.request_id
        packed = array_codec.pack(answer, asked.dialect)
        elapsed = time.monotonic() - asked.began
        shared.broken = ""
        self._previous_ms = 1e3 * elapsed
        shared.metrics.answered.inc()
        shared.metrics.total.observe(elapsed)
        if log.isEnabledFor(logging.DEBUG):
            log_event("answered", logging.DEBUG, session=self._name, request=asked.number,
                      id=asked.request_id, total_ms=round(self._previous_ms, 3))  # fmt: skip
        return packed

    def _told(self, error: BaseException, asked: _Asked) -> str:
        """The error frame of a request; logs and counts it."""
        if isinstance(error, Pi05Error):
            return self._refused(error, asked.number, asked.request_id)
        return self._failed(error, asked.number, asked.request_id)

    def _failed(self, error: BaseException, number: int, request_id: int | str | None) -> str:
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
