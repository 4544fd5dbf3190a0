"""Results that are added one by one, a JSON line each, so that a run that was cut off goes on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pi05_ros.small_files import MIB, parse_json, read_bytes

Row = dict[str, Any]
MAX_SIZE = 512 * MIB


def read(path: Path) -> dict[str, Row]:
    """Key -> row of an earlier run; the later of two counts.

    Lines that are none, as the last one of a run that was cut off, are left out.

    Raises:
        FileError: something other than a file is there, or it is too large.

    """
    found: dict[str, Row] = {}
    if not os.path.lexists(path):
        return found
    text = read_bytes(path, MAX_SIZE).decode("utf-8", "replace")
    for number, line in enumerate(text.splitlines(), 1):
        try:
            entry = parse_json(line, f"{path}, line {number},")
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
