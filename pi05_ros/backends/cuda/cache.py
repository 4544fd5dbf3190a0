"""Where the backend keeps files of its own between runs: scales, tuning results, kernels."""

from __future__ import annotations

import os
import tempfile
from functools import cache
from pathlib import Path


def cache_folder(kind: str) -> Path:
    """``$XDG_CACHE_HOME/pi05_ros/<kind>``, else under ``~/.cache``; need not exist.

    A user without a home directory (a container's numeric user) gets a new folder of this process:
    a fixed name in the system's temporary folder could be somebody else's, and holds machine code.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # the XDG specification: relative paths are to be ignored
        return Path(base) / "pi05_ros" / kind
    try:
        return Path.home() / ".cache" / "pi05_ros" / kind
    except RuntimeError:
        return _folder_of_this_process() / kind


@cache
def _folder_of_this_process() -> Path:
    return Path(tempfile.mkdtemp(prefix="pi05_ros-"))
