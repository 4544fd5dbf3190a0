"""Where files of our own are kept between runs: XDG_CACHE_HOME, else the home directory."""

from __future__ import annotations

import os
from pathlib import Path


def cache_place() -> Path | None:
    """``$XDG_CACHE_HOME/pi05_ros``, else ``~/.cache/pi05_ros``; need not exist.

    None: this user has no home directory. Containers are often run as a number that no user
    belongs to; nothing of theirs lasts.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # the XDG specification: relative paths are to be ignored
        return Path(base) / "pi05_ros"
    try:
        return Path.home() / ".cache" / "pi05_ros"
    except RuntimeError:
        return None
