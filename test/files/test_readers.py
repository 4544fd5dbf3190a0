"""Every small file the package reads: wrong kinds of files are refused by name, and none hangs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pi05_ros.backends.cuda import scales, tuning
from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.export.export_document import read_export
from pi05_ros.backends.quantization.calibration import Calibration
from pi05_ros.backends.quantization.samples import load_samples
from pi05_ros.bags.bag import Bag
from pi05_ros.bags.clockmap import ClockMap
from pi05_ros.bags.play_plan import PlayPlan
from pi05_ros.errors import Pi05Error
from pi05_ros.execution.limits import limits_from_yaml
from pi05_ros.model import load_checkpoint
from pi05_ros.policy.checkpoints.norm_stats import read_norm_stats
from pi05_ros.policy.checkpoints.recipe import read_json
from pi05_ros.policy.prompt.tokenizer import load_tokenizer
from pi05_ros.policy.robots.profile_yaml import load_profile
from pi05_ros.sim.evaluation import results_file
from pi05_ros.sim.evaluation.run_identity import claim
from pi05_ros.sim.training.shipped import CHECKPOINT

DEEP = "[" * 100_000
OBJECTS = '{"a":' * 100_000
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)
MERGE_BOMB = "a0: &a0 {k: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12)
)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def directory(path: Path) -> None:
    path.mkdir()


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(8 * 10**9)


def broken_link(path: Path) -> None:
    path.symlink_to(path.parent / "gone")


def containing(text: str | bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(text.encode() if isinstance(text, str) else text) and None


FILES = {
    "pipe": pipe,
    "endless": endless,
    "directory": directory,
    "huge": huge,
    "broken link": broken_link,
    "not UTF-8": containing(b"\xe9"),
    "empty": containing(""),
    "lfs": containing("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"),
}
JSON = {
    **FILES,
    "deep": containing(DEEP),
    "objects": containing(OBJECTS),
    "closed": containing("[" * 100_000 + "]" * 100_000),
    "inside": containing('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"),
    "digits": containing("9" * 6000),
    "list": containing("[]"),
}
YAML = {
    **FILES,
    "deep": containing(DEEP),
    "bomb": containing(BOMB),
    "merges": containing(MERGE_BOMB),
    "itself": containing("a: &a [*a]"),
    "twice": containing("a: 1\na: 2"),
    "number": containing("5: 1"),
}


def model_with_config(path: Path) -> None:
    shutil.copy(CHECKPOINT / "model.safetensors", path.parent)
    load_checkpoint(path.parent)


def identity(path: Path) -> None:
    (path.parent / "episodes.jsonl").write_text("")
    (path.parent / "results.jsonl").write_text("")
    claim(path.parent, "random:tiny", resume=True)


READERS: dict[str, tuple[str, Callable[[Path], object], dict[str, Callable[[Path], None]]]] = {
    "profile": ("robot.yaml", load_profile, YAML),
    "limits": ("limits.yaml", limits_from_yaml, YAML),
    "bag": ("metadata.yaml", lambda path: Bag(path.parent), YAML),
    "bag file": ("bag_0.mcap", Bag, FILES),
    "norm_stats": ("norm_stats.json", read_norm_stats, JSON),
    "config.json": ("config.json", read_json, JSON),
    "model config": ("config.json", model_with_config, JSON),
    "index": ("model.safetensors.index.json", load_checkpoint, JSON),
    "weights": ("model.safetensors", load_checkpoint, JSON),
    "SentencePiece": ("t.model", lambda path: load_tokenizer(path, None, 2**31), FILES),
    "tokenizer.json": ("t.json", lambda path: load_tokenizer(path, None, 2**31), JSON),
    "calibration": ("calibration.json", lambda path: Calibration.load(path.parent), JSON),
    "scales": (
        "scales.json",
        lambda path: scales.ActivationScales.load(path.with_suffix("")),
        JSON,
    ),
    "export": ("export.json", lambda path: read_export(path.parent), JSON),
    "samples": ("golden.safetensors", load_samples, FILES),
    "play plan": ("plan.json", PlayPlan.read, {k: v for k, v in JSON.items() if k != "list"}),
    "run.json": ("run.json", identity, {k: v for k, v in JSON.items() if k != "list"}),
}
CASES = [(name, kind) for name, (_, _, kinds) in READERS.items() for kind in kinds]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("name", "kind"), CASES, ids=lambda value: value.replace(" ", "-"))
def test_it_is_refused_with_one_error_that_names_it(name, kind, tmp_path):
    file, read, kinds = READERS[name]
    path = tmp_path / file
    kinds[kind](path)
    with pytest.raises(Pi05Error) as caught:
        read(path)
    wanted = "robot" if name == "profile" else str(tmp_path)  # a profile that is read has a name
    assert wanted in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", FILES)
def test_a_bag_folder_with_such_a_file(kind, tmp_path):
    folder = tmp_path / "bag"
    folder.mkdir()
    (folder / "metadata.yaml").write_text("rosbag2_bagfile_information: {}\n")
    FILES[kind](folder / "bag_0.mcap")
    with pytest.raises(Pi05Error):
        Bag(folder)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", JSON)
def test_tuning_that_cannot_be_read_is_left_out(kind, tmp_path, caplog):
    path = tmp_path / "gpu.json"
    JSON[kind](path)
    assert tuning.read(path) is None
    if kind != "broken link":
        assert "gpu.json" in caplog.text


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["pipe", "endless", "directory", "huge", "broken link"])
def test_results_of_that_kind(kind, tmp_path):
    path = tmp_path / "results.jsonl"
    JSON[kind](path)
    with pytest.raises(Pi05Error, match=r"results\.jsonl"):
        results_file.read(path)


def test_bad_lines_of_results_are_left_out(tmp_path):
    path = tmp_path / "results.jsonl"
    good = b'{"key": "a", "row": {"x": 1}}\n'
    lines = [DEEP.encode(), OBJECTS.encode(), b"\xff", b"9" * 6000, b"[]", b'{"key": 1}']
    path.write_bytes(b"\n".join(lines) + b"\n" + good)
    assert results_file.read(path) == {"a": {"x": 1}}


def test_a_clock_map_that_is_none_is_an_error(tmp_path):
    path = tmp_path / "clock.json"
    path.write_text(DEEP)
    with pytest.raises(Pi05Error, match=r"clock\.json"):
        ClockMap.read(path)


def test_a_missing_export_says_how_to_make_one(tmp_path):
    with pytest.raises(BackendError, match="pi05 export"):
        read_export(tmp_path)
