"""Which topic feeds which input, and on which clock."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from bags import START_NS, delay, edit_bag, write_bag

from pi05_ros.bags.bag import Bag, BagError, BagWriter
from pi05_ros.bags.cdr_messages import NS, clock_message, string_message
from pi05_ros.bags.timeline import header_stamp_ns, read_timeline
from pi05_ros.bags.topics import find_sources, parse_map
from pi05_ros.replay.run import choose

NEEDED = ["base_camera", "joint_states"]


def test_names_are_found_in_a_namespace(tmp_path: Path) -> None:
    with Bag(write_bag(tmp_path / "bag", 0.1, prefix="/left/arm")) as bag:
        found = find_sources(bag, NEEDED, ["wrist_camera", "prompt"])
    assert found["base_camera"].topic == "/left/arm/base_camera/image_raw"
    assert found["joint_states"].topic == "/left/arm/joint_states"
    assert found["base_camera"].node_topic == "base_camera/image_raw"


def test_two_namespaces_need_a_choice(tmp_path: Path) -> None:
    first = write_bag(tmp_path / "a", 0.1, prefix="/left")
    second = write_bag(tmp_path / "b", 0.1, prefix="/right")
    with BagWriter(tmp_path / "both") as writer:
        for path in (first, second):
            with Bag(path) as bag:
                for message in bag.messages():
                    if message.topic != "/prompt":
                        writer.write_raw(
                            message.topic, message.msgtype, message.log_ns, message.raw
                        )
    with Bag(tmp_path / "both") as bag:
        with pytest.raises(BagError, match=r"several topics.*--map base_camera=TOPIC"):
            find_sources(bag, NEEDED)
        found = find_sources(bag, NEEDED, namespace="right")
        assert found["joint_states"].topic == "/right/joint_states"


def test_mapping_wins(tmp_path: Path) -> None:
    with Bag(write_bag(tmp_path / "bag", 0.1)) as bag:
        mapping = parse_map(["base_camera=/wrist_camera/image_raw"])
        assert find_sources(bag, NEEDED, (), mapping)["base_camera"].topic == (
            "/wrist_camera/image_raw"
        )


def test_missing_topic_lists_what_is_there(bag: Path) -> None:
    with Bag(bag) as opened:
        with pytest.raises(BagError, match=r"(?s)no topic for wrist_camera_2.*/joint_states"):
            find_sources(opened, ["wrist_camera_2"])
        with pytest.raises(BagError, match=r"(?s)no topic /cam .*/base_camera/image_raw"):
            find_sources(opened, NEEDED, (), {"base_camera": "/cam"})


def test_wrong_type_is_named(bag: Path) -> None:
    with (
        Bag(bag) as opened,
        pytest.raises(BagError, match=r"/joint_states .* is sensor_msgs/msg/JointState"),
    ):
        find_sources(opened, NEEDED, (), {"base_camera": "/joint_states"})


@pytest.mark.parametrize("entry", ["base_camera", "base_camera=", "camera=/x"])
def test_bad_map_entries(entry: str) -> None:
    with pytest.raises(BagError, match="--map"):
        parse_map([entry])


def test_a_camera_of_another_role_is_a_camera(tmp_path: Path) -> None:
    cameras = ("base_camera", "ceiling_camera")
    robot = SimpleNamespace(
        camera_roles=("base", "ceiling"), required_roles=("base",), name="four"
    )
    with Bag(write_bag(tmp_path / "raw", 0.1, cameras=cameras)) as bag:
        chosen = choose(bag, robot, {})
        assert chosen.roles == ("base", "ceiling")
        assert chosen.sources["ceiling_camera"].node_topic == "ceiling_camera/image_raw"
        mapping = parse_map(["ceiling_camera=/base_camera/image_raw"])
        assert choose(bag, robot, mapping).sources["ceiling_camera"].topic.startswith("/base")
    with (
        Bag(write_bag(tmp_path / "jpeg", 0.1, cameras=cameras, compressed=True)) as bag,
        pytest.raises(BagError, match=r"ceiling_camera takes sensor_msgs/msg/Image$"),
    ):
        choose(bag, robot, {})


def test_stamps_are_read_without_decoding(bag: Path) -> None:
    with Bag(bag) as opened:
        first = next(opened.messages(["/joint_states"]))
    assert header_stamp_ns(first.raw) == START_NS


def test_time_bases(bag: Path, tmp_path: Path) -> None:
    late = edit_bag(bag, tmp_path / "late", delay("/base_camera/image_raw", 40_000_000))
    with Bag(late) as opened:
        sources = find_sources(opened, ["base_camera"])
        by_log = next(read_timeline(opened, sources, "log"))
        by_header = next(read_timeline(opened, sources, "header"))
        with pytest.raises(BagError, match="no /clock"):
            list(read_timeline(opened, sources, "clock"))
        with pytest.raises(BagError, match="accepted: auto, clock, log, header"):
            list(read_timeline(opened, sources, "sundial"))
    assert by_log.clock_ns == START_NS + 40_000_000
    assert by_header.clock_ns == START_NS


def test_recorded_clock_is_followed(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as writer:
        for step in range(10):  # log time runs twice as fast as the simulation
            writer.write("/clock", 1000 * NS + step * 20_000_000, clock_message(step * 10_000_000))
        writer.write("/prompt", 1000 * NS + 65_000_000, string_message("x"))
    with Bag(tmp_path / "bag") as bag:
        (message,) = read_timeline(bag, find_sources(bag, ["prompt"]), "auto")
    assert message.clock_ns == 35_000_000


def test_first_stamp_counts_for_what_came_before_it(bag: Path) -> None:
    with Bag(bag) as opened:
        sources = find_sources(opened, NEEDED, ["prompt"])
        times = [message.clock_ns for message in read_timeline(opened, sources, "header")]
    assert min(times) == START_NS
