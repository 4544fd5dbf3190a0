"""The storage files of a bag, opened one by one and read as one stream in log time order.

metadata.yaml names the parts and their compression. Everything else is taken from the files
themselves: people edit metadata.yaml, tools write it with counts of 0 or an empty storage id, and
newer versions of it say nothing that is needed here. Parts may be listed in any order and may
overlap in time.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, NamedTuple, cast

import yaml
from rosbags.interfaces import Connection, ConnectionExtRosbag2
from rosbags.rosbag2.storage_mcap import McapReader
from rosbags.rosbag2.storage_sqlite3 import Sqlite3Reader

from pi05_ros.bags.bag_files import LOST, MAX_METADATA, METADATA, WHOLE, require_bag_files
from pi05_ros.bags.mcap_path import McapPath
from pi05_ros.small_files import FileError, read_text, require_regular
from pi05_ros.strict_yaml import check_nesting

KNOWN_VERSION = 9
ENDINGS = (".mcap", ".db3")
# Whole files that are refused on formal grounds; nothing repairs them.
_FORMAL = ("Profile is not", "File magic is", "nsupported", "not supported", "missing tables")
_LFS = b"version https://git-lfs.github.com/spec/"


class PartError(FileError):
    """A storage file cannot be read."""


class RawMessage(NamedTuple):
    """Topic, type, log time (ns) and CDR bytes of a message."""

    topic: str
    msgtype: str
    log_ns: int
    raw: bytes


@dataclass(frozen=True)
class Part:
    """One open storage file.

    Attributes:
        path: of the file as the user has it.
        reader: of rosbags.
        start_ns, end_ns: log times of the first message and of the end.
        counts: messages by (topic, type), CDR alone.
        ordered: whether the reader yields in log time order.
        unpack: turns stored bytes into those of the message.

    """

    path: Path
    reader: McapReader | Sqlite3Reader
    start_ns: int
    end_ns: int
    counts: Mapping[tuple[str, str], int]
    ordered: bool
    unpack: Callable[[bytes], bytes]

    def messages(self, topics: set[str] | None) -> Iterator[RawMessage]:
        """Messages of the topics (None: all) in log time order.

        Raises:
            PartError: the file is damaged; messages before the damage have been yielded.

        """
        wanted = [
            connection
            for connection in self.reader.connections
            if _is_cdr(connection) and (topics is None or connection.topic in topics)
        ]
        if not wanted:
            return
        found = self._read(wanted)
        if not self.ordered:
            found = iter(sorted(found, key=lambda message: message.log_ns))
        yield from found

    def _read(self, wanted: list[Connection]) -> Iterator[RawMessage]:
        try:
            for connection, log_ns, raw in self.reader.messages(wanted):
                data = self.unpack(bytes(raw))
                yield RawMessage(connection.topic, connection.msgtype, log_ns, data)
        except Exception as error:  # the storage libraries raise many kinds
            raise PartError(damage(self.path, error)) from error


class BagParts:
    """All parts of a bag.

    Attributes:
        parts: in the order of their first messages.
        notes: sentences about what in metadata.yaml disagrees with the files.
        custom: custom data of the bag.
        whole: no file was cut, and the recorder says that nothing was lost.

    Raises:
        FileError: not a bag, or one of its files cannot be read.

    """

    def __init__(self, path: Path) -> None:
        self.notes: list[str] = []
        self.custom: dict[str, str] = {}
        self.whole = True
        self._stack = contextlib.ExitStack()
        try:
            self.parts = self._open(path)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the files."""
        self._stack.close()

    def messages(self, topics: set[str] | None) -> Iterator[RawMessage]:
        """Messages of all parts in log time order; equal times in the order of the parts.

        A part is opened for reading when its first message is due, so that hundreds of splits
        are never in memory together.
        """
        waiting = list(reversed(self.parts))
        heap: list[tuple[int, int, RawMessage, Iterator[RawMessage]]] = []
        number = itertools.count()
        while waiting or heap:
            while waiting and (not heap or waiting[-1].start_ns <= heap[0][0]):
                stream = waiting.pop().messages(topics)
                first = next(stream, None)
                if first is not None:
                    heapq.heappush(heap, (first.log_ns, next(number), first, stream))
            if not heap:
                continue
            _, place, message, stream = heap[0]
            yield message
            following = next(stream, None)
            if following is None:
                heapq.heappop(heap)
            else:
                heapq.heapreplace(heap, (following.log_ns, place, following, stream))

    def _open(self, path: Path) -> list[Part]:
        require_bag_files(path)
        if path.is_file():
            parts = [self._open_part(path, path, message_zstd=False)]
        else:
            info = self._metadata(path)
            mode = str(info.get("compression_mode") or "").lower()
            form = str(info.get("compression_format") or "zstd")
            if mode not in ("", "none") and form != "zstd":
                raise FileError(f"{path} is compressed with {form}; accepted: zstd")
            parts = [
                self._open_part(self._plain(file), file, message_zstd=mode == "message")
                for file in self._files(path, info)
            ]
        if len(parts) > 1 and parts != sorted(parts, key=lambda part: part.start_ns):
            self.notes.append("the parts were listed out of time order; they are merged")
            parts.sort(key=lambda part: part.start_ns)
        return parts

    def _metadata(self, path: Path) -> dict[str, Any]:
        """Content of metadata.yaml."""
        file = path / METADATA
        text = read_text(file, MAX_METADATA)
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        try:  # `require_bag_files` has looked at it
            check_nesting(text, loader)
            content = yaml.load(text, loader)  # noqa: S506
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            said = " ".join(str(error).split())[:200]
            raise FileError(f"{file} is not valid YAML: {said}") from None
        info = content.get("rosbag2_bagfile_information") if isinstance(content, dict) else None
        if not isinstance(info, dict):
            raise FileError(f"{file} has no rosbag2_bagfile_information")
        version = info.get("version")
        if isinstance(version, int) and version > KNOWN_VERSION:
            self.notes.append(
                f"{METADATA} has version {version}, newer than {KNOWN_VERSION}; the messages are "
                "read from the files"
            )
        custom = info.get("custom_data")
        if isinstance(custom, dict):
            self.custom = {str(key): str(value) for key, value in custom.items()}
            if self.custom.get(WHOLE) == "false":
                self.whole = False
                self.notes.append(f"not whole; lost messages: {self.custom.get(LOST, '')[:500]}")
        return info

    def _files(self, path: Path, info: Mapping[str, Any]) -> list[Path]:
        """Storage files that metadata.yaml lists and that exist; else all in the folder."""
        there = sorted(item for item in path.iterdir() if _ending(item))
        names = info.get("relative_file_paths")
        listed = [PurePath(str(name)).name for name in names] if isinstance(names, list) else []
        listed = list(dict.fromkeys(name for name in listed if name))
        files = [path / name for name in listed if (path / name).is_file()]
        files = [file for file in files if _ending(file)]
        absent = [name for name in listed if path / name not in files]
        if not files:
            if not there:
                what = ", ".join(absent) or "no files"
                raise FileError(f"{path} lacks its storage: {METADATA} lists {what}")
            files = there
            self.notes.append(f"{METADATA} does not list the files in the folder; all are read")
        elif absent:
            self.notes.append(f"{METADATA} lists {', '.join(absent)}, which is not there")
        left = [file.name for file in there if file not in files]
        if left:
            self.notes.append(f"{', '.join(left)} is not listed in {METADATA} and is left out")
        return files

    def _plain(self, file: Path) -> Path:
        """The file, unpacked into a temporary one if it is compressed as a whole."""
        if file.suffix != ".zstd":
            return file
        folder = self._stack.enter_context(tempfile.TemporaryDirectory())
        plain = Path(folder, file.stem)
        try:
            with (
                file.open("rb") as packed,
                _zstd().open(packed, "rb") as stream,
                plain.open("wb") as out,
            ):
                shutil.copyfileobj(stream, out)
        except Exception as error:
            raise PartError(damage(file, error)) from error
        return plain

    def _open_part(self, plain: Path, named: Path, *, message_zstd: bool) -> Part:
        require_regular(plain)
        with plain.open("rb") as file:
            head = file.read(len(_LFS))
        if head == _LFS:
            raise PartError(
                f"{named} is a Git LFS pointer, not the file itself; fetch it with: git lfs pull"
            )
        mcap = plain.suffix == ".mcap"
        try:
            shown = McapPath(plain) if mcap else None
            reader = Sqlite3Reader(plain) if shown is None else McapReader(cast(Any, shown))
            reader.open()
        except Exception as error:  # the storage libraries raise many kinds
            raise PartError(damage(named, error)) from error
        self._stack.callback(_close, reader)
        if reader.metadata.custom and not self.custom:
            self.custom = dict(reader.metadata.custom)
        mode = str(reader.metadata.compression_mode or "").lower()
        packed = message_zstd or mode == "message"
        part = Part(
            named,
            reader,
            reader.metadata.start_time,
            reader.metadata.end_time,
            _counts(reader),
            ordered=not mcap or bool(cast(McapReader, reader).chunks),
            unpack=_zstd().decompress if packed else _as_it_is,
        )
        if shown is not None and shown.rest is not None:
            self.whole = False
            self.notes.append(
                f"{named.name} was cut: {shown.rest.chunks} whole chunks are read, the last "
                f"{shown.rest.lost} bytes are not"
            )
        strange = sorted({c.topic for c in reader.connections if not _is_cdr(c)})
        if strange:
            self.notes.append(f"{named.name} has topics that are not CDR: {', '.join(strange)}")
        if part.counts and not sum(part.counts.values()):
            part = _recounted(part)
        return part


