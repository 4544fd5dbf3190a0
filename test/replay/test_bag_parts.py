"""Bags as people have them: parts in any order, metadata that disagrees, formal oddities."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from bags import START_NS, write_bag
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

from pi05_ros.bags.bag import Bag, BagError, BagMessage, BagWriter
from pi05_ros.bags.cdr_messages import NS, typestore


def contents(path: Path) -> list[BagMessage]:
    with Bag(path) as bag:
        return list(bag.messages())


def edit_metadata(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    file = path / "metadata.yaml"
    content = yaml.safe_load(file.read_text())
    edit(content["rosbag2_bagfile_information"])
    file.write_text(yaml.safe_dump(content))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bag(tmp_path_factory.mktemp("whole") / "bag", 1.0)


def split(whole: Path, out: Path, shares: Callable[[BagMessage], int], order: list[int]) -> Path:
    """The bag in several files; `shares` gives the part of each message."""
    out.mkdir()
    writers = {}
    for message in contents(whole):
        part = shares(message)
        if part not in writers:
            writers[part] = BagWriter(out.parent / f"part{part}").__enter__()
        writers[part].write_raw(message.topic, message.msgtype, message.log_ns, message.raw)
    for part, writer in writers.items():
        writer.__exit__(None, None, None)
        file = out.parent / f"part{part}" / f"part{part}.mcap"
        shutil.copy(file, out / f"split_{part}.mcap")
    shutil.copy(whole / "metadata.yaml", out)

    def listed(info: dict[str, Any]) -> None:
        info["relative_file_paths"] = [f"split_{part}.mcap" for part in order]

    edit_metadata(out, listed)
    return out


SHARES: dict[str, Callable[[BagMessage], int]] = {
    "one after the other": lambda message: (message.log_ns - START_NS) * 4 // NS,
    "by topic": lambda message: len(message.topic) % 4,
    "overlapping": lambda message: ((message.log_ns - START_NS) * 10 // NS) % 4,
}


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [0, 2, 1, 3], [3, 1, 0, 2]])
@pytest.mark.parametrize("kind", SHARES)
def test_parts_in_any_order_give_the_whole(
    whole: Path, tmp_path: Path, kind: str, order: list[int]
) -> None:
    expected = contents(whole)
    used = sorted({SHARES[kind](message) for message in expected})
    parts = split(whole, tmp_path / "split", SHARES[kind], [p for p in order if p in used])
    found = contents(parts)
    assert [m.log_ns for m in found] == [m.log_ns for m in expected]
    assert sorted(found) == sorted(expected)
    with Bag(parts) as bag, Bag(whole) as one:
        assert bag.topics == one.topics
        assert bag.seconds == pytest.approx(one.seconds)
        assert list(bag.messages(["/prompt"])) == list(one.messages(["/prompt"]))


def set_counts_to_zero(info: dict[str, Any]) -> None:
    info["message_count"] = info["duration"]["nanoseconds"] = 0
    for topic in info["topics_with_message_count"]:
        topic["message_count"] = 0


def name_other_topics(info: dict[str, Any]) -> None:
    info["topics_with_message_count"] = info["topics_with_message_count"][:1]
    info["topics_with_message_count"][0]["topic_metadata"]["name"] = "/other"


def spoil_qos(info: dict[str, Any]) -> None:
    for topic in info["topics_with_message_count"]:
        topic["topic_metadata"]["offered_qos_profiles"] = [{"depth": "many"}]


def new_version(info: dict[str, Any]) -> None:
    info["version"] = 12
    for topic in info["topics_with_message_count"]:
        topic["topic_metadata"] = {"name": topic["topic_metadata"]["name"], "new": 1}


EDITS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "counts 0": (set_counts_to_zero, ""),
    "other topics": (name_other_topics, ""),
    "QoS": (spoil_qos, ""),
    "newer version": (new_version, "version 12, newer than 9"),
    "no storage id": (lambda info: info.update(storage_identifier=""), ""),
    "another storage id": (lambda info: info.update(storage_identifier="sqlite3"), ""),
    "no files": (lambda info: info.update(relative_file_paths=[]), "does not list the files"),
    "old paths": (lambda info: info.update(relative_file_paths=["bag/bag.mcap"]), ""),
    "a part is gone": (
        lambda info: info["relative_file_paths"].append("bag_1.mcap"),
        "lists bag_1.mcap, which is not there",
    ),
    "only that": (lambda info: [info.pop(key) for key in list(info) if "path" not in key], ""),
}


@pytest.mark.parametrize("name", EDITS)
def test_the_files_count_not_the_metadata(whole: Path, tmp_path: Path, name: str) -> None:
    edit, note = EDITS[name]
    path = tmp_path / "bag"
    shutil.copytree(whole, path)
    edit_metadata(path, edit)
    assert contents(path) == contents(whole)
    with Bag(path) as bag:
        assert (note in " ".join(bag.notes)) if note else not bag.notes


def header(data: bytes, profile: bytes, library: bytes) -> bytes:
    """An mcap with another header record."""
    size = struct.unpack("<Q", data[9:17])[0]
    body = struct.pack("<I", len(profile)) + profile + struct.pack("<I", len(library)) + library
    filler = size - len(body)
    assert filler >= 0
    return data[:17] + body + bytes(filler) + data[17 + size :]


@pytest.mark.parametrize("library", [b"", b"xy", b"some tool"])
def test_mcap_without_profile(whole: Path, tmp_path: Path, library: bytes) -> None:
    data = next(whole.glob("*.mcap")).read_bytes()
    file = tmp_path / "plain.mcap"
    file.write_bytes(header(data, b"", library))
    assert contents(file) == contents(whole)
    file.write_bytes(header(data, b"ros1", b""))
    with pytest.raises(BagError, match="Profile is not ros2") as caught:
        Bag(file)
    assert "damaged" not in str(caught.value)


@pytest.mark.parametrize("mode", [CompressionMode.FILE, CompressionMode.MESSAGE])
@pytest.mark.parametrize("plugin", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_compressed_bags(
    whole: Path, tmp_path: Path, mode: CompressionMode, plugin: StoragePlugin
) -> None:
    expected = contents(whole)
    writer = Writer(tmp_path / "packed", version=9, storage_plugin=plugin)
    writer.set_compression(mode, CompressionFormat.ZSTD)
    with writer:
        connections: dict[str, Any] = {}
        for m in expected:
            if m.topic not in connections:
                connections[m.topic] = writer.add_connection(
                    m.topic, m.msgtype, typestore=typestore()
                )
            writer.write(connections[m.topic], m.log_ns, m.raw)
    assert sorted(contents(tmp_path / "packed")) == sorted(expected)


def test_pointers_links_and_absent_files_are_named(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "bag"
    shutil.copytree(whole, path)
    file = path / "bag.mcap"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(BagError, match=r"bag.mcap is a Git LFS pointer.*git lfs pull"):
        Bag(path)
    with pytest.raises(BagError, match="Git LFS pointer"):
        Bag(file)
    file.unlink()
    file.symlink_to("nowhere.mcap")
    with pytest.raises(BagError, match=r"link to nowhere.mcap, which does not exist"):
        Bag(path)
    file.unlink()
    with pytest.raises(BagError, match=r"lists bag.mcap"):
        Bag(path)
    os.mkfifo(file)
    with pytest.raises(BagError, match="named pipe"):
        Bag(path)


def test_unlisted_files_are_left_out_and_named(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "bag"
    shutil.copytree(whole, path)
    shutil.copy(path / "bag.mcap", path / "copy.mcap")
    with Bag(path) as bag:
        assert bag.notes == ("copy.mcap is not listed in metadata.yaml and is left out",)
    assert contents(path) == contents(whole)


def test_many_parts_are_not_open_for_reading_at_once(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = split(whole, tmp_path / "split", SHARES["one after the other"], [3, 2, 1, 0])
    with Bag(parts) as bag:
        assert "out of time order" in bag.notes[0]
        opened = []
        for part in bag._parts.parts:
            real = part.reader.messages

            def messages(*a: Any, real: Any = real, name: str = part.path.name) -> Any:
                opened.append(name)
                return real(*a)

            monkeypatch.setattr(part.reader, "messages", messages)
        stream = bag.messages()
        next(stream)
        assert opened == ["split_0.mcap"]
        assert len(list(stream)) == len(contents(whole)) - 1


def test_damage_in_one_part_is_told_with_its_name(whole: Path, tmp_path: Path) -> None:
    parts = split(whole, tmp_path / "split", SHARES["one after the other"], [0, 1, 2, 3])
    file = parts / "split_2.mcap"
    data = bytearray(file.read_bytes())
    start = data.index(b"\x28\xb5\x2f\xfd") + 40  # inside the first zstd frame
    data[start : start + 500] = np.random.default_rng(0).bytes(500)
    file.write_bytes(data)
    read: list[int] = []
    with Bag(parts) as bag, pytest.raises(BagError, match=r"split_2.mcap.*mcap recover"):
        read.extend(message.log_ns for message in bag.messages())
    assert len(read) >= len(contents(whole)) // 2
    assert read == sorted(read)
