"""The engine process: loads a policy and answers observations until its node goes away.

Started by `engine_process`; arguments are the descriptors of its socket and of the shared memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from typing import Any

from pi05_ros.runtime.isolation.channel import Channel
from pi05_ros.runtime.isolation.shared_images import SharedImages

BEAT_S = 0.05


class ChannelLogs(logging.Handler):
    """Sends log records of the library to the node."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record; never raises."""
        with contextlib.suppress(Exception):
            text = self.format(record).encode("utf-8", "backslashreplace").decode()
            self._channel.send("log", name=record.name, level=record.levelno, text=text)


def main() -> int:
    """Serve one node."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the node's Ctrl-C; it ends this process itself
    _die_with_parent()
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    try:
        memory = SharedImages(int(sys.argv[2]))
    except OSError as error:  # no memory
        channel.send("error", id=-1, **_described(error))
        return 1
    os.close(int(sys.argv[2]))
    library = logging.getLogger("pi05_ros")
    library.setLevel(logging.DEBUG)
    library.addHandler(ChannelLogs(channel))
    threading.Thread(target=_beat, args=(memory,), daemon=True).start()
    policy: Any = None
    while (message := channel.receive()) is not None:
        try:
            if message["op"] == "load":
                policy, inference_s = _load(message)
                channel.send("ready", inference_s=inference_s, **_description(policy))
            elif message["op"] == "infer":
                channel.send("chunk", id=message["id"], **_infer(policy, memory, message))
            elif message["op"] == "close":
                break
        except BrokenPipeError:
            break
        except BaseException as error:
            channel.send("error", id=message.get("id", -1), **_described(error))
    if policy is not None:
        policy.close()
    return 0


def _load(message: dict[str, Any]) -> tuple[Any, float]:
    """The policy, and seconds of one inference."""
    from pi05_ros.phases import phase
    from pi05_ros.runtime.parameters import PolicyParameters

    module, _, name = message["factory"].partition(":")
    parameters = PolicyParameters.from_values(message["parameters"])
    policy = getattr(importlib.import_module(module), name)(parameters)
    with phase("warm-up"):
        policy.warm_up()  # builds what is built once
    gc.collect()
    gc.freeze()  # looking through what is loaded would hold up an inference now and then
    began = time.monotonic()
    policy.warm_up()
    return policy, time.monotonic() - began


def _description(policy: Any) -> dict[str, Any]:
    from pi05_ros.runtime.isolation.records import pack_info

    return {"info": pack_info(policy.info)}


def _infer(policy: Any, memory: SharedImages, message: dict[str, Any]) -> dict[str, Any]:
    from pi05_ros.backends.engine import EngineHealth
    from pi05_ros.policy.interface import Observation
    from pi05_ros.runtime.isolation.records import pack_chunk, pack_health

    if message["forget"] and hasattr(policy, "forget"):
        policy.forget()
    images, state = memory.read(message["images"], message["state"])
    observation = Observation(
        images=images,
        state=state,
        prompt=message["prompt"],
        stamp_ns=message["stamp_ns"],
        age_s=message["age_s"],
    )
    steps = message["denoise_steps"]
    chunk = policy.infer(observation, seed=message["seed"], denoise_steps=steps)
    health = policy.health() if hasattr(policy, "health") else EngineHealth()
    return {"chunk": pack_chunk(chunk), "health": pack_health(health)}


def _described(error: BaseException) -> dict[str, Any]:
    """An error as a map; `fatal` if the process cannot be expected to work after it."""
    from pi05_ros.runtime.refusal import is_plain_reason, reason, ruins_the_process

    return {
        "text": reason(error),
        "kind": type(error).__name__,
        "plain": is_plain_reason(error),
        "fatal": ruins_the_process(error),
        "traceback": "".join(traceback.format_exception(error))
        .encode("utf-8", "backslashreplace")
        .decode(),
    }


def _beat(memory: SharedImages) -> None:
    wait = threading.Event()
    while not wait.wait(BEAT_S):
        memory.beat()


def _die_with_parent() -> None:
    """End when the node is killed, also while this process hangs (Linux)."""
    pr_set_pdeathsig = 1
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
