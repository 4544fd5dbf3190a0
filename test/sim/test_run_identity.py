"""Results of different checkpoints are not mixed in one directory."""

from __future__ import annotations

import json
import os

import pytest

from pi05_ros.model import CheckpointError, checkpoint_hash
from pi05_ros.sim.evaluation.run_identity import FILE, RESULT_FILES, claim
from pi05_ros.sim.training.shipped import CHECKPOINT


def with_results(out):
    for name in RESULT_FILES:
        (out / name).write_text("{}\n")


def test_the_same_run_goes_on(tmp_path):
    for _ in range(2):
        claim(tmp_path, "random:tiny", True, benchmark="arm")
        with_results(tmp_path)
    assert json.loads((tmp_path / FILE).read_text())["weights"] == "random:tiny"
    assert all((tmp_path / name).is_file() for name in RESULT_FILES)


@pytest.mark.parametrize(
    ("checkpoint", "facts", "words"),
    [
        ("random:tiny:1", {"scene_seed": 7}, "weights random:tiny, not random:tiny:1"),
        ("random:tiny", {"scene_seed": 8}, "scene_seed 7, not 8"),
    ],
)
def test_another_run_is_refused_or_replaces_the_results(tmp_path, checkpoint, facts, words):
    claim(tmp_path, "random:tiny", True, scene_seed=7)
    claim(tmp_path, checkpoint, True, **facts)  # nothing there yet
    claim(tmp_path, "random:tiny", True, scene_seed=7)
    with_results(tmp_path)
    with pytest.raises(ValueError, match=words):
        claim(tmp_path, checkpoint, True, **facts)
    claim(tmp_path, checkpoint, False, **facts)
    assert not any((tmp_path / name).exists() for name in RESULT_FILES)


def test_results_from_before_there_was_a_note_are_kept(tmp_path):
    with_results(tmp_path)
    claim(tmp_path, "random:tiny", True)
    assert all((tmp_path / name).is_file() for name in RESULT_FILES)


def test_checkpoints_are_told_apart_by_their_contents(tmp_path):
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    for path in CHECKPOINT.glob("*.*"):
        (copy / path.name).write_bytes(path.read_bytes())
    claim(tmp_path, str(CHECKPOINT), True)
    with_results(tmp_path)
    claim(tmp_path, str(copy), True)
    with pytest.raises(CheckpointError):
        claim(tmp_path, str(tmp_path / "none"), True)


def test_damaged_facts_are_named_and_results_put_aside_not_removed(tmp_path):
    claim(tmp_path, "random:tiny", True)
    with_results(tmp_path)
    for text in ("{", "7"):
        (tmp_path / FILE).write_text(text)
        with pytest.raises(ValueError, match=rf"{FILE} does not say.*--no-resume"):
            claim(tmp_path, "random:tiny", True)
    for _ in range(2):  # the second time there is nothing to put aside
        claim(tmp_path, "random:tiny", False)
        assert all((tmp_path / f"{name}.old").read_text() == "{}\n" for name in RESULT_FILES)


def test_who_is_killed_while_noting_it_can_go_on(tmp_path, monkeypatch):
    claim(tmp_path, "random:tiny", True)
    with_results(tmp_path)

    def killed(handle):
        os.ftruncate(handle, 5)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            claim(tmp_path, "random:tiny", True)
    claim(tmp_path, "random:tiny", True)


def test_what_is_no_checkpoint_is_refused_before_it_is_read_whole(tmp_path):
    zeros = tmp_path / "zeros.safetensors"
    zeros.symlink_to("/dev/zero")
    large = tmp_path / "large.safetensors"
    with large.open("wb") as file:
        file.truncate(64 * 2**30)  # hashing it would take minutes
    for path in (zeros, large):
        with pytest.raises(CheckpointError, match=path.name):
            claim(tmp_path / "out", str(path), True)
    with pytest.raises(CheckpointError, match="not a regular file"):
        checkpoint_hash(zeros)
