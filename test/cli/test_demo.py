"""`pi05 demo` from end to end, shortened."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pi05_ros.bags.chunk_record import read_chunks
from pi05_ros.cli.main import main


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--seconds", "3", "--rate", "5", "--renderer", "ray", "--out", str(tmp_path)]
    code = main(["demo", *options])
    captured = capsys.readouterr()
    chunks = read_chunks(tmp_path / "chunks")
    kept = len(chunks) >= 0.9 * 15
    assert code == (0 if kept else 1), captured.err
    assert "random weights" in captured.out
    assert "rendered with ray" in captured.out
    assert chunks
    assert all(chunk.random_weights for chunk in chunks)
    assert (tmp_path / "replay.png").is_file()
    assert json.loads((tmp_path / "summary.json").read_text())["chunks"] == len(chunks)


def test_wrong_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, text in (
        (["--seconds", "0"], "accepted: 1 to 600"),
        (["--rate", "nan"], "rate_hz is nan"),
        (["--robot", "robby"], "robby"),
        (["--robot", "droid"], "the scene has the joints joint1"),
        (["--checkpoint", ""], "checkpoint is empty"),
    ):
        assert main(["demo", *options, "--out", str(tmp_path)]) == 2
        assert text in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
