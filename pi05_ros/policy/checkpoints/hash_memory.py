"""Hashes of weight files that this user's processes have computed, for the next start.

Hashing 6.5 GB takes longer than reading them to a GPU and warming up. What is remembered holds
for files whose state on disk (inode, size, times of change to the nanosecond) is the one that was
hashed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pi05_ros.backends.cache import cache_place, private_folder, require_private
from pi05_ros.backends.errors import BackendError
from pi05_ros.model.checkpoint.file_hash import FileState
from pi05_ros.small_files import FileError, read_json

SMALL_BYTES = 64 * 2**20
"""Hashed anew: that takes no time."""
SETTLED_NS = 10 * 10**9
"""A file that was changed later than this before might change again without another time."""


def _file(states: Sequence[FileState]) -> Path | None:
    """Where the hash of these files is kept; None where nothing lasts."""
    place = cache_place()
    if place is None:
        return None
    names = "\0".join(state.path for state in states)
    return place / "hashes" / f"{hashlib.sha256(names.encode()).hexdigest()[:32]}.json"


def remembered(states: Sequence[FileState]) -> str | None:
    """Hash of files in these states, if it is known."""
    path = _file(states)
    if path is None:
        return None
    try:
        require_private(path.parent)
        require_private(path)
        found = read_json(path)
    except (BackendError, FileError, OSError):
        return None
    if not isinstance(found, dict) or found.get("files") != [asdict(state) for state in states]:
        return None
    digest = found.get("hash")
    known = isinstance(digest, str) and re.fullmatch(r"sha256:[0-9a-f]{64}", digest)
    return str(digest) if known else None


def remember(states: Sequence[FileState], digest: str) -> None:
    """Keep the hash of files in these states, unless it is quickly made or they are too new."""
    newest_ns = max(state.changed_ns for state in states)
    path = _file(states)
    if (
        path is None
        or sum(state.size for state in states) < SMALL_BYTES
        or time.time_ns() - newest_ns < SETTLED_NS
    ):
        return
    text = json.dumps({"hash": digest, "files": [asdict(state) for state in states]}) + "\n"
    with contextlib.suppress(BackendError, OSError):  # nothing is lost but time
        private_folder(path.parent)
        handle, partial = tempfile.mkstemp(dir=path.parent)  # readable by this user alone
        try:
            with open(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(partial, path)
        except OSError:
            os.unlink(partial)
            raise
