"""Bags: what is written is read, and what cannot be read says why."""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from bags import START_NS, pixels, write_bag
from hypothesis import given, settings
from hypothesis import strategies as st

from pi05_ros.bags.bag import Bag, BagError, BagWriter
from pi05_ros.bags.cdr_messages import NS, decode, encode, string_message, time_message, to_ns


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_round_trip(tmp_path: Path, storage: str) -> None:
    path = write_bag(tmp_path / "bag", 0.2, storage=storage)
    with Bag(path) as bag:
        assert bag.topics["/base_camera/image_raw"].count == 6
        assert bag.topics["/joint_states"].msgtype == "sensor_msgs/msg/JointState"
        images = [message.decode() for message in bag.messages(["/base_camera/image_raw"])]
        times = [message.log_ns for message in bag.messages()]
    assert times == sorted(times)
    np.testing.assert_array_equal(images[3].data.reshape(24, 32, 3), pixels(3))
    assert to_ns(images[0].header.stamp) == START_NS


def test_single_file_is_a_bag(bag: Path) -> None:
    with Bag(next(bag.glob("*.mcap"))) as opened:
        assert "/joint_states" in opened.topics


def test_missing_path(tmp_path: Path) -> None:
    with pytest.raises(BagError, match="does not exist"):
        Bag(tmp_path / "nowhere")


