"""What `pi05 view` shows: presenter, the tool's path, the server, and a browser that loads it."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from view_page import chromium, open_page

from pi05_ros import resources
from pi05_ros.bags.bag import Bag, BagWriter
from pi05_ros.bags.cdr_messages import (
    ACTION_CHUNK,
    EXECUTOR_STATUS,
    NS,
    image_message,
    joint_state_message,
    time_message,
    typestore,
)
from pi05_ros.bags.chunk_record import chunk_message, record_from_message
from pi05_ros.cli.main import main
from pi05_ros.policy.interface import ActionMeaning, ActionUnit
from pi05_ros.policy.robots.profile_yaml import load_profile
from pi05_ros.sim.arm.kinematics import forward
from pi05_ros.view.foxglove_sink import DATA_TOPICS, FoxgloveSink, ViewError
from pi05_ros.view.model_images import ModelImages
from pi05_ros.view.presenter import Presenter
from pi05_ros.view.tool_path import Tool, ToolPose, chunk_positions, tool_path

ROBOT = load_profile("sim_arm")
TOOL = Tool(ROBOT.state_names[:6], "base", "made up", lambda joints: ToolPose(*forward(joints)))
HORIZON = 8


def chunk(stamp_ns: int, number: int = 1, meaning: ActionMeaning = ActionMeaning.ABSOLUTE) -> Any:
    """A chunk message whose values tell its number."""
    made = SimpleNamespace(
        actions=np.linspace(0, 0.1 * number, HORIZON)[:, None] * np.ones(7) + 0.2,
        names=ROBOT.action_names,
        meanings=(meaning,) * 7,
        units=(ActionUnit.RADIAN,) * 6 + (ActionUnit.GRIPPER_OPEN_0_CLOSED_1,),
        horizon=HORIZON, dt=0.05, pose_groups=(), prompt="push", seed=3, kv_age=0, denoise_steps=2,
    )  # fmt: skip
    inputs = [("base_camera", stamp_ns), ("wrist_camera", stamp_ns), ("joint_states", stamp_ns)]
    return chunk_message(
        made,  # type: ignore[arg-type]
        inputs=inputs, published_ns=stamp_ns + 40_000_000, chunk_id=number, policy_id="p",
        random_weights=True,
    )  # fmt: skip


class Kept:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.images: list[tuple[str, int, np.ndarray]] = []
        self.records: list[tuple[str, dict[str, Any]]] = []
        self.paths: list[Sequence[ToolPose]] = []

    def image(self, role: str, stamp_ns: int, pixels: np.ndarray) -> None:
        self.images.append((role, stamp_ns, pixels))

    def data(self, topic: str, stamp_ns: int, values: Mapping[str, Any]) -> None:
        json.dumps(values, allow_nan=False)
        self.records.append((topic, dict(values)))

    def path(self, stamp_ns: int, frame: str, poses: Sequence[ToolPose]) -> None:
        self.paths.append(poses)

    def newest(self, topic: str) -> dict[str, Any]:
        return next(values for name, values in reversed(self.records) if name == topic)


def plain(value: int, size: tuple[int, int] = (48, 64)) -> Callable[[], np.ndarray]:
    return lambda: np.full((*size, 3), value, np.uint8)


def test_a_chunk_shows_the_images_that_it_answers_as_the_model_sees_them() -> None:
    sink = Kept()
    presenter = Presenter(sink, ModelImages(ROBOT, 32), TOOL)
    for k in range(5):
        for role in ROBOT.camera_roles:
            presenter.image(role, NS + k, plain(40 * k))
    sink.images.clear()
    presenter.joints(NS, ROBOT.state_names, np.zeros(7))
    presenter.chunk(record_from_message(chunk(NS + 3), NS + 50_000_000))
    assert [(role, stamp) for role, stamp, _ in sink.images] == [
        ("base", NS + 3),
        ("wrist", NS + 3),
    ]
    pixels = sink.images[0][2]
    assert pixels.shape == (32, 32, 3)
    assert (pixels[16] == 120).all()
    assert (pixels[0] == 0).all()  # the border: 64x48 fits into 32x24
    shown = sink.newest("chunk")
    assert [column["name"] for column in shown["columns"]] == list(ROBOT.action_names)
    assert shown["columns"][0]["meaning"] == "absolute"
    assert shown["columns"][6]["unit"] == "gripper_open_0_closed_1"
    assert shown["columns"][2]["values"][-1] == pytest.approx(0.3)
    assert shown["times_s"][1] == pytest.approx(0.05)
    latency = sink.newest("latency")
    assert latency["age_ms"] == pytest.approx(50, abs=0.01)
    assert latency["inference_ms"] is None  # an offline replay does not know
    assert sink.newest("notes")["tool_path"] == "made up"
    np.testing.assert_allclose(sink.paths[0][0].position, forward(np.full(6, 0.2))[0])


def test_images_are_shown_as_they_come_where_there_are_no_chunks() -> None:
    sink = Kept()
    presenter = Presenter(sink, ModelImages(ROBOT), None, "no URDF")
    for k in range(30):
        presenter.image("base", k * NS // 30, plain(k))
    assert len(sink.images) == 10  # per second
    presenter.image("base", 5 * NS, lambda: np.zeros((2, 2)))
    assert "image of base" in sink.newest("notes")["problem"]


def test_relative_chunks_are_added_up_from_where_the_arm_is() -> None:
    measured = dict(zip(ROBOT.state_names, np.arange(7.0), strict=True))
    for meaning, factor in ((ActionMeaning.DELTA, 1.0), (ActionMeaning.VELOCITY, 0.05)):
        record = record_from_message(chunk(NS, meaning=meaning), NS)
        found = chunk_positions(record, measured)["joint3"]
        np.testing.assert_allclose(found, 2 + factor * np.cumsum(record.data[:, 2]), rtol=1e-6)
        assert chunk_positions(record, {}) == {}
        assert tool_path(TOOL, record, {}) == []


def test_the_arms_own_kinematics_are_those_of_the_simulator() -> None:
    world = pytest.importorskip("pi05_ros.sim.arm.world").World("ray")
    rng = np.random.default_rng(0)
    for _ in range(20):
        joints = rng.uniform(world.lower, world.upper)
        world.set_joints(joints)
        position, rotation = forward(joints[:6])
        np.testing.assert_allclose(position, world.tip, atol=1e-9)
        site = world.data.site("tip").xmat.reshape(3, 3)
        np.testing.assert_allclose(rotation, site, atol=1e-9)
        x, y, z, w = ToolPose(position, rotation).quaternion
        back = np.array(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
            ]
        )
        np.testing.assert_allclose(back, rotation, atol=1e-9)
    world.close()


def test_a_urdf_gives_the_path_of_its_last_link() -> None:
    pytest.importorskip("pinocchio")
    from pi05_ros.view.tool_path import urdf_tool

    text = """<robot name="two"><link name="root"/><link name="arm"/><link name="hand"/>
    <joint name="joint1" type="revolute"><parent link="root"/><child link="arm"/>
    <axis xyz="0 0 1"/><limit lower="-3" upper="3" effort="1" velocity="1"/></joint>
    <joint name="fixed" type="fixed"><parent link="arm"/><child link="hand"/>
    <origin xyz="1 0 0"/></joint></robot>"""
    tool = urdf_tool(text, "hand")
    assert tool.joints == ("joint1",)
    pose = tool.forward(np.array([np.pi / 2]))
    np.testing.assert_allclose(pose.position, [0, 1, 0], atol=1e-12)
    with pytest.raises(ValueError, match="no link 'tip'"):
        urdf_tool(text, "tip")


def test_the_shipped_layout_shows_topics_that_are_served() -> None:
    text = (resources.config_dir() / "foxglove" / "pi05.json").read_text()
    layout = json.loads(text)
    assert {name.partition("!")[0] for name in layout["configById"]} >= {"Image", "Plot", "3D"}
    topics = set(re.findall(r'"(/pi05/[a-z_/]+)', text))
    served = {f"/pi05/{name}" for name in (*DATA_TOPICS, "tool_path", "scene")}
    served |= {f"/pi05/{role}/model_image" for role in ("base", "wrist", "wrist_2")}
    assert topics
    assert topics <= served


# -- over the websocket ------------------------------------------------------------------


def record(path: Path, count: int = 30) -> Path:
    """Images, joints, executor status, and a chunk for every fourth image."""
    types = typestore().types
    with BagWriter(path) as bag:
        for k in range(count):
            now = NS + k * NS // 20
            for camera in ("base", "wrist"):
                pixels = np.full((48, 64, 3), 60 + 4 * k, np.uint8)
                bag.write(f"/{camera}_camera/image_raw", now, image_message(pixels, now))
            names = list(ROBOT.state_names)
            bag.write("/joint_states", now, joint_state_message(names, np.full(7, 0.1), now))
            if k % 4 == 2:
                bag.write("/pi05_policy/action_chunk", now + 40_000_000, chunk(now, k))
            if k % 10 == 0:
                status = types[EXECUTOR_STATUS](
                    stamp=time_message(now), mode=2, reason="", reason_age_s=0.0, policy_id="p",
                    chunk_id=k, lag_s=0.0, stopped=False, halted=False, enabled=True, fault="",
                    speed_scale=1.0, intervention=False, joints=names,
                    commanded=np.zeros(7), measured=np.zeros(7),
                    space_watched=False, space_pair=[], space_distance=0.0,
                    space_frame="", space_at=np.zeros(3), space_scale=1.0, space_held="",
                )  # fmt: skip
                bag.write("/pi05_executor/executor_status", now, status)
    return path


@contextlib.contextmanager
def serving(bag: Path) -> Iterator[str]:
    """`pi05 view BAG` in a process of its own; its address."""
    command = [sys.executable, "-m", "pi05_ros.cli.main", "view", str(bag), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("serving"), line
        yield line.split()[1]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_browser_gets_images_chunk_and_path(tmp_path: Path) -> None:
    pytest.importorskip("foxglove")
    if chromium() is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with serving(record(tmp_path / "bag")) as url, open_page(url, tmp_path / "profile") as posted:

        def complete() -> bool:
            state = posted.state
            return len(state.get("images", {})) == 2 and bool(state["path"] and state["executor"])

        with posted.changed:
            assert posted.changed.wait_for(complete, timeout=60), posted.state
            state = posted.state
    assert state["images"] == {f"/pi05/{r}/model_image": [224, 224] for r in ("base", "wrist")}
    columns = state["chunk"]["columns"]
    assert [column["name"] for column in columns] == list(ROBOT.action_names)
    assert [len(column["values"]) for column in columns] == [HORIZON] * 7
    np.testing.assert_allclose(state["path"][0], forward(np.full(6, 0.2))[0], atol=1e-6)
    assert len(state["path"]) == HORIZON
    assert state["executor"]["mode"] == "following"
    assert "own kinematics" in state["notes"]["tool_path"]


def test_a_recording_is_played_once_and_the_chunks_of_a_replay_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("foxglove")
    bag = record(tmp_path / "bag", 12)
    words = ["--port", "0", "--speed", "100", "--once"]
    assert main(["view", str(bag), *words]) == 0
    out = capsys.readouterr().out
    assert "127.0.0.1" in out
    assert "shown           3 chunks" in out
    with Bag(bag) as opened, BagWriter(tmp_path / "out" / "chunks") as chunks:
        for message in list(opened.messages(["/pi05_policy/action_chunk"]))[:2]:
            chunks.write_raw("/c", ACTION_CHUNK, message.log_ns, message.raw)
    assert main(["view", str(bag), *words, "--chunks", str(tmp_path / "out")]) == 0
    assert "shown           2 chunks" in capsys.readouterr().out
    assert main(["view", str(bag), *words, "--tool", "hand"]) == 2
    assert "give --urdf" in capsys.readouterr().err


def test_a_port_that_is_taken_is_named() -> None:
    pytest.importorskip("foxglove")
    with FoxgloveSink(("base",), port=0) as sink, pytest.raises(ViewError, match="cannot listen"):
        FoxgloveSink(("base",), port=sink.port)
