"""A recording shown at its own pace: its images, joints, executor status, and chunks.

Chunks are those in the recording, or of a second one, such as the `chunks` of a replay. Recorded
header stamps join them with the images that they answer.
"""

from __future__ import annotations

import functools
import heapq
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pi05_ros.bags.bag import Bag, BagError, BagMessage
from pi05_ros.bags.cdr_messages import ACTION_CHUNK, EXECUTOR_STATUS, NS
from pi05_ros.bags.chunk_record import CHUNKS, record_from_message
from pi05_ros.bags.timeline import header_stamp_ns
from pi05_ros.bags.topics import JOINT_STATES, Source
from pi05_ros.runtime.inputs import conversion
from pi05_ros.view.presenter import Presenter

MOST_WAIT_S = 0.5
"""Longest pause that is kept: gaps of a recording are not waited for."""


class Clock(Protocol):
    """What shows the time of a recording."""

    def time(self, now_ns: int) -> None:
        """Show it."""


@dataclass(frozen=True)
class ShownRecording:
    """What is shown of a bag.

    Attributes:
        bag: opened.
        sources: its inputs, `prompt` left out.
        chunk_topic: where its chunks are, or None.
        status_topics: of executors.

    """

    bag: Bag
    sources: Mapping[str, Source]
    chunk_topic: str | None
    status_topics: tuple[str, ...]


def chunk_bag(path: Path) -> Path:
    """The bag of chunks at a path: itself, or `chunks` in the folder of a replay."""
    inside = path / CHUNKS
    return inside if (inside / "metadata.yaml").is_file() else path


def chunk_topic(bag: Bag, needed: bool = False) -> str | None:
    """Topic of the chunks in a bag.

    Raises:
        BagError: several, or none though it is needed.

    """
    found = [t.name for t in bag.topics.values() if t.msgtype == ACTION_CHUNK and t.count]
    if len(found) > 1 or (needed and not found):
        raise BagError(
            f"{bag.path} has {len(found)} topics with chunks; accepted: one. "
            f"Topics:\n{bag.describe_topics()}"
        )
    return found[0] if found else None


def play(
    recording: ShownRecording,
    chunks: Bag | None,
    presenter: Presenter,
    clock: Clock,
    speed: float = 1.0,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Show a recording once; returns the number of chunks.

    Args:
        recording: what is shown.
        chunks: a bag with the chunks, instead of those in the recording.
        presenter: shows it.
        clock: shows the recording's time.
        speed: seconds of the recording per second.
        sleep: waits so many seconds.

    """
    cameras = {
        source.topic: (name.removesuffix("_camera"), source.compressed)
        for name, source in recording.sources.items()
        if name.endswith("_camera")
    }
    joints = recording.sources[JOINT_STATES].topic
    count, began, shown_ns = 0, time.monotonic(), 0
    for message in _merged(recording, chunks):
        if shown_ns:
            due = max(0, message.log_ns - shown_ns) / NS / speed
            spare = began + min(due, MOST_WAIT_S) - time.monotonic()
            if spare > 0:
                sleep(spare)
            began += min(due, MOST_WAIT_S)
        if message.log_ns - shown_ns > NS // 50:
            clock.time(message.log_ns)
        shown_ns = max(shown_ns, message.log_ns)
        if message.topic in cameras:
            role, compressed = cameras[message.topic]
            stamp = header_stamp_ns(message.raw) or message.log_ns
            presenter.image(role, stamp, functools.partial(_decode, message, compressed))
        elif message.topic == joints:
            decoded = message.decode()
            presenter.joints(message.log_ns, decoded.name, decoded.position)
        elif message.msgtype == ACTION_CHUNK:
            presenter.chunk(record_from_message(message.decode(), message.log_ns))
            count += 1
        else:
            presenter.executor(message.log_ns, message.decode())
    return count


def read(bag: Bag, sources: Mapping[str, Source]) -> ShownRecording:
    """What can be shown of a bag."""
    statuses = tuple(
        topic.name for topic in bag.topics.values() if topic.msgtype == EXECUTOR_STATUS
    )
    return ShownRecording(bag, sources, chunk_topic(bag), statuses)


def _merged(recording: ShownRecording, chunks: Bag | None) -> Iterator[BagMessage]:
    topics = {source.topic for source in recording.sources.values()}
    topics |= set(recording.status_topics)
    if chunks is None:
        own = [recording.chunk_topic] if recording.chunk_topic else []
        return recording.bag.messages([*topics, *own])
    others = chunks.messages([chunk_topic(chunks, needed=True) or ""])
    return heapq.merge(recording.bag.messages(topics), others, key=lambda m: m.log_ns)


def _decode(message: BagMessage, compressed: bool) -> np.ndarray:
    decoded: Any = message.decode()
    convert = conversion.compressed_to_rgb if compressed else conversion.image_to_rgb
    return convert(decoded)
