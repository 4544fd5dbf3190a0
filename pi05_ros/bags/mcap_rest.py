"""What can be read of an mcap file that was cut: everything up to its last whole chunk.

A recorder that was killed leaves no summary and perhaps half a chunk. The file is shown to the
storage library with an ending that says what is there; nothing is written.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pi05_ros.bags.mcap_records import (
    CHANNEL,
    CHUNK,
    DATA_END,
    FOOTER_SIZE,
    LEAD,
    MAGIC,
    MESSAGE,
    MESSAGE_INDEX,
    SCHEMA,
    ChunkFacts,
    Record,
    ending,
    top_records,
)

MAX_CHUNK = 2**28
"""A chunk that says it is larger is damaged."""


@dataclass(frozen=True)
class Rest:
    """The whole part of a cut file.

    Attributes:
        size: bytes of it.
        lost: bytes after it.
        tail: the ending that is put behind it.
        chunks: whole chunks.

    """

    size: int
    lost: int
    tail: bytes
    chunks: int


def is_cut(path: Path) -> bool:
    """Whether a file begins as an mcap and does not end as one."""
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            return False
        size = file.seek(0, os.SEEK_END)
        if size < FOOTER_SIZE:
            return True
        file.seek(size - FOOTER_SIZE)
        end = file.read()
    return not (end.startswith(b"\x02\x14" + bytes(7)) and end.endswith(MAGIC))


def find_rest(path: Path) -> Rest | None:
    """The whole part of a cut file; None if there is no whole chunk in it."""
    size = path.stat().st_size
    schemas: dict[int, bytes] = {}
    channels: dict[int, bytes] = {}
    chunks: list[ChunkFacts] = []
    end = len(MAGIC)
    with path.open("rb") as file:
        for found in top_records(file, size):
            if found.opcode in (SCHEMA, CHANNEL):
                _keep(file, found, schemas, channels)
            elif found.opcode == CHUNK:
                chunk = _chunk(file, found)
                if chunk is None:
                    break
                chunks.append(chunk)
            elif found.opcode == MESSAGE_INDEX and chunks:
                _count(file, found, chunks[-1])
            elif found.opcode == DATA_END:
                break  # the summary was cut; what is in it is in the data as well
            end = found.end
        while chunks and not _complete(file, chunks[-1], schemas, channels, check=True):
            end = chunks.pop().start
        whole = []
        for chunk in chunks[:-1]:
            if (set(chunk.counts) <= set(channels) and chunk.counts) or _complete(
                file, chunk, schemas, channels, check=False
            ):
                whole.append(chunk)
            else:
                end = chunk.start
                break
        else:
            whole += chunks[-1:]
    if not any(chunk.counts for chunk in whole):
        return None
    indexes = [chunk.index_record(chunk.start + chunk.length) for chunk in whole]
    tail = ending(end, list(schemas.values()), list(channels.values()), indexes)
    return Rest(end, size - end, tail, len(whole))


def _keep(
    file: BinaryIO, found: Record, schemas: dict[int, bytes], channels: dict[int, bytes]
) -> None:
    file.seek(found.start)
    data = file.read(LEAD + found.size)
    kept = schemas if found.opcode == SCHEMA else channels
    if found.size >= 2:
        kept.setdefault(struct.unpack_from("<H", data, LEAD)[0], data)


def _chunk(file: BinaryIO, found: Record) -> ChunkFacts | None:
    """A chunk whose lengths fit each other."""
    file.seek(found.content)
    head = file.read(min(found.size, 96))
    if len(head) < 40:
        return None
    first_ns, last_ns, size, _, name = struct.unpack_from("<QQQII", head)
    if name > 32 or size > MAX_CHUNK or len(head) < 40 + name:
        return None
    packed = struct.unpack_from("<Q", head, 32 + name)[0]
    if 40 + name + packed != found.size:
        return None
    compression = head[32 : 32 + name].decode("latin-1")
    return ChunkFacts(found.start, LEAD + found.size, first_ns, last_ns, compression, packed, size)


def _count(file: BinaryIO, found: Record, chunk: ChunkFacts) -> None:
    file.seek(found.content)
    head = file.read(6)
    if len(head) == 6:
        channel, size = struct.unpack("<HI", head)
        chunk.counts[channel] = size // 16


def _complete(
    file: BinaryIO,
    chunk: ChunkFacts,
    schemas: dict[int, bytes],
    channels: dict[int, bytes],
    *,
    check: bool,
) -> bool:
    """Count and check a chunk by its content; False if that cannot be read."""
    file.seek(chunk.start + LEAD + 24)
    crc = struct.unpack("<I", file.read(4))[0]
    file.seek(chunk.start + LEAD + 40 + len(chunk.compression))
    try:
        data = _unpack(file.read(chunk.packed), chunk.compression)
    except Exception:  # the libraries raise many kinds
        return False
    if len(data) != chunk.size or (check and crc and zlib.crc32(data) != crc):
        return False
    counts: dict[int, int] = {}
    place = 0
    while place < len(data):
        if place + LEAD > len(data):
            return False
        opcode, size = struct.unpack_from("<BQ", data, place)
        end = place + LEAD + size
        if end > len(data) or size < 2:
            return False
        channel = struct.unpack_from("<H", data, place + LEAD)[0]
        if opcode == MESSAGE:
            counts[channel] = counts.get(channel, 0) + 1
        elif opcode in (SCHEMA, CHANNEL):
            kept = schemas if opcode == SCHEMA else channels
            kept.setdefault(channel, data[place:end])
        place = end
    chunk.counts = counts
    return set(counts) <= set(channels)


def _unpack(data: bytes, compression: str) -> bytes:
    from rosbags.rosbag2 import storage_mcap

    if compression == "zstd":
        return bytes(storage_mcap.zstd.decompress(data))
    if compression == "lz4":
        return bytes(storage_mcap.lz4_decompress(data))
    if compression:
        raise ValueError(compression)
    return data


class RestFile(io.RawIOBase):
    """The whole part of a file with an ending behind it."""

    def __init__(self, file: BinaryIO, rest: Rest) -> None:
        self._file: Any = file
        self._size, self._tail = rest.size, rest.tail
        self._place = 0

    def read(self, size: int | None = -1) -> bytes:
        """As of any file."""
        total = self._size + len(self._tail)
        end = total if size is None or size < 0 else min(total, self._place + size)
        parts = []
        if self._place < self._size:
            self._file.seek(self._place)
            parts.append(self._file.read(min(end, self._size) - self._place))
        if end > self._size:
            parts.append(self._tail[max(0, self._place - self._size) : end - self._size])
        self._place = max(self._place, end)
        return b"".join(parts)

    def seek(self, offset: int, whence: int = 0) -> int:
        """As of any file."""
        base = (0, self._place, self._size + len(self._tail))[whence]
        self._place = max(0, base + offset)
        return self._place

    def tell(self) -> int:
        """As of any file."""
        return self._place

    def close(self) -> None:
        """Close the file below."""
        self._file.close()
        super().close()
