"""`pi05 bench`: dispatch, and a short run of the node benchmark."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pi05_ros.cli.main import main


def test_node_benchmark_reports_its_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--duration", "2", "--width", "64", "--height", "48", "--out", str(tmp_path)]
    assert main(["bench", "node", *options, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["chunks"] > 5
    assert report["overhead_ms"]["p50"] > 0
    assert set(report["delivered"]) == {"base_camera", "wrist_camera", "joint_states"}
    assert report["cpu_share"] > 0
    assert len(report["limits"]) == 4


def test_unknown_benchmark() -> None:
    with pytest.raises(SystemExit) as caught:
        main(["bench", "coffee"])
    assert caught.value.code == 2


def test_bad_duration(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "node", "--duration", "0"]) == 2
    assert "accepted: 2 to" in capsys.readouterr().err
