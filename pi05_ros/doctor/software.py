"""Checks of Python, ROS 2, the middleware and where DDS may talk to."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata, util

from pi05_ros.doctor.checks import Check, Level, ask

SETUP = "bash scripts/setup_env.sh run && source .venv/ros_env.sh"
OLDEST, NEWEST = (3, 10), (3, 13)
NEEDED = {
    "numpy": "numpy",
    "safetensors": "safetensors",
    "PIL": "pillow",
    "yaml": "pyyaml",
    "rich": "rich",
    "rosbags": "rosbags",
}
_RMW = """
import json, rclpy
from rclpy.utilities import get_rmw_implementation_identifier
print(json.dumps(get_rmw_implementation_identifier()))
"""
_MESSAGES = """
import json
from rclpy.type_support import check_for_type_support
from pi05_ros.msg import ActionChunk
check_for_type_support(ActionChunk)
print(json.dumps("ok"))
"""


def python() -> list[Check]:
    """Interpreter and the plain Python packages."""
    version = platform.python_version()
    fits = OLDEST <= sys.version_info[:2] <= NEWEST
    checks = [
        Check(
            "Python",
            Level.OK if fits else Level.FAIL,
            f"{version} ({sys.executable})",
            "" if fits else "use Python 3.10 to 3.13: PYTHON=python3.12 " + SETUP,
        )
    ]
    lacking = [package for module, package in NEEDED.items() if not _there(module)]
    if lacking:
        checks.append(
            Check(
                "Python packages",
                Level.FAIL,
                f"missing: {', '.join(lacking)}",
                f"{sys.executable} -m pip install {' '.join(lacking)}",
            )
        )
    if not _there("simplejpeg"):
        checks.append(
            Check(
                "strict JPEG",
                Level.WARN,
                "simplejpeg is missing: JPEGs with a damaged scan are not refused",
                f"{sys.executable} -m pip install simplejpeg",
            )
        )
    return checks


def ros() -> list[Check]:
    """rclpy, the middleware, this package's messages, discovery."""
    if not _there("rclpy"):
        return [
            Check(
                "ROS 2",
                Level.FAIL,
                "rclpy is not importable (pi05 replay --offline still works)",
                f"source /opt/ros/<distro>/setup.bash, or without a ROS install: {SETUP}",
            )
        ]
    distro = os.environ.get("ROS_DISTRO", "")
    prefix = os.environ.get("AMENT_PREFIX_PATH", "")
    if not prefix:
        return [
            Check(
                "ROS 2",
                Level.FAIL,
                "rclpy is installed but its environment is not set (AMENT_PREFIX_PATH is empty)",
                "source /opt/ros/<distro>/setup.bash or source .venv/ros_env.sh",
            )
        ]
    checks = [Check("ROS 2", Level.OK, f"{distro or 'unknown distro'}, rclpy {_version('rclpy')}")]
    try:
        checks.append(Check("RMW", Level.OK, str(ask(_RMW))))
    except RuntimeError as error:
        chosen = os.environ.get("RMW_IMPLEMENTATION", "the default")
        checks.append(
            Check(
                "RMW",
                Level.FAIL,
                f"{chosen} does not start: {error}",
                "export RMW_IMPLEMENTATION=rmw_fastrtps_cpp",
            )
        )
    try:
        ask(_MESSAGES)
        checks.append(
            Check("pi05_ros messages", Level.OK, "ActionChunk and its type support load")
        )
    except RuntimeError as error:
        checks.append(
            Check(
                "pi05_ros messages",
                Level.FAIL,
                f"not built or not sourced: {error}",
                "colcon build --packages-select pi05_ros && source install/setup.bash, or "
                + SETUP,
            )
        )
    return [*checks, *discovery(), *pictures_in_shared_memory()]


def pictures_in_shared_memory() -> list[Check]:
    """Fast DDS's default shared memory is smaller than a raw 640x480 image."""
    if os.environ.get("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp") != "rmw_fastrtps_cpp":
        return []
    variables = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
    profile = next((os.environ[name] for name in variables if os.environ.get(name)), None)
    if profile is not None:
        return [Check("Fast DDS profile", Level.OK, profile)]
    from pi05_ros.resources import config_dir

    return [
        Check(
            "Fast DDS profile",
            Level.INFO,
            "none: images above 512 kB between processes of this machine leave shared memory, "
            "and best-effort readers lose many of them",
            "where the camera driver starts: export "
            f"FASTRTPS_DEFAULT_PROFILES_FILE={config_dir() / 'fastdds_images.xml'}",
        )
    ]


def discovery() -> list[Check]:
    """How far DDS reaches."""
    domain = os.environ.get("ROS_DOMAIN_ID", "0 (default)")
    reach = os.environ.get("ROS_AUTOMATIC_DISCOVERY_RANGE", "")
    only_here = os.environ.get("ROS_LOCALHOST_ONLY", "") == "1"
    where = f"domain {domain}, discovery range {reach or 'SUBNET (default)'}"
    if reach.upper() == "OFF":
        return [
            Check(
                "DDS discovery",
                Level.WARN,
                f"{where}: nodes do not find each other",
                "export ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST",
            )
        ]
    if reach.upper() == "LOCALHOST" or only_here:
        return [Check("DDS discovery", Level.OK, f"{where}: stays on this machine")]
    return [
        Check(
            "DDS discovery",
            Level.INFO,
            f"{where}: every machine of this network with the same domain takes part",
            "to stay on this machine: export ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST",
        )
    ]


def _there(module: str) -> bool:
    try:
        return util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _version(package: str) -> str:
    for name in (package, f"ros-{package}"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "(version unknown)"
