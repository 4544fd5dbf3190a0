"""The page docs/demonstration_to_deployment.md, as one script on the simulated arm."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "demonstration_to_deployment.py"


def test_from_demonstration_to_deployment(tmp_path: Path) -> None:
    pytest.importorskip("av")
    pytest.importorskip("pyarrow")
    command = [sys.executable, str(SCRIPT), str(tmp_path / "out"), "--episodes", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["agreement"]["agrees"]
    assert report["agreement"]["faults"] == []
    assert report["task"]["termination_reason"] == "done"
    assert report["task"]["outcome"] == "success"
    assert report["task"]["chunks"] > 0