def test_folder_without_metadata_names_the_file_inside(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", 0.1)
    (path / "metadata.yaml").unlink()
    with pytest.raises(BagError, match=r"no metadata.yaml.*bag.mcap"):
        Bag(path)


def test_other_file(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("no bag")
    os.mkfifo(tmp_path / "pipe.mcap")
    for path in (file, tmp_path / "pipe.mcap", Path("/dev/null")):
        with pytest.raises(BagError, match="accepted: a rosbag2 folder"):
            Bag(path)


def test_damaged_metadata_is_told_in_one_line(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", 0.1)
    for text in ("", "a: !!python/object/apply:os.system ['true']", "[" * 5000):
        (path / "metadata.yaml").write_text(text)
        with pytest.raises(BagError, match="cannot be read as a bag") as caught:
            Bag(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no bag at all, but long enough to be read" * 10])
@pytest.mark.parametrize("ending", [".mcap", ".db3"])
def test_wrong_content(tmp_path: Path, ending: str, content: bytes) -> None:
    file = tmp_path / f"bag{ending}"
    file.write_bytes(content)
    with pytest.raises(BagError, match=str(file)):
        Bag(file)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.99])
def test_truncated_file(bag: Path, tmp_path: Path, share: float) -> None:
    whole = next(bag.glob("*.mcap")).read_bytes()
    file = tmp_path / "cut.mcap"
    file.write_bytes(whole[: int(len(whole) * share)])
    with Bag(bag) as found:
        everything = list(found.messages())
    if share < 0.9:  # one chunk, and it is not whole
        with pytest.raises(BagError, match="truncated or damaged"):
            Bag(file)
        return
    with Bag(file) as found:
        assert not found.whole
        assert list(found.messages()) == everything


def test_damage_inside_is_an_error_too(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", 0.3)
    file = next(path.glob("*.mcap"))
    data = bytearray(file.read_bytes())
    data[200 : len(data) // 2] = b"\xff" * (len(data) // 2 - 200)
    file.write_bytes(data)
    with pytest.raises(BagError), Bag(path) as bag:
        list(bag.messages())


def test_empty_bag(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "empty") as bag:
        bag.add_topic("/joint_states", "sensor_msgs/msg/JointState")
    with pytest.raises(BagError, match="holds no messages"):
        Bag(tmp_path / "empty")


def test_writer_replaces_a_bag_and_nothing_else(tmp_path: Path) -> None:
    write_bag(tmp_path / "bag", 0.1)
    write_bag(tmp_path / "bag", 0.2)
    with Bag(tmp_path / "bag") as bag:
        assert bag.topics["/joint_states"].count == 20
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.tex").write_text("years")
    with pytest.raises(BagError, match="not a bag"):
        BagWriter(tmp_path / "work")
    assert (tmp_path / "work" / "thesis.tex").exists()


def test_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def write() -> None:
        with BagWriter(tmp_path / "bag") as bag:
            bag.write("/prompt", 1, string_message("x"))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write()
    assert not list(tmp_path.iterdir())


def test_failed_write_keeps_the_bag_that_was_there(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", 0.1)

    def write() -> None:
        with BagWriter(path) as bag:
            bag.write("/prompt", 1, string_message("x"))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write()
    with Bag(path) as kept:
        assert "/joint_states" in kept.topics
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    def write() -> None:
        with BagWriter(tmp_path / "bag") as bag:
            bag.write("/prompt", 1, string_message("x"))
            monkeypatch.setattr(bag._writer.storage, "write", full)
            bag.write("/prompt", 2, string_message("y"))

    with pytest.raises(BagError, match=r"cannot write .*/bag: .*No space left"):
        write()
    with pytest.raises(BagError, match="cannot write"):
        BagWriter(Path("/proc/nowhere/bag")).__enter__()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_any_damaged_byte_is_a_bag_error_or_harmless(tmp_path: Path, storage: str) -> None:
    path = write_bag(tmp_path / "bag", 0.1, storage=storage)
    file = next(item for item in path.iterdir() if item.name != "metadata.yaml")
    whole = file.read_bytes()
    generator = np.random.default_rng(4)
    refused = 0
    for _ in range(60):
        data = bytearray(whole)
        start = int(generator.integers(len(data)))
        data[start : start + 64] = generator.bytes(len(data[start : start + 64]))
        file.write_bytes(data)
        try:
            with Bag(path) as bag:
                list(bag.messages())
        except BagError:
            refused += 1
    assert refused


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    first, second = (write_bag(tmp_path / name / "bag", 0.2) for name in "ab")
    assert (first / "bag.mcap").read_bytes() == (second / "bag.mcap").read_bytes()


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_undecodable_message_is_a_bag_error(raw: bytes) -> None:
    from pi05_ros.bags.bag import BagMessage

    message = BagMessage("/joint_states", "sensor_msgs/msg/JointState", 0, raw)
    with contextlib.suppress(BagError):
        message.decode()


@given(st.integers(0, 2**31 * NS - 1))
def test_time_round_trip(ns: int) -> None:
    assert to_ns(time_message(ns)) == ns


def test_our_messages_have_the_recorded_layout() -> None:
    text = string_message("grasp")
    raw = encode(text)
    assert struct.unpack_from("<I", raw, 4)[0] == len("grasp") + 1
    assert decode(raw, "std_msgs/msg/String").data == "grasp"


def test_a_writer_in_another_process_keeps_its_part(tmp_path: Path) -> None:
    running, killed = tmp_path / f".bag.{os.getppid()}.part", tmp_path / ".bag.99999999.part"
    for part in (running, killed):
        (part / "bag").mkdir(parents=True)
    write_bag(tmp_path / "bag", 0.1)
    assert running.exists()
    assert not killed.exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [("- " * 100_000, "nested too deeply"), ("[" * 100_000, "nested too deeply"),
     ("a: &a [x]\nb: [*a, *a]", "aliases are not accepted")],
)  # fmt: skip
def test_metadata_that_would_end_the_process_is_refused(tmp_path, text, said):
    (tmp_path / "bag.mcap").write_bytes(b"")
    (tmp_path / "metadata.yaml").write_text(text)
    with pytest.raises(BagError, match=said):
        Bag(tmp_path)


def test_a_dataset_in_place_of_a_recording_is_told_as_such(tmp_path):
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "info.json").write_text("{}")
    with pytest.raises(BagError, match="is a LeRobot dataset; this takes recordings of rosbag2"):
        Bag(tmp_path)


def test_a_folder_of_recordings_names_some_of_them(tmp_path):
    for i in range(7):
        (tmp_path / f"r{i}").mkdir()
        (tmp_path / f"r{i}" / "metadata.yaml").touch()
    (tmp_path / "other").mkdir()
    with pytest.raises(BagError, match=r"give one of .*: r0, r1, r2, r3, r4, \.\.\. \(7 in all\)"):
        Bag(tmp_path)
