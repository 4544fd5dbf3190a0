"""Runs the conformance client as a process and turns its findings into lines of the report."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import util
from typing import Any

from pi05_ros.doctor.checks import Check, Level
from pi05_ros.errors import Pi05Error

START_S = 60.0
ACTIVE_S = 300.0
LEVELS = {"pass": Level.OK, "fail": Level.FAIL, "not applicable": Level.INFO}


class ConformanceError(Pi05Error, RuntimeError):
    """The conformance client cannot run here; the text says why."""


def findings(namespace: str, seconds: float, active: bool) -> list[dict[str, Any]]:
    """Rows of the client: target, name, page, heading, sentence, outcome, seen.

    Raises:
        ConformanceError: there is no ROS 2, or the client failed.

    """
    if util.find_spec("rclpy") is None:
        raise ConformanceError("conformance needs ROS 2: source its setup.bash first")
    command = [sys.executable, "-m", "pi05_ros.conformance.watch", "--namespace", namespace,
               "--seconds", str(seconds), *(["--active"] if active else [])]  # fmt: skip
    limit_s = seconds + START_S + (ACTIVE_S if active else 0.0)
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise ConformanceError(f"the client gave no answer within {limit_s:.0f} s") from None
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        noise = done.stderr.strip().splitlines()
        reason = noise[-1] if noise else f"it ended with code {done.returncode}"
        raise ConformanceError(f"the client failed: {reason}")
    return list(json.loads(lines[-1]))


def checks(rows: Sequence[Mapping[str, Any]]) -> list[Check]:
    """Lines of the report; a broken promise is quoted."""
    return [
        Check(
            f"{row['target']}: {row['name']}",
            LEVELS[row["outcome"]],
            row["seen"],
            f"{row['page']} promises: {row['sentence']}" if row["outcome"] == "fail" else "",
        )
        for row in rows
    ]


def verdict(rows: Sequence[Mapping[str, Any]]) -> tuple[str, bool]:
    """Last line of the report, and whether everything that could be seen was kept."""
    counts = Counter(row["outcome"] for row in rows)
    if not rows:
        return "No policy node and no executor is running here (see --namespace).", False
    text = f"{counts['pass']} promises kept, {counts['fail']} broken, "
    text += f"{counts['not applicable']} not seen in this run."
    return text, not counts["fail"] and counts["pass"] > 0
