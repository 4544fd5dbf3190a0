"""`pi05 replay` from the command line: offline runs, comparisons, and every clear refusal."""

from __future__ import annotations

import importlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "replay"))  # bags.py

from bags import START_NS, delay, edit_bag, write_bag

from pi05_ros.bags.bag import BagMessage, BagWriter
from pi05_ros.bags.cdr_messages import NS, encode, header, string_message, to_ns
from pi05_ros.cli.main import main
from pi05_ros.replay.out_claim import claim

TODAY_NS = 1_700_000_000 * NS
QUICK = ["--offline", "--no-plot", "-p", "threads=1"]


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bag(tmp_path_factory.mktemp("cli") / "bag", 0.6)


def test_regression_test_of_a_user(bag: Path, tmp_path: Path) -> None:
    reference = tmp_path / "reference"
    assert main(["replay", str(bag), *QUICK, "--out", str(reference)]) == 0
    chunks = str(reference / "chunks" / "chunks.mcap")
    again = ["replay", str(bag), *QUICK, "--out", str(tmp_path / "again"), "--against", chunks]
    assert main(again) == 0
    again[-1] = str(reference)  # the output folder will do as well
    assert main([*again, "--tolerance", "1e-3"]) == 0
    assert main([*again, "--seed", "5", "--tolerance", "1e-3"]) == 1
    assert main([*again, "--rate", "5"]) == 1
    summary = json.loads((tmp_path / "again" / "summary.json").read_text())
    assert summary["mode"] == "offline"
    assert summary["chunks"] == 2


