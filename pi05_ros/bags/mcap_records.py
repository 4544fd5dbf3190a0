"""Records of an mcap file as bytes, and reading them one after the other.

https://mcap.dev/spec has the layout: an opcode, a length in 8 bytes, the content.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

MAGIC = b"\x89MCAP0\r\n"
HEADER, FOOTER, SCHEMA, CHANNEL, MESSAGE, CHUNK = 0x01, 0x02, 0x03, 0x04, 0x05, 0x06
MESSAGE_INDEX, CHUNK_INDEX, STATISTICS, METADATA = 0x07, 0x08, 0x0B, 0x0C
METADATA_INDEX, DATA_END = 0x0D, 0x0F
LEAD = 9
"""Bytes of opcode and length."""
INDEX_ENTRY = 16
FOOTER_SIZE = LEAD + 20 + len(MAGIC)


class Record(NamedTuple):
    """Opcode, where the record starts, where its content starts, length of the content."""

    opcode: int
    start: int
    content: int
    size: int

    @property
    def end(self) -> int:
        """Where the next one starts."""
        return self.content + self.size


@dataclass
class ChunkFacts:
    """What the index says about a chunk; `counts` has the messages of each channel."""

    start: int
    length: int
    first_ns: int
    last_ns: int
    compression: str
    packed: int
    size: int
    counts: dict[int, int] = field(default_factory=dict)

    def index_record(self, index_start: int) -> bytes:
        """The chunk index record; message indexes lie in the order of `counts`."""
        offsets, place = [], index_start
        for channel, count in self.counts.items():
            offsets.append(struct.pack("<HQ", channel, place))
            place += LEAD + 6 + INDEX_ENTRY * count
        places = b"".join(offsets)
        return record(
            CHUNK_INDEX,
            struct.pack(
                "<QQQQI", self.first_ns, self.last_ns, self.start, self.length, len(places)
            )
            + places
            + struct.pack("<Q", place - index_start)
            + text(self.compression)
            + struct.pack("<QQ", self.packed, self.size),
        )


def record(opcode: int, content: bytes) -> bytes:
    """One record."""
    return struct.pack("<BQ", opcode, len(content)) + content


def text(value: str) -> bytes:
    """A string with its length."""
    data = value.encode()
    return struct.pack("<I", len(data)) + data


def text_map(values: Mapping[str, str]) -> bytes:
    """A map of strings with its length."""
    data = b"".join(text(key) + text(value) for key, value in values.items())
    return struct.pack("<I", len(data)) + data


def ending(
    start: int,
    schemas: list[bytes],
    channels: list[bytes],
    indexes: list[bytes],
    more: bytes = b"",
) -> bytes:
    """Everything after the data of a file.

    Args:
        start: where it will stand.
        schemas, channels, indexes: their records.
        more: further records of the summary.

    """
    data_end = record(DATA_END, struct.pack("<I", 0))
    summary = b"".join([*schemas, *channels, *indexes]) + more
    footer = record(FOOTER, struct.pack("<QQI", start + len(data_end), 0, 0))
    return data_end + summary + footer + MAGIC


def top_records(file: BinaryIO, size: int) -> Iterator[Record]:
    """Records after the magic, as far as they are there whole."""
    place = len(MAGIC)
    while place + LEAD <= size:
        file.seek(place)
        opcode, length = struct.unpack("<BQ", file.read(LEAD))
        found = Record(opcode, place, place + LEAD, length)
        if found.end > size:
            return
        yield found
        place = found.end
