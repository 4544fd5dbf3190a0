"""Node's side of one engine process, from its start to its end; never restarted itself."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pi05_ros
from pi05_ros.runtime.isolation.channel import Channel
from pi05_ros.runtime.isolation.errors import EngineFaultError, EngineLostError, IsolationError
from pi05_ros.runtime.isolation.shared_images import SLOTS, SharedImages, make_file

CLOSE_S = 2.0
POLL_S = 0.05
LOADING_STALLED_S = 60.0
"""The heartbeat needs Python's lock, which loading may hold for a long time."""


class EngineProcess:
    """A started engine process.

    Args:
        factory: "module:function" that makes the policy from `PolicyParameters` in the process.
        parameters: values by ROS name, for `PolicyParameters.from_values`.
        stalled_s: without a heartbeat for so long a serving process stands still.

    Raises:
        EngineLostError: the process ended at once.
        OSError, RuntimeError: no descriptor, process or thread is to be had; nothing is left.

    """

    def __init__(self, factory: str, parameters: Mapping[str, Any], stalled_s: float) -> None:
        self._stalled_s = stalled_s
        self._lost = ""  # why nothing can be expected of the process any more
        self._answers: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._next_id = 0
        self._serving = False
        self._beats, self._beat_at = 0, time.monotonic()
        with contextlib.ExitStack() as always, contextlib.ExitStack() as on_failure:
            descriptor = make_file()
            always.callback(os.close, descriptor)
            self.memory = SharedImages(descriptor)
            on_failure.callback(self.memory.close)
            ours, theirs = socket.socketpair()
            always.callback(theirs.close)
            self._channel = Channel(ours)
            on_failure.callback(self._channel.close)
            self._process = subprocess.Popen(
                [
                    sys.executable, "-m", "pi05_ros.runtime.isolation.engine_main",
                    str(theirs.fileno()), str(descriptor),
                ],
                pass_fds=(theirs.fileno(), descriptor),
                stdin=subprocess.DEVNULL,
                env=_environment(),
                start_new_session=True,  # Ctrl-C in a terminal is for the node
            )  # fmt: skip
            on_failure.callback(self._kill)
            self._reader = threading.Thread(
                target=self._read, name="pi05_engine_reader", daemon=True
            )
            self._reader.start()
            self._send("load", factory=factory, parameters=dict(parameters))
            on_failure.pop_all()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def wait_ready(self, stop: threading.Event) -> dict[str, Any]:
        """Wait until the policy is loaded and warm; its description.

        Raises:
            EngineFaultError: loading failed.
            EngineLostError: the process died, or `stop` was set.

        """
        answer = self._wait(None, stop)
        self._serving = True
        self._beat_at = time.monotonic()
        return answer

    def infer(self, timeout_s: float, **request: Any) -> dict[str, Any]:
        """Send one request ``infer`` and wait for its chunk.

        Raises:
            EngineFaultError: the policy raised.
            EngineLostError: the process died or stands still, or the time is over.

        """
        self._next_id += 1
        self._send("infer", id=self._next_id, **request)
        return self._wait(timeout_s, None)

    def slot(self) -> int:
        """Slot of the ring for the next observation."""
        return self._next_id % SLOTS

    def trouble(self) -> str:
        """Why no answer can be expected now, empty if one can; from any thread."""
        if self._lost:
            return self._lost
        code = self._process.poll()
        if code is not None:
            return _how_it_ended(code)
        beats = self.memory.beats()
        now = time.monotonic()
        if beats != self._beats:
            self._beats, self._beat_at = beats, now
        if now - self._beat_at > (self._stalled_s if self._serving else LOADING_STALLED_S):
            return "the engine process stands still"
        return ""

    @property
    def still_s(self) -> float:
        """How long ago the last heartbeat was seen."""
        return time.monotonic() - self._beat_at

    def give_up(self, why: str) -> None:
        """Expect nothing of the process any more."""
        self._lost = self._lost or why

    def close(self) -> None:
        """End the process, politely if it serves, and free everything."""
        if self._serving and not self.trouble():
            with contextlib.suppress(OSError):
                self._channel.send("close")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(CLOSE_S)
        self._lost = self._lost or "the engine process was ended"
        self._kill()
        self._channel.close()
        self._reader.join(CLOSE_S)
        self.memory.close()

    def _kill(self) -> None:
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait()

    def _send(self, op: str, **values: Any) -> None:
        try:
            self._channel.send(op, **values)
        except OSError as error:
            raise EngineLostError(self._why_gone()) from error

    def _wait(self, timeout_s: float | None, stop: threading.Event | None) -> dict[str, Any]:
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            try:
                answer = self._answers.get(timeout=POLL_S)
            except queue.Empty:
                trouble = self.trouble()
                if trouble:
                    raise EngineLostError(trouble) from None
                if stop is not None and stop.is_set():
                    raise EngineLostError("the engine process was ended while loading") from None
                if end is not None and time.monotonic() > end:
                    self.give_up(f"the engine process did not answer within {timeout_s:.1f} s")
                    raise EngineLostError(self._lost) from None
                continue
            if answer is None:
                raise EngineLostError(self._why_gone())
            if answer["op"] == "error":
                if not answer["plain"]:
                    logging.getLogger(__name__).error("in the engine: %s", answer["traceback"])
                if answer["fatal"]:
                    self.give_up(f"the engine process failed: {answer['text']}")
                raise EngineFaultError(str(answer["text"]))
            if answer.get("id", self._next_id) == self._next_id:
                return answer

    def _why_gone(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        return self.trouble() or "the engine process closed its connection"

    def _read(self) -> None:
        """Reader thread: put answers aside, log what the process logs."""
        while True:
            try:
                message = self._channel.receive()
            except (IsolationError, ValueError):
                message = None
            if message is not None and message["op"] == "log":
                logging.getLogger(message["name"]).log(message["level"], "%s", message["text"])
                continue
            self._answers.put(message)
            if message is None:
                return


def _environment() -> dict[str, str]:
    """This package is found in the process as it is here."""
    parent = str(Path(pi05_ros.__file__).resolve().parents[1])
    paths = [parent, *(path for path in sys.path if path)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"the engine process ended with code {code}"
    with contextlib.suppress(ValueError):
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"the engine process was killed by {name}{hint}"
    return f"the engine process was killed by signal {-code}"
