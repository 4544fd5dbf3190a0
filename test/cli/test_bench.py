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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("node --duration 0", "accepted: 2 to"),
        ("node --cameras 0", "--cameras is 0; accepted: 1 to 2 for robot sim_arm"),
        ("node --cameras 9", "--cameras is 9; accepted: 1 to 2"),
        ("node --camera-hz 0", "--camera-hz is 0.0; accepted: 0.1 to 1000"),
        ("node --joint-hz nan", "--joint-hz is nan; accepted: 0.1 to"),
        ("node --width 0", "--width is 0; accepted: 1 to"),
        ("prompt --ticks 0", "--ticks 0; accepted: 0 to 1000 states, 1 to"),
        ("prompt --states -1", "--states is -1"),
        ("prompt --tokenizer /nowhere", "tokenizer /nowhere does not exist"),
    ],
)
def test_bad_options(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words.split()]) == 2
    assert said in capsys.readouterr().err
