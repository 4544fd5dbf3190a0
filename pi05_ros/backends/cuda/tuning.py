"""Kernel choices as data: tile sizes, warps, stages per device, from JSON files in tuning/.

A file is named after the device (`nvidia_h100.json`); a device without one uses `sm<capability>`
and then `default.json`. `"like": "nvidia_h100"` takes what another one says, under the values
beside it. `pi05 tune` writes a file into the user's cache, whose values come first; what it does
not have (it may be of an older version) is taken from ours. Only the numbers differ between
devices, never the code.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pi05_ros.backends.cache import cache_folder
from pi05_ros.small_files import FileError, MissingFileError, read_json

log = logging.getLogger("pi05_ros.cuda")

FOLDER = Path(__file__).parent / "tuning"


def user_folder() -> Path:
    """Where `pi05 tune` keeps its results."""
    return cache_folder("tuning")


def slug(device_name: str) -> str:
    """File name of a device: lower case, memory sizes and form factors dropped."""
    name = device_name.lower().replace("nvidia ", "")
    name = re.sub(r"\b\d+gb\b|\bhbm\d?e?\b|\bpcie\b|\bsxm\d?\b|\bnvl\b", " ", name)
    return "nvidia_" + "_".join(re.findall(r"[a-z0-9]+", name))


@dataclass(frozen=True)
class Tuning:
    """Choices for one device; `source` says where they come from."""

    values: dict[str, Any]
    source: str

    def kernel(self, *path: str) -> dict[str, int]:
        """Options of one kernel, for example ``kernel("denoise", "fp8", "down")``."""
        node: Any = self.values
        for key in path:
            node = node[key]
        return dict(node)

    def by_rows(self, name: str, rows: int) -> dict[str, int]:
        """Options that depend on the number of rows: the first entry with room for `rows`."""
        entries = self.values[name]
        for entry in entries:
            if rows <= entry.get("max_rows", rows):
                return dict(entry)
        return dict(entries[-1])

    def fuses_gate_up(self, mlp_dim: int) -> bool:
        """Whether gate-up and GeGLU of the prefix are one product, which takes whole tiles."""
        kernels = ("fused_gate_up_fp8", "fused_gate_up_bf16")
        tiles = [entry["BN"] for name in kernels for entry in self.values[name]]
        return self.flag("fused_gate_up") and not any(2 * mlp_dim % BN for BN in tiles)

    def flag(self, name: str) -> bool:
        """On/off choice."""
        return bool(self.values[name])


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Recursive update; `over` wins, dictionaries are merged."""
    out = dict(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(out.get(key), dict):
            out[key] = merge(out[key], value)
        else:
            out[key] = value
    return out


def user_file(device: torch.device) -> Path | None:
    """File of `pi05 tune` for a device, which need not exist."""
    if device.type != "cuda":
        return None
    return user_folder() / f"{slug(torch.cuda.get_device_name(device))}.json"


def candidates(device: torch.device) -> list[Path]:
    """Files of ours to look for, best first."""
    if device.type != "cuda":
        return []
    major, minor = torch.cuda.get_device_capability(device)
    name = slug(torch.cuda.get_device_name(device))
    return [FOLDER / f"{name}.json", FOLDER / f"sm{major}{minor}.json"]


def read(path: Path) -> dict[str, Any] | None:
    """Values of one file; None where there is none, or none that can be read."""
    try:
        values = read_json(path)
        if isinstance(values, dict) and "like" in values:
            other = read_json(FOLDER / f"{Path(str(values['like'])).name}.json")
            own = {key: value for key, value in values.items() if key != "like"}
            values = merge(other, own) if isinstance(other, dict) else other
    except MissingFileError:
        return None
    except FileError as error:
        log.warning("kernel choices in %s cannot be read: %s", path, error)
        return None
    if not isinstance(values, dict):
        log.warning("kernel choices in %s cannot be read: no JSON object", path)
        return None
    return values


def load(device: torch.device, override: dict[str, Any] | None = None) -> Tuning:
    """Choices for a device: defaults, our file, the user's and `override`; later ones win."""
    values = read_json(FOLDER / "default.json")
    source = "default.json"
    for path in candidates(device):
        found = read(path)
        if found is not None:
            values, source = merge(values, found), str(path)
            break
    own = user_file(device)
    found = read(own) if own is not None else None
    if found is not None:
        values, source = merge(values, found), str(own)
    if override:
        values = merge(values, override)
    return Tuning(values, source)
