"""LeRobot datasets are replayed as bags are: ours and those in LeRobot's own layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bags import START_NS, write_bag

from pi05_ros.bags.bag import Bag, BagError
from pi05_ros.bags.cdr_messages import NS
from pi05_ros.bags.chunk_record import read_chunks
from pi05_ros.bags.lerobot_recording import DatasetRecording, episodes_in
from pi05_ros.cli.main import main
from pi05_ros.policy.robots.profile_yaml import load_profile
from pi05_ros.runtime.inputs.conversion import image_to_rgb

av = pytest.importorskip("av")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

SIM = load_profile("sim_arm")
SO101 = load_profile("so101")
MOTORS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")


@pytest.fixture(scope="module", params=["3.0", "2.1"])
def ours(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ours")
    bags = [write_bag(folder / name, prompt=name) for name in ("lift", "push")]
    out = folder / "dataset"
    words = [*map(str, bags), "--out", str(out), "--version", request.param]
    assert main(["dataset", *words]) == 0
    return out


def values(bag: Bag, topic: str) -> np.ndarray:
    return np.array([m.decode().position for m in bag.messages([topic])])


def test_a_dataset_of_ours_reads_as_the_bags_it_was_made_of(ours: Path) -> None:
    assert episodes_in(ours) == [ours / "episode_0", ours / "episode_1"]
    table = pq.read_table(next(iter(sorted(ours.glob("data/*/*.parquet")))))
    for path, prompt in zip(episodes_in(ours), ("lift", "push"), strict=True):
        with DatasetRecording(path, SIM) as bag:
            assert not bag.notes
            state = values(bag, "/joint_states")
            np.testing.assert_array_equal(state, table["observation.state"].to_pylist())
            actions = values(bag, "/joint_commands")
            np.testing.assert_array_equal(actions, table["action"].to_pylist())
            assert [m.decode().data for m in bag.messages(["/prompt"])] == [prompt]
            stamps = [m.log_ns for m in bag.messages(["/wrist_camera/image_raw"])]
            assert np.diff(stamps) == pytest.approx(NS / SIM.control_hz, abs=100)
            seen = [image_to_rgb(m.decode()) for m in bag.messages(["/base_camera/image_raw"])]
        assert len(seen) == len(state)
        with Bag(ours.parent / prompt) as bag:
            images = [
                (m.log_ns, image_to_rgb(m.decode()))
                for m in bag.messages(["/base_camera/image_raw"])
            ]
        for row, image in enumerate(seen):
            now = START_NS + 1_000_000 + row * NS // 20
            wanted = [pixels for stamp, pixels in images if stamp <= now][-1]
            assert np.abs(image.astype(int) - wanted).mean() < 12


def test_offline_replay_takes_all_episodes_or_one(ours: Path, tmp_path: Path) -> None:
    options = ["--offline", "--no-plot", "-p", "threads=1", "--rate", "2", "--out"]
    assert main(["replay", str(ours / "episode_1"), *options, str(tmp_path / "one")]) == 0
    one = read_chunks(tmp_path / "one")
    assert {chunk.prompt for chunk in one} == {"push"}
    assert main(["replay", str(ours), *options, str(tmp_path / "all")]) == 0
    both = read_chunks(tmp_path / "all")
    assert [chunk.prompt for chunk in both] == ["lift"] * len(one) + ["push"] * len(one)
    assert (
        main(
            [
                "replay",
                str(ours),
                *options,
                str(tmp_path / "all"),
                "--verify",
                str(tmp_path / "all"),
            ]
        )
        == 0
    )


def test_live_replay_asks_for_one_episode(
    ours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", str(ours), "--out", str(tmp_path / "out")]) == 2
    assert "episode_0" in capsys.readouterr().err


# -- LeRobot's own layout: several episodes in one file, values a policy is trained on -------


def picture(row: int, episode: int) -> np.ndarray:
    image = np.full((48, 64, 3), 40 + 80 * episode, np.uint8)
    image[:, : 2 * row + 2] = 220
    return image


def write_foreign(root: Path, names: Any, lengths: tuple[int, ...] = (12, 9)) -> np.ndarray:
    """Two episodes in one table and one video, as LeRobot 0.4 packs them; returns the states."""
    fps = 30
    features: dict[str, Any] = {
        "observation.state": {"dtype": "float32", "shape": [6], "names": names},
        "action": {"dtype": "float32", "shape": [6], "names": names},
        "observation.images.top": {"dtype": "video", "shape": [48, 64, 3]},
    }
    info = {
        "codebase_version": "v3.0",
        "fps": fps,
        "features": features,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    }
    for folder in ("meta/episodes/chunk-000", "data/chunk-000"):
        (root / folder).mkdir(parents=True)
    video = root / "videos/observation.images.top/chunk-000/file-000.mp4"
    video.parent.mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info))
    tasks = pa.table({"task_index": [0], "task": ["fold"]})
    pq.write_table(tasks, root / "meta/tasks.parquet")
    count = sum(lengths)
    state = (np.arange(count)[:, None] + [0, 1, 2, 3, 4, 5]).astype(np.float32)
    rows = [(e, k) for e, length in enumerate(lengths) for k in range(length)]
    table = pa.table(
        {
            "observation.state": state.tolist(),
            "action": (state + 1).tolist(),
            "timestamp": pa.array([k / fps for _, k in rows], pa.float32()),
            "frame_index": [k for _, k in rows],
            "episode_index": [e for e, _ in rows],
            "index": list(range(count)),
            "task_index": [0] * count,
        }
    )
    pq.write_table(table, root / "data/chunk-000/file-000.parquet")
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    key = "videos/observation.images.top"
    episodes = [
        {
            "episode_index": e,
            "length": length,
            "tasks": ["fold"],
            "data/chunk_index": 0,
            "data/file_index": 0,
            f"{key}/chunk_index": 0,
            f"{key}/file_index": 0,
            f"{key}/from_timestamp": float(start / fps),
            "stats/action/mean": [0.0],
        }
        for e, (length, start) in enumerate(zip(lengths, starts, strict=True))
    ]
    pq.write_table(
        pa.Table.from_pylist(episodes), root / "meta/episodes/chunk-000/file-000.parquet"
    )
    with av.open(str(video), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.options = {"g": "4"}
        for e, k in rows:
            frame = av.VideoFrame.from_ndarray(picture(k, e), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return state


def test_a_dataset_of_lerobot_is_mapped_to_the_robot(tmp_path: Path) -> None:
    state = write_foreign(tmp_path / "d", [f"{name}.pos" for name in MOTORS])
    with DatasetRecording(tmp_path / "d/episode_1", SO101) as bag:
        assert any("taken for the base camera" in note for note in bag.notes)
        assert any("mapped to the robot" in note for note in bag.notes)
        got = values(bag, "/joint_states")
        images = [image_to_rgb(m.decode()) for m in bag.messages(["/base_camera/image_raw"])]
        same = [m.raw for m in bag.messages(["/observation.images.top"])]
    np.testing.assert_allclose(got[:, :5], np.deg2rad(state[12:, :5]), rtol=1e-6)
    low, high = -0.17453, 1.74533
    np.testing.assert_allclose(got[:, 5], low + state[12:, 5] / 100 * (high - low), rtol=1e-6)
    assert len(images) == len(same) == 9
    for row, image in enumerate(images):
        assert np.abs(image.astype(int) - picture(row, 1)).mean() < 8, row


def test_columns_are_joined_by_name_then_by_place_and_else_refused(tmp_path: Path) -> None:
    turned = [f"{name}.pos" for name in reversed(MOTORS)]
    state = write_foreign(tmp_path / "turned", {"motors": turned})
    with DatasetRecording(tmp_path / "turned", SO101) as bag:
        first = values(bag, "/joint_states")[0]
    np.testing.assert_allclose(first[0], np.deg2rad(state[0, 5]))
    write_foreign(tmp_path / "unnamed", None)
    with DatasetRecording(tmp_path / "unnamed", SO101) as bag:
        assert any("in this order" in note for note in bag.notes)
    with pytest.raises(BagError, match="the robot has 7"):
        DatasetRecording(tmp_path / "unnamed", SIM)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("meta/info.json", "[]", "codebase_version is None"),
        ("meta/info.json", "{", "info.json"),
        ("meta/tasks.parquet", "PAR1", "tasks.parquet cannot be read"),
        ("data/chunk-000/file-000.parquet", "", "file-000.parquet cannot be read"),
        ("videos/observation.images.top/chunk-000/file-000.mp4", "no", "mp4 cannot be read"),
    ],
)
def test_damaged_datasets_are_named(tmp_path: Path, name: str, text: str, said: str) -> None:
    write_foreign(tmp_path / "d", list(MOTORS))
    (tmp_path / "d" / name).write_text(text)
    with pytest.raises(BagError, match=said), DatasetRecording(tmp_path / "d", SO101) as bag:
        list(bag.messages())


def test_paths_do_not_lead_out_of_the_dataset(tmp_path: Path) -> None:
    write_foreign(tmp_path / "d", list(MOTORS))
    info = json.loads((tmp_path / "d/meta/info.json").read_text())
    info["data_path"] = "../../{chunk_index}/{file_index}"
    (tmp_path / "d/meta/info.json").write_text(json.dumps(info))
    with pytest.raises(BagError, match="leads out of the dataset"):
        DatasetRecording(tmp_path / "d", SO101)
