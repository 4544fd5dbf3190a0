"""`pi05 dataset`: values exact, nothing from the future, videos on time, resumable."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pi05_ros.bags.bag import BagWriter
from pi05_ros.bags.cdr_messages import NS, image_message, joint_state_message, string_message
from pi05_ros.cli.main import main
from pi05_ros.policy.robots.profile_yaml import load_profile
from pi05_ros.workflows import lerobot_dataset
from pi05_ros.workflows.lerobot_dataset import LeRobotWriter

av = pytest.importorskip("av")
pq = pytest.importorskip("pyarrow.parquet")

NAMES = load_profile("sim_arm").state_names
FPS = 20
ROWS = 30


def picture(frame: int, camera: int) -> np.ndarray:
    image = np.full((48, 64, 3), 60 + 40 * camera, np.uint8)
    image[:, : 2 * frame] = 200
    return image


def record(
    path: Path,
    *,
    commands: bool = True,
    prompt: str | None = "push the block",
    second: str | None = None,
    log_ahead_ns: int = 0,
) -> Path:
    """1.5 s: cameras at 20 Hz, joints at 100 Hz, commands 5 ms after each frame."""
    events: list[tuple[int, str, object]] = []
    for k in range(ROWS + 1):
        t = NS + k * NS // FPS
        for camera, name in enumerate(("base", "wrist")):
            events.append((t, f"/{name}_camera/image_raw", image_message(picture(k, camera), t)))
        if commands:
            later = t + 5_000_000
            values = np.full(7, 10.0 + k)
            message = joint_state_message(list(NAMES), values, later)
            events.append((later, "/joint_commands", message))
    for k in range(ROWS * 5 + 1):
        t = NS + k * NS // 100
        events.append((t, "/joint_states", joint_state_message(list(NAMES), np.full(7, k), t)))
    if prompt is not None:
        events.append((NS, "/prompt", string_message(prompt)))
    if second is not None:
        events.append((NS + NS // 2, "/prompt", string_message(second)))
    with BagWriter(path) as bag:
        for t, topic, each in sorted(events, key=lambda event: event[0]):
            bag.write(topic, t + log_ahead_ns, each)
    return path


def table(path: Path) -> dict[str, np.ndarray]:
    found = pq.read_table(path).to_pydict()
    return {name: np.array(column) for name, column in found.items()}


def frames(path: Path) -> tuple[list[float], list[np.ndarray]]:
    with av.open(str(path)) as container:
        decoded = [
            (float(f.time), f.to_ndarray(format="rgb24")) for f in container.decode(video=0)
        ]
    return [time for time, _ in decoded], [image for _, image in decoded]


def test_values_are_exact_and_nothing_comes_from_the_future(tmp_path: Path) -> None:
    bag = record(tmp_path / "bag")
    assert main(["dataset", str(bag), "--out", str(tmp_path / "out")]) == 0
    rows = table(tmp_path / "out" / "data" / "chunk-000" / "file-000.parquet")
    # The first command comes 5 ms after the first frame, so the rows are 5 ms after the frames.
    count = len(rows["index"])
    assert count == ROWS
    np.testing.assert_array_equal(rows["observation.state"][:, 0], 5 * np.arange(count))
    np.testing.assert_array_equal(rows["action"][:, 3], 10 + np.arange(count))
    np.testing.assert_allclose(rows["timestamp"], np.arange(count) / FPS, atol=1e-6)
    assert (np.diff(rows["timestamp"]) > 0).all()
    for camera, name in enumerate(("base", "wrist")):
        video = tmp_path / f"out/videos/observation.images.{name}/chunk-000/file-000.mp4"
        times, images = frames(video)
        np.testing.assert_allclose(times, np.arange(count) / FPS, atol=1e-6)
        for k, image in enumerate(images):
            wanted = picture(k, camera).astype(int)
            assert np.abs(image.astype(int) - wanted).mean() < 6, (name, k)


def test_without_commands_the_next_state_is_the_action(tmp_path: Path) -> None:
    bag = record(tmp_path / "bag", commands=False)
    assert main(["dataset", str(bag), "--out", str(tmp_path / "out")]) == 0
    rows = table(tmp_path / "out" / "data" / "chunk-000" / "file-000.parquet")
    np.testing.assert_array_equal(rows["action"][:, 0], rows["observation.state"][:, 0] + 5)


def test_tasks_come_from_the_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bags = [
        record(tmp_path / "a", second="put it back"),
        record(tmp_path / "b", prompt="put it back"),
    ]
    out = tmp_path / "out"
    assert main(["dataset", *map(str, bags), "--out", str(out)]) == 0
    tasks = pq.read_table(out / "meta" / "tasks.parquet").to_pydict()
    assert tasks == {"task_index": [0, 1], "task": ["push the block", "put it back"]}
    # Stamps of simulated time, log times of another clock.
    record(tmp_path / "simulated", second="put it back", log_ahead_ns=10**18)
    simulated = tmp_path / "from_simulation"
    assert main(["dataset", str(tmp_path / "simulated"), "--out", str(simulated)]) == 0
    same = table(simulated / "data/chunk-000/file-000.parquet")
    assert list(np.unique(same["task_index"], return_counts=True)[1]) == [10, 20]
    first, second = (table(out / f"data/chunk-000/file-{k:03d}.parquet") for k in (0, 1))
    assert list(np.unique(first["task_index"], return_counts=True)[1]) == [10, 20]
    assert set(second["task_index"]) == {1}
    assert second["index"][0] == len(first["index"])
    silent = record(tmp_path / "silent", prompt=None)
    capsys.readouterr()
    assert main(["dataset", str(silent), "--out", str(tmp_path / "x")]) == 2
    assert "give the task with --task" in capsys.readouterr().err
    command = ["dataset", str(silent), "--out", str(tmp_path / "x"), "--task", "push"]
    assert main(command) == 0


def test_metadata_of_version_3(tmp_path: Path) -> None:
    folder = tmp_path / "bags"
    for name in ("a", "b"):
        record(folder / name)
    out = tmp_path / "out"
    assert main(["dataset", str(folder), "--out", str(out)]) == 0
    info = json.loads((out / "meta" / "info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    assert (info["total_episodes"], info["total_frames"], info["fps"]) == (2, 2 * ROWS, FPS)
    assert info["features"]["observation.images.base"]["shape"] == [48, 64, 3]
    assert info["features"]["action"]["names"] == list(NAMES)
    episodes = pq.read_table(out / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [row["dataset_from_index"] for row in episodes] == [0, ROWS]
    assert episodes[1]["videos/observation.images.wrist/file_index"] == 1
    assert episodes[1]["videos/observation.images.wrist/to_timestamp"] == ROWS / FPS
    stats = json.loads((out / "meta" / "stats.json").read_text())
    values = 10 + np.arange(ROWS)
    assert stats["action"]["mean"][0] == pytest.approx(values.mean())
    assert stats["action"]["std"][0] == pytest.approx(values.std())
    assert stats["action"]["count"] == [2 * ROWS]
    assert stats["action"]["q01"][0] == pytest.approx(np.quantile(np.tile(values, 2), 0.01))
    assert stats["observation.state"].keys() >= {"q01", "q10", "q50", "q90", "q99"}
    assert np.shape(stats["observation.images.base"]["mean"]) == (3, 1, 1)


def test_metadata_of_version_2(tmp_path: Path) -> None:
    bag, out = record(tmp_path / "bag"), tmp_path / "out"
    assert main(["dataset", str(bag), "--out", str(out), "--version", "2.1"]) == 0
    info = json.loads((out / "meta" / "info.json").read_text())
    assert (info["codebase_version"], info["total_videos"]) == ("v2.1", 2)
    assert (out / "data/chunk-000/episode_000000.parquet").is_file()
    assert (out / "videos/chunk-000/observation.images.base/episode_000000.mp4").is_file()
    episode = json.loads((out / "meta" / "episodes.jsonl").read_text())
    assert episode == {"episode_index": 0, "tasks": ["push the block"], "length": ROWS}
    stats = json.loads((out / "meta" / "episodes_stats.jsonl").read_text())["stats"]
    assert stats["observation.state"]["max"][0] == 5 * (ROWS - 1)


def test_an_interrupted_export_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bags = [str(record(tmp_path / name)) for name in "abc"]
    once = tmp_path / "once"
    assert main(["dataset", *bags, "--out", str(once)]) == 0
    out = tmp_path / "out"
    add = LeRobotWriter.add

    def killed(self: LeRobotWriter, *args: object) -> None:
        if len(self.episodes) == 1:
            raise KeyboardInterrupt
        add(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(lerobot_dataset.LeRobotWriter, "add", killed)
    assert main(["dataset", *bags, "--out", str(out)]) == 130
    monkeypatch.undo()
    capsys.readouterr()
    assert main(["dataset", *bags, "--out", str(out)]) == 0
    assert capsys.readouterr().out.count("in the dataset already") == 1
    for path in once.rglob("*.parquet"):
        assert (out / path.relative_to(once)).read_bytes() == path.read_bytes()
    assert len(list(out.rglob("*.mp4"))) == 6
    other = ["dataset", bags[0], "--out", str(out), "--version", "2.1"]
    assert main(other) == 2
    assert "another --out" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("!")
    assert main(["dataset", bags[0], "--out", str(tmp_path / "mine")]) == 2


@pytest.mark.parametrize("version", ["3.0", "2.1"])
def test_a_camera_that_stands_still_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], version: str
) -> None:
    def write(path: Path, still: range, frames: bool = True) -> Path:
        with BagWriter(path) as bag:
            bag.write("/prompt", NS, string_message("push the block"))
            for k in range(2 * ROWS):
                t = NS + k * NS // FPS
                for camera, name in enumerate(("base", "wrist")):
                    hangs = camera == 1 and k in still
                    if frames or not hangs:
                        image = picture((still.start if hangs else k) % 30, camera)
                        bag.write(f"/{name}_camera/image_raw", t, image_message(image, t))
                for topic in ("/joint_states", "/joint_commands"):
                    message = joint_state_message(list(NAMES), np.full(7, 0.02 * k), t)
                    bag.write(topic, t, message)
        return path

    bags = [
        write(tmp_path / "sound", range(0)),
        write(tmp_path / "hangs", range(20, 41)),
        write(tmp_path / "silent", range(20, 41), frames=False),
    ]
    command = ["dataset", *map(str, bags), "--out", str(tmp_path / "out"), "--version", version]
    assert main(command) == 0
    said = capsys.readouterr().out + capsys.readouterr().err
    text = "; the images of wrist stand still from 1.00 s to 2.05 s while joint1 moves by 0.42"
    lines = {name: line for line in said.splitlines() for name in ("sound", "hangs", "silent")
             if f"/{name}: " in line}  # fmt: skip
    assert "stand still" not in lines["sound"]
    assert lines["hangs"].endswith(f"rows{text}")
    assert "with an image older than 0.5 s; the images of wrist stand still" in lines["silent"]
