"""JSON file of benchmark runs, to which records are only added.

    {"format": 1, "runs": [{"time": ..., "device": ..., "commit": ..., "p50_ms": {...}, ...}, ...]}

Writers take turns by a lock beside the file, and each leaves a whole file behind.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from pi05_ros.small_files import FileError, MissingFileError, read_json, write_atomically

FORMAT = 1
_NEEDED = ("time", "device", "sources", "workload", "precision", "runs", "p50_ms", "p99_ms")


def read_history(path: Path) -> list[dict[str, Any]]:
    """Records, oldest first; none where there is no file.

    Raises:
        FileError: not a history, or of a format that this version does not know.

    """
    try:
        document = read_json(path)
    except MissingFileError:
        return []
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise FileError(f"{path} is no history of format {FORMAT}, as `pi05 bench compare` writes")
    runs = document.get("runs")
    if not isinstance(runs, list):
        raise FileError(f"{path}: runs is a list")
    for number, run in enumerate(runs):
        missing = [k for k in _NEEDED if not isinstance(run, dict) or k not in run]
        if missing:
            raise FileError(f"{path}: run {number} has no {missing[0]}")
    return runs


def add_to_history(path: Path, records: list[dict[str, Any]]) -> None:
    """Add records behind those that are there.

    Raises:
        FileError: see `read_history`; the file is then left as it is.
        OSError: it cannot be written.

    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # ends with the process, whatever ends it
        runs = [*read_history(path), *records]
        lines = ",\n  ".join(json.dumps(run, sort_keys=True) for run in runs)
        write_atomically(path, f'{{"format": {FORMAT}, "runs": [\n  {lines}\n]}}\n')
    finally:
        os.close(handle)
