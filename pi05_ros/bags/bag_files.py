"""Look at the files of a bag before a storage library opens them.

The libraries open whatever has the right name: a pipe makes them wait forever, an expanding
metadata.yaml fills the memory.
"""

from __future__ import annotations

import re
from pathlib import Path

from pi05_ros.small_files import MIB, FileError, read_text, require_regular
from pi05_ros.strict_yaml import MAX_SIZE, parse_yaml

METADATA = "metadata.yaml"
MAX_METADATA = 32 * MIB
WHOLE = "pi05_whole"
"""Key of the custom data that says whether all that came was written: "true" or "false"."""
LOST = "pi05_lost"
"""Key of the custom data with the messages lost by topic, JSON."""
_ANCHOR = re.compile(r"(?:^|[\s\[{,:-])[&*][^\s]|<<\s*:", re.M)


def require_bag_files(path: Path) -> None:
    """Check a bag file, or a bag folder with its metadata.yaml.

    Raises:
        FileError: a file is no regular one, or metadata.yaml is larger than 32 MiB, is not YAML,
            or uses anchors where it is too large to expand them for a look.

    """
    if not path.is_dir():
        require_regular(path)
        return
    for item in sorted(path.iterdir()):
        if not item.is_dir():
            require_regular(item)
    text = read_text(path / METADATA, MAX_METADATA)
    if len(text) <= MAX_SIZE:
        parse_yaml(text, str(path / METADATA))
    elif _ANCHOR.search(text):
        raise FileError(f"{path / METADATA}: anchors are not accepted in a file of this size")


def bags_in(path: Path) -> list[Path]:
    """The bag at a path, or all bag folders in a folder that is no bag itself, by name."""
    if path.is_dir() and not (path / METADATA).exists():
        inside = sorted(item for item in path.iterdir() if (item / METADATA).is_file())
        if inside:
            return inside
    return [path]
