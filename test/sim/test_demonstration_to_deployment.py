"""The page docs/demonstration_to_deployment.md, as one script on the simulated arm."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "demonstration_to_deployment.py"


def test_from_demonstration_to_deployment(tmp_path: Path) -> None:
    pytest.importorskip("av")
    pytest.importorskip("pyarrow")
    spec = importlib.util.spec_from_file_location("demonstration_to_deployment", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.main([str(tmp_path / "out"), "--episodes", "1"]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["agreement"]["agrees"]
    assert report["agreement"]["faults"] == []
    assert report["task"]["termination_reason"] == "done"
    assert report["task"]["outcome"] == "success"
    assert report["task"]["chunks"] > 0
