"""Writes an mcap file in chunks that are whole on the disk one after the other.

What is in the file after `flush` can be read whatever happens next: schemas and channels stand
before the first chunk that uses them, each chunk has a checksum, and a write that fails is taken
back to the end of the chunk before. rosbags' own writer flushes by size alone.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, cast

from rosbags.rosbag2 import storage_mcap

from pi05_ros.bags.mcap_records import (
    CHANNEL,
    CHUNK,
    HEADER,
    LEAD,
    MAGIC,
    MESSAGE,
    MESSAGE_INDEX,
    METADATA,
    SCHEMA,
    STATISTICS,
    ChunkFacts,
    ending,
    record,
    text,
    text_map,
)

COMPRESSIONS = ("none", "zstd")


class SafeMcapWriter:
    """One file; not thread-safe.

    Args:
        path: of a new file.
        compression: "none" or "zstd" (level 1) for the chunks.

    Attributes:
        size: bytes of the file up to the last whole chunk.
        pending: bytes and number of messages that are not written yet.
        counts: messages written, by topic.

    Raises:
        OSError: the file cannot be made.

    """

    def __init__(self, path: Path, compression: str = "none") -> None:
        self.path = path
        self._zstd = compression == "zstd"
        self._file = cast(BinaryIO, path.open("xb", buffering=0))
        self.size = 0
        self.counts: dict[str, int] = {}
        self._schemas: dict[str, tuple[int, bytes]] = {}
        self._channels: dict[tuple[str, str], tuple[int, bytes]] = {}
        self._names: dict[int, str] = {}
        self._new = MAGIC + record(HEADER, text("ros2") + text("pi05_ros"))
        self._chunks: list[ChunkFacts] = []
        self._metadata = 0
        self._clear()

    def __enter__(self) -> SafeMcapWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def _clear(self) -> None:
        self._parts: list[bytes] = []
        self._length = 0
        self._index: dict[int, list[bytes]] = {}
        self._first_ns, self._last_ns = 2**63, 0

    @property
    def pending(self) -> tuple[int, int]:
        """Bytes and messages that are not written yet."""
        return self._length, sum(len(entries) for entries in self._index.values())

    @property
    def descriptor(self) -> int:
        """Of the file."""
        return self._file.fileno()

    def add(self, topic: str, msgtype: str, definition: str, log_ns: int, raw: bytes) -> None:
        """Append a message; it is written with the next `flush`.

        Args:
            topic: name.
            msgtype: as "sensor_msgs/msg/Image".
            definition: its text with those of the messages in it.
            log_ns: when it was received, 0 or more.
            raw: CDR bytes.

        """
        log_ns = max(0, log_ns)
        channel = self._channel(topic, msgtype, definition)
        head = struct.pack("<BQHIQQ", MESSAGE, 22 + len(raw), channel, 0, log_ns, log_ns)
        self._index.setdefault(channel, []).append(struct.pack("<QQ", log_ns, self._length))
        self._parts += (head, raw)
        self._length += len(head) + len(raw)
        self._first_ns, self._last_ns = min(self._first_ns, log_ns), max(self._last_ns, log_ns)

    def add_metadata(self, name: str, values: Mapping[str, str]) -> None:
        """Write a metadata record with the next `flush`."""
        content = text(name) + text_map(values)
        self._metadata += 1
        self._new += record(METADATA, content)

    def flush(self) -> None:
        """Write what is pending as one chunk.

        Raises:
            OSError: it could not be written; the file is as it was before, and what was pending
                is dropped.

        """
        data = b"".join(self._parts)
        lead, self._new = self._new, b""
        facts, chunk = None, b""
        if data:
            packed = storage_mcap.zstd.compress(data, 1) if self._zstd else data
            name = text("zstd" if self._zstd else "")
            head = struct.pack("<QQQI", self._first_ns, self._last_ns, len(data), zlib.crc32(data))
            length = len(head) + len(name) + 8 + len(packed)
            chunk = struct.pack("<BQ", CHUNK, length) + head + name
            chunk += struct.pack("<Q", len(packed))
            counts = {channel: len(entries) for channel, entries in self._index.items()}
            facts = ChunkFacts(
                self.size + len(lead), LEAD + length, self._first_ns, self._last_ns,
                "zstd" if self._zstd else "", len(packed), len(data), counts,
            )  # fmt: skip
            indexes = b"".join(
                record(MESSAGE_INDEX, struct.pack("<HI", channel, 16 * len(e)) + b"".join(e))
                for channel, e in self._index.items()
            )
            parts = [lead + chunk, packed, indexes]
        else:
            parts = [lead] if lead else []
        self._clear()
        try:
            written = sum(self._write(part) for part in parts)
        except OSError:
            self._new = lead + self._new
            self._take_back()
            raise
        self.size += written
        if facts is not None:
            self._chunks.append(facts)
            for channel, count in facts.counts.items():
                topic = self._names[channel]
                self.counts[topic] = self.counts.get(topic, 0) + count

    def finish(self) -> None:
        """Write what is pending, then the summary; close.

        Raises:
            OSError: a part could not be written. The chunks before it are there.

        """
        problem: OSError | None = None
        try:
            self.flush()
        except OSError as error:
            problem = error
        schemas = [data for _, data in self._schemas.values()]
        channels = [data for _, data in self._channels.values()]
        indexes = [chunk.index_record(chunk.start + chunk.length) for chunk in self._chunks]
        by_channel: dict[int, int] = {}
        for chunk in self._chunks:
            for channel, count in chunk.counts.items():
                by_channel[channel] = by_channel.get(channel, 0) + count
        counts = b"".join(struct.pack("<HQ", c, n) for c, n in by_channel.items())
        first = min((chunk.first_ns for chunk in self._chunks), default=0)
        last = max((chunk.last_ns for chunk in self._chunks), default=0)
        statistics = struct.pack(
            "<QHIIIIQQI", sum(by_channel.values()), len(schemas), len(channels), 0,
            self._metadata, len(self._chunks), first, last, len(counts),
        )  # fmt: skip
        try:
            self._write(
                ending(
                    self.size, schemas, channels, indexes, record(STATISTICS, statistics + counts)
                )
            )
            os.fsync(self._file.fileno())
        except OSError as error:
            self._take_back()
            problem = problem or error
        finally:
            self._file.close()
        if problem is not None:
            raise problem

    def _channel(self, topic: str, msgtype: str, definition: str) -> int:
        key = topic, msgtype
        if key not in self._channels:
            if msgtype not in self._schemas:
                number = len(self._schemas) + 1
                content = struct.pack("<H", number) + text(msgtype) + text("ros2msg")
                schema = record(SCHEMA, content + text(definition))
                self._schemas[msgtype] = number, schema
                self._new += schema
            number = len(self._channels) + 1
            content = struct.pack("<HH", number, self._schemas[msgtype][0]) + text(topic)
            content += text("cdr") + text_map({"offered_qos_profiles": ""})
            self._channels[key] = number, record(CHANNEL, content)
            self._names[number] = topic
            self._new += self._channels[key][1]
        return self._channels[key][0]

    def _write(self, data: bytes) -> int:
        view = memoryview(data)
        while view:
            count = self._file.write(view)
            if not count:
                raise OSError("nothing was written")
            view = view[count:]
        return len(data)

    def _take_back(self) -> None:
        """Cut off what was written in part."""
        os.ftruncate(self._file.fileno(), self.size)
        self._file.seek(self.size)
