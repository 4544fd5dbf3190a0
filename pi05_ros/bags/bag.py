"""Reading and writing rosbag2 bags (mcap or sqlite3, compressed or not) with clear errors.

A bag is a rosbag2 folder with metadata.yaml, or a single .mcap or .db3 file.
"""

from __future__ import annotations

import contextlib
import glob
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from rosbags.interfaces import Connection
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

from pi05_ros.bags.bag_parts import BagParts, topic_counts
from pi05_ros.bags.cdr_messages import decode, encode, typestore
from pi05_ros.errors import Pi05Error
from pi05_ros.small_files import FileError

_LOG = logging.getLogger(__name__)


class BagError(Pi05Error, ValueError):
    """A bag cannot be used; the text says which and why."""


class BagMessage(NamedTuple):
    """One recorded message: topic, type, log time in nanoseconds, CDR bytes."""

    topic: str
    msgtype: str
    log_ns: int
    raw: bytes

    def decode(self) -> Any:
        """Message object.

        Raises:
            BagError: the bytes are not a message of that type.

        """
        try:
            return decode(self.raw, self.msgtype)
        except Exception as error:  # rosbags raises several kinds, assertions among them
            raise BagError(
                f"a {self.msgtype} on {self.topic} at {self.log_ns} ns cannot be decoded: {error}"
            ) from error


@dataclass(frozen=True)
class TopicInfo:
    """What a bag says about one topic."""

    name: str
    msgtype: str
    count: int


