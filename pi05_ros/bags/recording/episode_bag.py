"""A bag that is being recorded: one rosbag2 folder, readable at every moment.

metadata.yaml is there from the start and says that the recording has not ended; it is replaced
when it has. A recording that could not be written in full says so there.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pi05_ros.bags.bag_files import LOST, WHOLE
from pi05_ros.bags.cdr_messages import typestore
from pi05_ros.bags.recording.mcap_writer import SafeMcapWriter
from pi05_ros.small_files import write_atomically


@dataclass(frozen=True)
class KeptMessage:
    """One received message: topic, type, when it was received (ns), CDR bytes."""

    topic: str
    msgtype: str
    log_ns: int
    raw: bytes


class EpisodeBag:
    """A bag that is being written.

    Args:
        path: a new folder.
        facts: custom data of the bag, known from the start.
        compression: "none" or "zstd".

    Attributes:
        lost: messages that could not be written, by topic.
        problem: the last error, empty if none.

    Raises:
        OSError: the folder or its files cannot be made.

    """

    def __init__(self, path: Path, facts: Mapping[str, str], compression: str = "none") -> None:
        self.path = path
        self.lost: Counter[str] = Counter()
        self.problem = ""
        self._facts = dict(facts)
        self._types: dict[str, str] = {}
        self._first_ns, self._last_ns = 0, 0
        path.mkdir(parents=True)
        self._file = path / f"{path.name}.mcap"
        self._writer = SafeMcapWriter(self._file, compression)
        self._writer.add_metadata("pi05_recording", self._facts)
        self._pending: Counter[str] = Counter()
        self.flush()
        self._write_metadata("false")

    @property
    def size(self) -> int:
        """Bytes on the disk."""
        return self._writer.size

    @property
    def messages(self) -> int:
        """Messages on the disk."""
        return sum(self._writer.counts.values())

    @property
    def pending(self) -> int:
        """Bytes that are not on the disk yet."""
        return self._writer.pending[0]

    def add(self, message: KeptMessage) -> None:
        """Append a message; it is on the disk after the next `flush`."""
        definition = definition_of(message.msgtype)
        if definition is None:
            self.lost[message.topic] += 1
            self.problem = f"the type {message.msgtype} is not known; {message.topic} is left out"
            return
        self._types[message.topic] = message.msgtype
        self._writer.add(message.topic, message.msgtype, definition, message.log_ns, message.raw)
        self._pending[message.topic] += 1
        self._first_ns = min(self._first_ns or message.log_ns, message.log_ns)
        self._last_ns = max(self._last_ns, message.log_ns)

    def note(self, facts: Mapping[str, str]) -> None:
        """Add facts that became known later."""
        self._facts.update(facts)

    @property
    def descriptor(self) -> int:
        """Of the file."""
        return self._writer.descriptor

    def flush(self) -> None:
        """Write what is pending as a chunk; what cannot be written is lost and counted."""
        pending, self._pending = self._pending, Counter()
        try:
            self._writer.flush()
        except OSError as error:
            self.problem = f"{self.path}: {error.strerror or error}"
            self.lost += pending

    def close(self, whole: bool) -> bool:
        """End the bag; returns whether all of it is there.

        Args:
            whole: whether all that was to be in it was given to it.

        """
        pending, self._pending = self._pending, Counter()
        self._writer.add_metadata("pi05_result", self._facts)
        before = sum(self._writer.counts.values())
        try:
            self._writer.finish()
        except OSError as error:
            self.problem = f"{self.path}: {error.strerror or error}"
            if sum(self._writer.counts.values()) == before:
                self.lost += pending
            whole = False
        whole = whole and not self.lost
        try:
            self._write_metadata("true" if whole else "false")
        except OSError as error:
            self.problem = f"{self.path}: {error.strerror or error}"
            whole = False
        return whole

    def _write_metadata(self, whole: str) -> None:
        facts = {**self._facts, WHOLE: whole, LOST: json.dumps(dict(self.lost))}
        counts = self._writer.counts
        topics = [
            {
                "topic_metadata": {
                    "name": topic, "type": msgtype, "serialization_format": "cdr",
                    "offered_qos_profiles": [], "type_description_hash": "",
                },
                "message_count": counts.get(topic, 0),
            }
            for topic, msgtype in sorted(self._types.items())
        ]  # fmt: skip
        span = {"nanoseconds": self._last_ns - self._first_ns}
        start = {"nanoseconds_since_epoch": self._first_ns}
        count = sum(counts.values())
        info: dict[str, Any] = {
            "version": 9,
            "storage_identifier": "mcap",
            "duration": span,
            "starting_time": start,
            "message_count": count,
            "topics_with_message_count": topics,
            "compression_format": "",
            "compression_mode": "",
            "relative_file_paths": [self._file.name],
            "files": [
                {
                    "path": self._file.name, "starting_time": dict(start), "duration": dict(span),
                    "message_count": count,
                }
            ],
            "custom_data": facts,
            "ros_distro": os.environ.get("ROS_DISTRO", "jazzy"),
        }  # fmt: skip
        content = yaml.safe_dump(
            {"rosbag2_bagfile_information": info}, sort_keys=False, allow_unicode=True
        )
        write_atomically(self.path / "metadata.yaml", content)


_definitions: dict[str, str | None] = {}


def definition_of(msgtype: str) -> str | None:
    """Definition text of a type with those of the messages in it; None if it is not known."""
    if msgtype not in _definitions:
        try:
            _definitions[msgtype] = typestore().generate_msgdef(msgtype)[0]
        except Exception:  # rosbags raises several kinds
            _definitions[msgtype] = None
    return _definitions[msgtype]
