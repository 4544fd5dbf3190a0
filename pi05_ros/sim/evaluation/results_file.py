"""Results that are added one by one, a JSON line each, so that a run that was cut off goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def read(path: Path) -> dict[str, Row]:
    """Key -> row of an earlier run; the later of two counts.

    Lines that are none, as the last one of a run that was cut off, are left out.
    """
    found = {}
    lines = path.read_text("utf-8", errors="replace").splitlines() if path.is_file() else ()
    for line in lines:
        try:
            entry = json.loads(line)
            found[str(entry["key"])] = dict(entry["row"])
        except (ValueError, TypeError, KeyError):
            continue
    return found


def append(path: Path, key: str, row: Row) -> None:
    """Add a row as a line of its own, also after one that was cut off."""
    with path.open("a+b") as file:
        line = json.dumps({"key": key, "row": row}).encode() + b"\n"
        if file.tell():
            file.seek(-1, 2)
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.write(line)