class Bag:
    """A bag opened for reading.

    Attributes:
        topics: by name, counted in the files.
        notes: what metadata.yaml says wrongly and what is missing, for people.
        whole: False if a file was cut or the recorder says that messages were lost.

    Raises:
        BagError: not a bag, damaged, or without messages.

    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._parts = self._open()
        self.notes = tuple(self._parts.notes)
        self.whole = self._parts.whole
        if not self.whole:
            _LOG.warning("%s is not whole: %s", self.path, "; ".join(self.notes))
        self.topics = {
            topic: TopicInfo(topic, msgtype, count)
            for topic, (msgtype, count) in topic_counts(self._parts.parts).items()
        }
        if not any(topic.count for topic in self.topics.values()):
            self.close()
            raise BagError(f"{self.path} holds no messages")

    def _open(self) -> BagParts:
        path = self.path
        if not path.exists():
            raise BagError(f"{path} does not exist")
        if (path / "meta" / "info.json").is_file():
            raise BagError(f"{path} is a LeRobot dataset; this takes recordings of rosbag2")
        if path.is_dir() and not (path / "metadata.yaml").is_file():
            inside = sorted(p.name for p in path.iterdir() if _recording(p))
            more = f", ... ({len(inside)} in all)" if len(inside) > 5 else ""
            hint = f"; give one of what it holds: {', '.join(inside[:5])}{more}" if inside else ""
            raise BagError(f"{path} is not a rosbag2 folder: no metadata.yaml in it{hint}")
        file = path.is_file() and path.suffix in (".mcap", ".db3")
        if not path.is_dir() and not file:
            raise BagError(
                f"{path} is not a bag; accepted: a rosbag2 folder, a .mcap or a .db3 file"
            )
        try:
            return BagParts(path)
        except FileError as error:
            said = str(error)
            start = (
                "" if "cannot be read as a bag" in said else f"{path} cannot be read as a bag: "
            )
            raise BagError(start + said) from error

    def messages(self, topics: Iterable[str] | None = None) -> Iterator[BagMessage]:
        """Messages of the named topics (None: all) in log time order.

        Raises:
            BagError: the file is damaged; messages before the damage have been yielded.

        """
        try:
            for message in self._parts.messages(None if topics is None else set(topics)):
                info = self.topics[message.topic]
                if message.msgtype == info.msgtype:
                    yield BagMessage(*message)
        except FileError as error:
            raise BagError(str(error)) from error

    @property
    def seconds(self) -> float:
        """Time between the first and the last message, all topics, by log time."""
        parts = [part for part in self._parts.parts if any(part.counts.values())]
        span = max(part.end_ns for part in parts) - min(part.start_ns for part in parts)
        return span / 1e9

    @property
    def custom(self) -> dict[str, str]:
        """Custom data of the metadata, such as BagWriter's `custom`."""
        return dict(self._parts.custom)

    def describe_topics(self) -> str:
        """One line per topic: name, type, count."""
        width = max(len(name) for name in self.topics)
        return "\n".join(
            f"  {topic.name:<{width}}  {topic.msgtype} ({topic.count} messages)"
            for topic in sorted(self.topics.values(), key=lambda topic: topic.name)
        )

    def close(self) -> None:
        """Close the files."""
        self._parts.close()

    def __enter__(self) -> Bag:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class BagWriter:
    """Writes a rosbag2 folder (mcap with zstd chunks, or sqlite3) that `ros2 bag` reads.

    It is written beside its place and put there whole at the end of the `with` block, so a bag
    that is there already (also a torn one) stays until then; a folder with anything else in it is
    refused. An exception inside the block leaves everything as it was.

    Raises:
        BagError: the path is taken by something that is not a bag, or cannot be written.

    """

    def __init__(
        self, path: str | Path, storage: str = "mcap", custom: Mapping[str, str] | None = None
    ) -> None:
        self.path = Path(path)
        require_place(self.path)
        self._part = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        _remove_leftovers(self.path)
        plugin = {"mcap": StoragePlugin.MCAP, "sqlite3": StoragePlugin.SQLITE3}[storage]
        # The files inside are named after their folder.
        self._writer = Writer(self._part / self.path.name, version=9, storage_plugin=plugin)
        if storage == "mcap":
            self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        for key, value in (custom or {}).items():
            self._writer.set_custom_data(key, value)
        self._connections: dict[str, Connection] = {}

    def __enter__(self) -> BagWriter:
        try:
            with self._writing():
                self._writer.open()
        except BagError:
            shutil.rmtree(self._part, ignore_errors=True)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is not None:
                with contextlib.suppress(Exception):
                    self._writer.close()
                return
            with self._writing():
                self._writer.close()
                if self.path.exists():
                    self.path.rename(self._part / "old")
                (self._part / self.path.name).rename(self.path)
        finally:
            shutil.rmtree(self._part, ignore_errors=True)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # OSError, and what the storage libraries make of it
            raise BagError(f"cannot write {self.path}: {error}") from error

    def note(self, key: str, value: str) -> None:
        """Set custom data that was not known at the start."""
        self._writer.set_custom_data(key, value)

    def add_topic(self, topic: str, msgtype: str) -> None:
        """Declare a topic, so that it is listed even if no message follows."""
        if topic not in self._connections:
            with self._writing():
                self._connections[topic] = self._writer.add_connection(
                    topic, msgtype, typestore=typestore()
                )

    def write(self, topic: str, log_ns: int, message: Any) -> None:
        """Append a message object."""
        self.write_raw(topic, message.__msgtype__, log_ns, encode(message))

    def write_raw(self, topic: str, msgtype: str, log_ns: int, raw: bytes) -> None:
        """Append CDR bytes."""
        self.add_topic(topic, msgtype)
        with self._writing():
            self._writer.write(self._connections[topic], log_ns, raw)


def _recording(path: Path) -> bool:
    """Whether this is something that `pi05 replay` can be given."""
    if path.is_dir():
        return (path / "metadata.yaml").is_file() or (path / "meta" / "info.json").is_file()
    return path.suffix in (".mcap", ".db3")


def _remove_leftovers(path: Path) -> None:
    """Remove what writers that were killed left beside a bag; those that run keep theirs."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        number = part.name.removesuffix(".part").rpartition(".")[2]
        if number.isdecimal() and (int(number) == os.getpid() or not _runs(int(number))):
            shutil.rmtree(part, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def require_place(path: Path) -> None:
    """Raise BagError unless a bag may be written there: nothing, or a bag and nothing else."""
    endings = (".mcap", ".db3", ".zstd", ".db3-journal", ".db3-wal", ".db3-shm")
    if path.exists() and not (
        path.is_dir()
        and all(
            item.is_file() and (item.name == "metadata.yaml" or item.name.endswith(endings))
            for item in path.iterdir()
        )
    ):
        raise BagError(f"{path} exists and is not a bag; give another place")
