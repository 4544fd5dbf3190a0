"""The real thing: node, player and recorder as processes over DDS, from the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "replay"))  # bags.py

from bags import edit_bag, write_bag

from pi05_ros.bags.bag import Bag, BagMessage
from pi05_ros.bags.cdr_messages import encode
from pi05_ros.bags.chunk_record import read_chunks
from pi05_ros.cli.main import main
from pi05_ros.policy.robots.profile_yaml import load_profile
from pi05_ros.replay.live import LiveOptions, run_live
from pi05_ros.replay.run import choose
from pi05_ros.ros.processes.children import ChildError, Children

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Bag, and the folder of its live replay."""
    folder = tmp_path_factory.mktemp("live")
    bag = write_bag(folder / "bag", 3.0)
    out = folder / "out"
    code = main(
        ["replay", str(bag), "--out", str(out), "-p", "threads=1", "--rate", "8",
         "--require-rate", "0.01"]
    )  # fmt: skip
    assert code == 0
    return bag, out


def test_files(live: tuple[Path, Path]) -> None:
    _, out = live
    summary = json.loads((out / "summary.json").read_text())
    assert summary["mode"] == "live"
    assert summary["latency_ms"]["p50"] > 0
    assert (out / "replay.png").is_file()
    chunks = read_chunks(out / "chunks")
    assert [chunk.chunk_id for chunk in chunks] == list(range(len(chunks)))
    assert all(chunk.prompt == "push the block" for chunk in chunks)


def test_log_time_is_bag_time(live: tuple[Path, Path]) -> None:
    for chunk in read_chunks(live[1] / "chunks"):
        assert 0 < chunk.received_ns - chunk.observation_ns < 60 * 10**9
        # The node's clock moves in steps of up to 10 ms, the recorder's does not.
        assert chunk.received_ns > chunk.published_ns - 20_000_000


def test_live_chunks_are_recomputed_offline_bit_for_bit(live: tuple[Path, Path]) -> None:
    bag, out = live
    arguments = ["replay", str(bag), "-p", "threads=1", "--verify", str(out / "chunks")]
    assert main(arguments) == 0


def test_chunks_made_with_overlap_are_recomputed_without(
    live: tuple[Path, Path], tmp_path: Path
) -> None:
    bag, _ = live
    words = ["replay", str(bag), "-p", "threads=1"]
    overlap = ["-p", "overlap=true"]
    assert main([*words, *overlap, "--rate", "60", "--out", str(tmp_path), "--no-plot"]) == 0
    assert len(read_chunks(tmp_path / "chunks")) > 1
    assert main([*words, "--verify", str(tmp_path / "chunks")]) == 0
    assert main([*words, *overlap, "--verify", str(tmp_path / "chunks")]) == 0


def test_offline_agrees_where_the_same_samples_were_used(
    live: tuple[Path, Path], tmp_path: Path
) -> None:
    """Chunks of equal input stamps and seeds differ in no bit; other ones are left out."""
    from pi05_ros.replay.compare import compare

    bag, out = live
    code = main(
        ["replay", str(bag), "--offline", "--no-plot", "-p", "threads=1", "--rate", "8",
         "--out", str(tmp_path)]
    )  # fmt: skip
    assert code == 0
    recorded = {(chunk.key, chunk.seed): chunk for chunk in read_chunks(out / "chunks")}
    offline = [c for c in read_chunks(tmp_path / "chunks") if (c.key, c.seed) in recorded]
    if offline:  # at which tick a live run starts is up to the machine
        assert compare(offline, [recorded[c.key, c.seed] for c in offline]).equal


def test_refused_configure_shows_the_nodes_words(
    live: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--tokenizer", str(tmp_path / "absent.model"), "--out", str(tmp_path)]
    assert main(["replay", str(live[0]), *options]) == 2
    text = capsys.readouterr().err
    assert "refused to configure" in text
    assert "absent.model does not exist" in text


def test_dropped_messages_are_explained(
    live: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def gray(message: BagMessage) -> Iterator[BagMessage]:
        if message.topic == "/base_camera/image_raw":
            image = message.decode()
            image.encoding = "64FC1"
            message = message._replace(raw=encode(image))
        yield message

    bag = edit_bag(write_bag(tmp_path / "bag", 1.0), tmp_path / "gray", gray)
    assert main(["replay", str(bag), "--out", str(tmp_path / "out"), "-p", "threads=1"]) == 1
    out = capsys.readouterr().out
    assert "30 x base_camera encoding (image encoding '64FC1'; accepted: rgb8" in out


def test_recorder_that_cannot_write_is_an_error(live: tuple[Path, Path], tmp_path: Path) -> None:
    with Bag(live[0]) as bag:
        sources = choose(bag, load_profile("sim_arm"), {}).sources

    def say(text: str) -> None:
        if "playing" in text:
            (tmp_path / "chunks" / "mine").mkdir(parents=True)

    options = LiveOptions(live[0], sources, {"checkpoint": "random:tiny", "threads": 1}, tmp_path)
    with pytest.raises(ChildError, match=r"(?s)recorder ended with code 1.*is not a bag"):
        run_live(options, say)


def test_interrupt_ends_all_children(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "bag", 30.0, cameras=("base_camera",))
    process = subprocess.Popen(
        [sys.executable, "-m", "pi05_ros.cli.main", "replay", str(bag), "--out", str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        # A test run started in the background has SIGINT ignored, and hands that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "playing" in line:
            break
    children = _children(process.pid)
    assert len(children) == 3
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]


def _children(parent: int) -> list[int]:
    text = Path(f"/proc/{parent}/task/{parent}/children").read_text()
    return [int(word) for word in text.split()]


def test_dead_child_is_reported_with_its_log(tmp_path: Path) -> None:
    with Children(os.environ, tmp_path) as children:
        child = children.start(
            "crash", [sys.executable, "-c", "raise SystemExit('out of memory')"], talks=True
        )
        with pytest.raises(ChildError, match=r"(?s)crash ended with code 1.*out of memory"):
            children.wait_event(child, "ready", 60)


def test_silent_child_is_not_waited_for_forever(tmp_path: Path) -> None:
    with Children(os.environ, tmp_path) as children:
        child = children.start("mute", ["sleep", "600"], talks=True)
        with pytest.raises(ChildError, match="did not report 'ready'"):
            children.wait_event(child, "ready", 0.3)
    assert child.process.returncode < 0  # it did not end by itself
