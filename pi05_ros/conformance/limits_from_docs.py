"""Joint limits as docs/executor.md describes the files: what a user would read from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pi05_ros.conformance.heard import Limit
from pi05_ros.small_files import FileError
from pi05_ros.strict_yaml import read_yaml


def read_limits(parameters: Mapping[str, Any]) -> dict[str, Limit]:
    """Limits by joint from the executor's `limits_file`; empty if it cannot be read from here.

    Numbers from other sources stay unknown, so that only what a file says is checked.
    """
    path = parameters.get("limits_file")
    if not path or not Path(path).is_file():
        return {}
    try:
        joints = read_yaml(path)["joint_limits"]
    except (FileError, OSError, KeyError, TypeError):
        return {}
    return {
        str(name): Limit(*(_number(values, key) for key in ("min_position", "max_position",
                                                             "max_velocity", "max_acceleration")))
        for name, values in joints.items()
        if isinstance(values, Mapping)
    }  # fmt: skip


def _number(values: Mapping[str, Any], key: str) -> float | None:
    value = values.get(key)
    if values.get(f"has_{key.removeprefix('max_')}_limits") is False:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if value or "position" in key else None  # 0 is "not given"