def test_report_names_the_change(
    bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", str(bag), *QUICK, "--out", str(tmp_path / "a")]) == 0
    capsys.readouterr()
    code = main(
        ["replay", str(bag), *QUICK, "--out", str(tmp_path / "b"), "--prompt", "stop",
         "--against", str(tmp_path / "a" / "chunks")]
    )  # fmt: skip
    out = capsys.readouterr().out
    assert code == 1
    assert "prompt is 'stop', reference 'push the block'" in out
    assert "DIFFERENT" in out


def test_verify(bag: Path, tmp_path: Path) -> None:
    assert main(["replay", str(bag), *QUICK, "--out", str(tmp_path)]) == 0
    verify = ["replay", str(bag), "-p", "threads=1", "--verify", str(tmp_path / "chunks")]
    assert main(verify) == 0
    assert main([*verify, "--checkpoint", "random:tiny:1", "--tolerance", "1e-3"]) == 1


def test_verify_says_what_it_leaves_out(
    bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def aged(message: BagMessage) -> Iterator[BagMessage]:
        chunk = message.decode()
        chunk.kv_age = 1
        yield message._replace(raw=encode(chunk))

    assert main(["replay", str(bag), *QUICK, "-p", "kv_reuse=2", "--out", str(tmp_path)]) == 0
    capsys.readouterr()
    assert main(["replay", str(bag), "-p", "threads=1", "--verify", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "2 chunks reuse the KV cache of an earlier one and are left out" in out
    assert "compared 3 chunks" in out
    same = ["-p", "threads=1", "-p", "kv_reuse=2"]  # as it was recorded
    assert main(["replay", str(bag), *same, "--verify", str(tmp_path)]) == 0
    old = edit_bag(tmp_path / "chunks", tmp_path / "old", aged)
    assert main(["replay", str(bag), "--verify", str(old)]) == 2
    assert "none of 5 recorded chunks can be computed again" in capsys.readouterr().err


def test_plot_is_written(bag: Path, tmp_path: Path) -> None:
    assert main(["replay", str(bag), "--offline", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "replay.png").read_bytes().startswith(b"\x89PNG")


def test_other_names(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", 0.3, prefix="/left", storage="sqlite3", compressed=True)
    assert main(["replay", str(path), *QUICK, "--out", str(tmp_path / "out")]) == 0
    mapped = ["--map", "base_camera=/left/wrist_camera/image_raw/compressed"]
    assert main(["replay", str(path), *QUICK, *mapped, "--out", str(tmp_path / "out")]) == 0


def test_a_camera_that_is_not_in_the_bag_is_pointed_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_bag(tmp_path / "bag", 0.3, cameras=("base_camera",))
    assert main(["replay", str(path), *QUICK, "--out", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if "not in the bag" in line] == ["wrist_camera"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--map", "base_camera=/nothing"], "Topics in the bag"),
        (["--map", "base_camera=/joint_states"], "takes sensor_msgs/msg/Image"),
        (["--map", "wrist_camera_2=/wrist_camera/image_raw"], "only has the inputs"),
        (["--robot", "robby"], "robby"),
        (["--checkpoint", "/no/such/place"], "/no/such/place"),
        (["--checkpoint", "random:huge"], "random:huge"),
        (["--rate", "0"], "rate_hz"),
        (["-p", "max_age=1"], "accepted: checkpoint"),
        (["-p", "max_age_s=soon"], "max_age_s"),
        (["--time", "clock"], "no /clock"),
        (["--against", "/no/chunks"], "/no/chunks does not exist"),
        (["--loop", "0"], "--loop"),
        (["-p", "max_age_s=[1"], "--param max_age_s='[1' is not valid YAML: line 1"),
        (["-p", "camera_roles=[left]"], "robot sim_arm has base, wrist"),
        (["-p", "checkpoint="], "checkpoint is empty; accepted"),
        (["--require-rate", "90"], "--require-rate is 90; accepted: above 0, up to 1"),
        (["--partial"], "--partial is for --against"),
        (["--prompt", "\udcff"], "not text in UTF-8"),
        (["--out", "/proc/nowhere"], "/proc/nowhere"),
    ],
)
def test_refusals(
    bag: Path,
    tmp_path: Path,
    options: list[str],
    text: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["replay", str(bag), *QUICK, "--out", str(tmp_path), *options]) == 2
    assert text in capsys.readouterr().err


def test_verify_stands_alone(bag: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["replay", str(bag), "--verify", "a", "--against", "b"])
    assert caught.value.code == 2


def test_recording_is_never_replaced_by_its_results(
    bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recording = tmp_path / "chunks"
    shutil.copytree(bag, recording)
    for path in (recording, recording / "bag.mcap"):
        for options in (QUICK, []):
            assert main(["replay", str(path), *options, "--out", str(tmp_path)]) == 2
            assert "would replace the bag" in capsys.readouterr().err
    assert (recording / "bag.mcap").read_bytes() == (bag / "bag.mcap").read_bytes()


def test_messages_cut_short_are_counted_and_drawn_around(
    bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def cut(message: BagMessage) -> Iterator[BagMessage]:
        late = message.topic == "/joint_states" and message.log_ns > START_NS + 200_000_000
        yield message._replace(raw=message.raw[:6]) if late else message

    torn = edit_bag(bag, tmp_path / "torn", cut)
    for base in ("log", "header"):
        options = ["--offline", "-p", "threads=1", "--out", str(tmp_path), "--time", base]
        assert main(["replay", str(torn), *options]) == 0
        assert "39 x joint_states malformed (Could not deserialize" in capsys.readouterr().out


@pytest.mark.parametrize("base", ["log", "header"])
def test_gap_of_years_is_leapt_over(
    base: str, bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One log time or one stamp of zero in a recording of today."""

    def edit(message: BagMessage) -> Iterator[BagMessage]:
        early = message.topic == "/prompt"
        if message.topic == "/joint_states":
            state = message.decode()
            stamp = to_ns(state.header.stamp)
            state.header = header(0 if stamp == START_NS else stamp + TODAY_NS)
            message = message._replace(raw=encode(state))
        elif not early:
            image = message.decode()
            image.header = header(to_ns(image.header.stamp) + TODAY_NS)
            message = message._replace(raw=encode(image))
        yield message._replace(log_ns=0 if early else message.log_ns + TODAY_NS)

    odd = edit_bag(bag, tmp_path / "odd", edit)
    words = ["replay", str(odd), *QUICK, "--out", str(tmp_path / "out"), "--time", base]
    assert main([*words, "--require-rate", "0.8"]) == 0
    assert "the clock went on by more than an hour 1 times" in capsys.readouterr().out
    assert main(["replay", str(odd), "--out", str(tmp_path / "live")]) == 2
    assert "would play for 1700000" in capsys.readouterr().err


def test_verify_names_what_is_wrong_with_the_samples(
    bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def gray(message: BagMessage) -> Iterator[BagMessage]:
        if message.topic == "/base_camera/image_raw":
            image = message.decode()
            image.encoding = "bayer_rggb16"
            message = message._replace(raw=encode(image))
        yield message

    def cut(message: BagMessage) -> Iterator[BagMessage]:
        size = 20 if message.topic == "/joint_states" else None
        yield message._replace(raw=message.raw[:size])

    def no_joints(message: BagMessage) -> Iterator[BagMessage]:
        chunk = message.decode()
        pairs = list(zip(chunk.input_names, chunk.input_stamps, strict=True))
        pairs = [pair for pair in pairs if pair[0] != "joint_states"]
        chunk.input_names, chunk.input_stamps = map(list, zip(*pairs, strict=True))
        yield message._replace(raw=encode(chunk))

    assert main(["replay", str(bag), *QUICK, "--out", str(tmp_path)]) == 0
    chunks = tmp_path / "chunks"
    other = edit_bag(bag, tmp_path / "gray", gray)
    torn = edit_bag(bag, tmp_path / "torn", cut)
    silent = edit_bag(chunks, tmp_path / "silent", no_joints)
    for source, recording, text in (
        (other, chunks, "cannot be computed again: base_camera: image encoding 'bayer_rggb16'"),
        (torn, chunks, "cannot be computed again: a sensor_msgs/msg/JointState"),
        (bag, silent, "does not say which joint_states it used"),
    ):
        capsys.readouterr()
        assert main(["replay", str(source), "--verify", str(recording)]) == 2
        assert text in capsys.readouterr().err


def test_odd_names(bag: Path, tmp_path: Path) -> None:
    for name in ("a b ü $x$ \\foo$", os.fsdecode(b"n\xff")):
        shutil.copytree(bag, tmp_path / name / "my bag")
        out = tmp_path / name / "out"
        path = str(tmp_path / name / "my bag")
        assert main(["replay", path, "--offline", "--out", str(out)]) == 0
        assert (out / "replay.png").is_file()


def test_bags_that_are_none(bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(path: Path) -> str:
        assert main(["replay", str(path), *QUICK, "--out", str(tmp_path / "out")]) == 2
        return capsys.readouterr().err

    assert "does not exist" in refused(tmp_path / "nowhere")
    cut = tmp_path / "cut.mcap"
    cut.write_bytes((bag / "bag.mcap").read_bytes()[:3000])
    assert "truncated" in refused(cut)
    text = tmp_path / "readme.md"
    text.write_text("hello")
    assert "not a bag" in refused(text)
    with BagWriter(tmp_path / "empty") as writer:
        writer.add_topic("/prompt", "std_msgs/msg/String")
    assert "no messages" in refused(tmp_path / "empty")
    with BagWriter(tmp_path / "talk") as writer:
        writer.write("/prompt", 1, string_message("hello"))
    assert "no topic for base_camera" in refused(tmp_path / "talk")


def test_stale_bag_gives_no_chunk_and_says_so(
    bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    late = edit_bag(bag, tmp_path / "late", delay("/base_camera/image_raw", 100_000_000))
    options = [*QUICK, "-p", "max_age_s=0.05", "--out", str(tmp_path / "out")]
    assert main(["replay", str(late), *options]) == 1
    captured = capsys.readouterr()
    assert "no chunk came" in captured.err
    assert "stale" in captured.out


def test_a_bag_of_another_robot_names_the_joints_that_never_came(
    bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*QUICK, "--robot", "droid", "--prompt", "push", "--out", str(tmp_path / "out")]
    assert main(["replay", str(bag), *options]) == 1
    (note,) = [line for line in capsys.readouterr().out.splitlines() if "missing:" in line]
    assert "joint states lack panda_joint1, " in note
    assert "they have joint1, " in note


def test_offline_needs_no_ros(bag: Path, tmp_path: Path) -> None:
    """Neither rclpy nor any message package is imported."""
    code = (
        "import sys\n"
        "for name in ('rclpy', 'sensor_msgs', 'std_msgs', 'pi05_ros.msg'):\n"
        "    sys.modules[name] = None\n"
        "from pi05_ros.cli.main import main\n"
        f"sys.exit(main(['replay', {str(bag)!r}, '--offline', '--no-plot', '--out', "
        f"{str(tmp_path)!r}]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_interrupt_while_modules_are_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib, "import_module", interrupted)
    assert main(["replay", "bag"]) == 130


def test_interrupt_leaves_nothing(
    bag: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(BagWriter, "write", interrupted)
    assert main(["replay", str(bag), *QUICK, "--out", str(tmp_path)]) == 130
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named_before_any_work(
    bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["replay", str(bag), "--offline", "--out", str(tmp_path)]
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(words) == 2
    assert "not installed: pip install matplotlib" in capsys.readouterr().err
    assert main([*words, "--verify", "/no/chunks"]) == 2  # draws nothing
    assert "/no/chunks" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_nobody_reads_the_output(bag: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        f"{shlex.quote(sys.executable)} -m pi05_ros.cli.main replay {shlex.quote(str(bag))} "
        f"--offline --no-plot --out {shlex.quote(str(tmp_path))} | true",
        shell=True,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""


def test_a_second_replay_does_not_write_into_the_same_folder(
    bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with claim(out):
        assert main(["replay", str(bag), *QUICK, "--out", str(out)]) == 2
    assert "another replay is writing its results" in capsys.readouterr().err
    assert not list(out.iterdir())
    assert main(["replay", str(bag), *QUICK, "--out", str(out)]) == 0
    assert not list(out.glob(".*"))
