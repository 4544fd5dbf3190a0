"""Whether DDS security (SROS 2) is switched on, complete, and closed to other users."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from pi05_ros.doctor.checks import Check, Level

NAME = "DDS security"
OPEN = "off: any process that reaches this DDS domain can send chunks, joint states and commands"
PRIVATE = "key.pem"
FILES = (PRIVATE, "cert.pem", "identity_ca.cert.pem", "permissions_ca.cert.pem",
         "governance.p7s", "permissions.p7s")  # fmt: skip
"""What an enclave holds, made by `ros2 security create_enclave`."""


def security(environment: Mapping[str, str] = os.environ) -> list[Check]:
    """The variables of SROS 2, the keystore, and each enclave in it."""
    enable = environment.get("ROS_SECURITY_ENABLE", "")
    if enable != "true":
        if enable.lower() in ("true", "1", "yes", "on"):
            return [
                _warn(f"off: ROS_SECURITY_ENABLE is {enable!r}, only true counts",
                      "export ROS_SECURITY_ENABLE=true")
            ]  # fmt: skip
        return [Check(NAME, Level.INFO, OPEN, "docs/security.md has the steps")]
    found = []
    strategy = environment.get("ROS_SECURITY_STRATEGY", "Permissive")
    if strategy != "Enforce":
        found.append(
            _warn(
                f"ROS_SECURITY_STRATEGY is {strategy}: a node without keys starts unprotected",
                "export ROS_SECURITY_STRATEGY=Enforce",
            )
        )
    store = environment.get("ROS_SECURITY_KEYSTORE", "")
    if not store:
        return [*found, _fail("ROS_SECURITY_KEYSTORE is not set",
                              "export ROS_SECURITY_KEYSTORE=FOLDER")]  # fmt: skip
    folder = Path(store) / "enclaves"
    if not folder.is_dir():
        return [*found, _fail(f"{store} is no keystore: it has no folder enclaves",
                              f"ros2 security create_keystore {store}")]  # fmt: skip
    private = Path(store) / "private"
    if private.is_dir():
        found += _readable_by_others(private)
    override = environment.get("ROS_SECURITY_ENCLAVE_OVERRIDE", "")
    enclaves = (
        [folder / override.strip("/")]
        if override
        else sorted(path.parent for path in folder.rglob("cert.pem"))
    )
    if not enclaves:
        found.append(_fail(f"{store} has no enclave",
                           "ros2 security generate_artifacts, see docs/security.md"))  # fmt: skip
    for enclave in enclaves:
        found += _enclave(folder, enclave)
    if not found:
        names = ", ".join(f"/{path.relative_to(folder)}" for path in enclaves)
        found.append(Check(NAME, Level.OK, f"enforced; enclaves {names} in {store}"))
    return found


def _enclave(folder: Path, enclave: Path) -> list[Check]:
    name = f"/{enclave.relative_to(folder)}"
    missing = [file for file in FILES if not (enclave / file).is_file()]
    if missing:
        return [_fail(f"enclave {name} lacks {', '.join(missing)}",
                      f"ros2 security create_enclave {folder.parent} {name}")]  # fmt: skip
    return _readable_by_others(enclave / PRIVATE)


def _readable_by_others(path: Path) -> list[Check]:
    """A private key, or the folder of those that sign, which only its owner may read."""
    mode = stat.S_IMODE(path.stat().st_mode)
    targets = [path] if path.is_file() else [key for key in path.glob("*.pem") if key.is_file()]
    if path.is_dir() and not mode & 0o077:
        return []
    bad = [key for key in targets if stat.S_IMODE(key.stat().st_mode) & 0o077]
    return [
        _warn(f"{key} may be read by others: who has it can take part as that node",
              f"chmod 600 {key}")
        for key in bad
    ]  # fmt: skip


def _warn(detail: str, fix: str) -> Check:
    return Check(NAME, Level.WARN, detail, fix)


def _fail(detail: str, fix: str) -> Check:
    return Check(NAME, Level.FAIL, detail, fix)
