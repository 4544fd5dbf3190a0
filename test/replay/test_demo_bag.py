"""The demo's bag: what it holds, and that it is made once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bags import write_bag

from pi05_ros.bags.bag import Bag, BagError
from pi05_ros.bags.cdr_messages import NS, to_ns
from pi05_ros.replay.demo_bag import PROMPT, START_NS, SceneOptions, make_demo_bag

SMALL = SceneOptions(seconds=1.0, width=64, height=48, renderer="ray")


def test_contents(tmp_path: Path) -> None:
    made = make_demo_bag(tmp_path / "bag", SMALL)
    assert made.renderer == "ray"
    with Bag(made.path) as bag:
        counts = {topic.name: topic.count for topic in bag.topics.values()}
        messages = {name: list(bag.messages([name])) for name in counts}
    assert counts == {
        "/base_camera/image_raw": 30,
        "/wrist_camera/image_raw": 30,
        "/joint_states": 100,
        "/clock": 100,
        "/prompt": 1,
    }
    assert messages["/prompt"][0].decode().data == PROMPT
    first, last = (messages["/base_camera/image_raw"][i].decode() for i in (0, -1))
    assert (first.width, first.height, first.encoding) == (64, 48, "rgb8")
    assert to_ns(first.header.stamp) == START_NS
    assert to_ns(last.header.stamp) == START_NS + round(29 * NS / 30)
    assert not np.array_equal(first.data, last.data)  # the arm moves
    for message in messages["/joint_states"]:
        assert message.log_ns == to_ns(message.decode().header.stamp)


def test_made_once_per_options(tmp_path: Path) -> None:
    path = tmp_path / "bag"
    assert not make_demo_bag(path, SMALL).cached
    assert make_demo_bag(path, SMALL).cached
    assert not make_demo_bag(path, replace(SMALL, seed=4)).cached
    assert not make_demo_bag(path, replace(SMALL, seed=4), fresh=True).cached
    next(path.glob("*.mcap")).write_bytes(b"torn")
    assert not make_demo_bag(path, replace(SMALL, seed=4)).cached


def test_a_recording_at_its_place_is_kept(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", 0.1)
    with pytest.raises(BagError, match="not the demo's own bag"):
        make_demo_bag(path, SMALL, fresh=True)
    with Bag(path) as bag:
        assert bag.topics["/joint_states"].count == 10