def damage(path: Path, error: BaseException) -> str:
    """Sentence about a file that cannot be read on, with a hint where it is cut or damaged."""
    text = " ".join(str(error).split()) or type(error).__name__
    said = f"{path} cannot be read as a bag: {text}"
    if isinstance(error, OSError) and error.errno is not None:
        return said
    if isinstance(error, KeyError) or any(word in text for word in _FORMAL):
        return said
    tool = "`sqlite3 FILE .recover`" if ".db3" in path.name else "`mcap recover`"
    return f"{said} (truncated or damaged? {tool} may repair it)"


def _ending(path: Path) -> bool:
    name = path.name.removesuffix(".zstd")
    return name.endswith(ENDINGS)


def _is_cdr(connection: Connection) -> bool:
    return cast(ConnectionExtRosbag2, connection.ext).serialization_format == "cdr"


def _counts(reader: McapReader | Sqlite3Reader) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    for connection in filter(_is_cdr, reader.connections):
        key = connection.topic, connection.msgtype
        found[key] = found.get(key, 0) + connection.msgcount
    return found


def _recounted(part: Part) -> Part:
    """The part with counts of the messages themselves, if its statistics say there are none."""
    counts = dict(part.counts)
    times: list[int] = []
    for message in part.messages(None):
        counts[message.topic, message.msgtype] += 1
        times[1:] = [message.log_ns]
    start, end = (times[0], times[-1] + 1) if times else (part.start_ns, part.end_ns)
    return Part(part.path, part.reader, start, end, counts, part.ordered, part.unpack)


def _close(reader: McapReader | Sqlite3Reader) -> None:
    with contextlib.suppress(Exception):
        reader.close()


def _as_it_is(data: bytes) -> bytes:
    return data


def _zstd() -> Any:
    """The zstd module that rosbags uses."""
    from rosbags.rosbag2 import storage_mcap

    return storage_mcap.zstd


def topic_counts(parts: Iterable[Part]) -> dict[str, tuple[str, int]]:
    """Type and number of messages per topic; of several types the one with most messages."""
    sums: dict[tuple[str, str], int] = {}
    for part in parts:
        for key, count in part.counts.items():
            sums[key] = sums.get(key, 0) + count
    found: dict[str, tuple[str, int]] = {}
    for (topic, msgtype), count in sums.items():
        if topic not in found or count > found[topic][1]:
            found[topic] = msgtype, count
    return found
