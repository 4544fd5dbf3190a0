"""Where the package's data files (config/) are, in a source tree and in an installed package."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pi05_ros.errors import ResourceError


def config_dir() -> Path:
    """Directory that holds ``robots/`` and the parameter files.

    Looked for in this order: next to the package (source tree), ``share/pi05_ros/config`` of
    every prefix in AMENT_PREFIX_PATH (ROS installs), and of Python's own prefix (pip installs).

    Raises:
        ResourceError: none of them exists; the message lists them.

    """
    source = Path(__file__).resolve().parents[1] / "config"
    prefixes = [Path(p) for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p]
    # <prefix>/lib/pythonX.Y/site-packages/pi05_ros/resources.py -> <prefix>
    parents = Path(__file__).resolve().parents
    prefixes += [parents[4]] if len(parents) > 4 else []
    prefixes.append(Path(sys.prefix))
    candidates = [source, *(prefix / "share" / "pi05_ros" / "config" for prefix in prefixes)]
    for candidate in candidates:
        if (candidate / "robots").is_dir():
            return candidate
    raise ResourceError(
        "the config directory of pi05_ros was not found; looked in: "
        + ", ".join(str(c) for c in dict.fromkeys(candidates))
    )


def robots_dir() -> Path:
    """Directory of the shipped robot profiles."""
    return config_dir() / "robots"
