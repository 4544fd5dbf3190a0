"""Where the backend keeps files of its own between runs: scales, tuning results, kernels."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from pi05_ros.backends.cache import cache_place


def cache_folder(kind: str) -> Path:
    """``$XDG_CACHE_HOME/pi05_ros/<kind>``, else under ``~/.cache``; need not exist.

    A user without a home directory (a container's numeric user) gets a new folder of this process:
    a fixed name in the system's temporary folder could be somebody else's, and holds machine code.
    """
    return (cache_place() or _folder_of_this_process()) / kind


@cache
def _folder_of_this_process() -> Path:
    return Path(tempfile.mkdtemp(prefix="pi05_ros-"))
