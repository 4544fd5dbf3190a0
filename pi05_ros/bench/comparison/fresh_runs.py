"""One run of `pi05 bench model` in a process of its own, from a given source tree."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pi05_ros.bench.comparison.program_trees import ProgramTree
from pi05_ros.errors import InvalidValueError, Pi05Error
from pi05_ros.small_files import FileError, read_json, read_text

# The folder goes to the front of the path in the process itself: with `-m` the current folder
# would come first, and be compared with itself.
_START = """
import sys
from pathlib import Path
tree = sys.argv.pop(1)
sys.path.insert(0, tree)
import pi05_ros
if not Path(pi05_ros.__file__).resolve().is_relative_to(tree):
    sys.exit(f"pi05_ros comes from {pi05_ros.__file__}, not from {tree}")
from pi05_ros.cli.main import main
sys.exit(main(["bench", "model", *sys.argv[1:]]))
"""
_OURS = ("--json", "--markdown", "--plot")
SECONDS = 1800.0
"""After which a run is given up."""


class RunError(Pi05Error, RuntimeError):
    """A run that gave no figures."""


def check_options(options: Sequence[str]) -> None:
    """Refuse options of `bench model` that a comparison sets itself.

    Raises:
        InvalidValueError: --json, --markdown or --plot.

    """
    for word in options:
        name = word.partition("=")[0]
        if len(name) > 2 and any(ours.startswith(name) for ours in _OURS):
            raise InvalidValueError(f"{word}: not in a comparison, which reads the figures itself")


def fresh_run(tree: ProgramTree, options: Sequence[str], side: str) -> dict[str, Any]:
    """Record of one run: machine, sources, settings, times.

    Args:
        tree: sources.
        options: of `pi05 bench model`.
        side: name of the record, for people.

    Raises:
        RunError: the process failed, or its report lacks figures.

    """
    began = datetime.now(timezone.utc)
    with tempfile.TemporaryDirectory(prefix="pi05_bench_") as folder:
        path = Path(folder) / "report.json"
        words = [sys.executable, "-c", _START, str(tree.folder), *options, "--json", str(path)]
        try:
            done = subprocess.run(
                words, capture_output=True, text=True, check=False, timeout=SECONDS
            )
        except subprocess.TimeoutExpired:
            raise RunError(f"side {side}: no figures after {SECONDS:g} s") from None
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise RunError(f"side {side} ({tree.name()}) ended with {done.returncode}: {last}")
        try:
            return record(read_json(path), tree, options, side, began)
        except (KeyError, IndexError, TypeError, FileError) as error:
            raise RunError(f"side {side} ({tree.name()}): report without {error}") from None


def record(
    report: dict[str, Any], tree: ProgramTree, options: Sequence[str], side: str, time: datetime
) -> dict[str, Any]:
    """What the history keeps of a report of `pi05 bench model`."""
    result = report["results"][-1]
    return {
        "time": time.isoformat(timespec="seconds"),
        "side": side,
        "device": report["device"],
        "driver": driver_version(),
        "torch": report["torch"],
        "python": ".".join(map(str, sys.version_info[:3])),
        "commit": tree.commit,
        "dirty": tree.dirty,
        "sources": tree.sources,
        "settings": list(options),
        "weights": report["weights"],
        "workload": result["workload"],
        "precision": {k: report["precision"][k] for k in ("vision", "prefill", "denoise")},
        "tuning": report.get("tuning"),
        "runs": int(report["runs"]),
        "ready_s": round(float(report["ready_s"]), 3),
        "p50_ms": {name: round(float(t["p50"]), 4) for name, t in result["times_ms"].items()},
        "p99_ms": {name: round(float(t["p99"]), 4) for name, t in result["times_ms"].items()},
    }


def driver_version() -> str | None:
    """Of the NVIDIA kernel module; None where there is none."""
    try:
        text = read_text("/proc/driver/nvidia/version")
    except FileError:
        return None
    found = re.search(r"\b(\d{3,4}(?:\.\d+)+)\b", text)
    return found[1] if found else None
