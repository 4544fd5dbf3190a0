"""Identity of weight files: the hash of their bytes, and whether they changed meanwhile.

Weights are read once, into the place where they stay, and hashed in a pass of its own. A file
that is replaced or written in between would give one model the hash of another, so its state on
disk is taken before the first read and compared after the last.
"""

from __future__ import annotations

import hashlib
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pi05_ros.model.checkpoint.discovery import find_files
from pi05_ros.model.errors import CheckpointError

BUFFER = 64 * 2**20
"""Bytes. Between two reads the hash waits for Python's lock, up to 5 ms where others compute."""


@dataclass(frozen=True)
class FileState:
    """What the file system says of one weight file; any write or replacement changes it."""

    path: str
    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int


def file_states(path: str | Path) -> tuple[FileState, ...]:
    """States of a checkpoint's weight files, shards in the order of their names.

    Raises:
        CheckpointError: a file is missing, cannot be looked at or is not a regular one.

    """
    try:
        found = [(file.resolve(), file.stat()) for file in find_files(path)]
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    for file, status in found:
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{file} is not a regular file; accepted: .safetensors files")
    return tuple(
        FileState(str(file), s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)
        for file, s in found
    )


def checkpoint_hash(path: str | Path, since: tuple[FileState, ...] | None = None) -> str:
    """Hash ("sha256:<hex>") of the weight files' bytes, shards in the order of their names.

    Remembered per process for unchanged files.

    Args:
        path: as for `load_checkpoint`.
        since: `file_states` from before the weights were read; the hash is then of what was read.

    Raises:
        CheckpointError: unreadable, or changed since then or while it was hashed.

    """
    states = file_states(path)
    if since is not None and states != since:
        raise _changed(since, states)
    try:
        digest = _hash(states)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    now = file_states(path)
    if now != states:
        raise _changed(states, now)
    return digest


class RunningHash:
    """`checkpoint_hash` in a thread while the weights are read.

    Args:
        path: as for `load_checkpoint`.
        since: `file_states` from before the weights were read.
        known: hash of files in these states; it is not computed then.

    """

    def __init__(
        self, path: str | Path, since: tuple[FileState, ...], known: str | None = None
    ) -> None:
        self._path = path
        self.since = since
        self._found: str | Exception = known or ""
        self._thread = threading.Thread(target=self._compute, name="pi05_hash", daemon=True)
        if known is None:
            self._thread.start()

    @property
    def running(self) -> bool:
        """Whether the hash is not known yet."""
        return self._thread.is_alive()

    def result(self) -> str:
        """The hash, to be asked for when the weights have been read.

        Raises:
            CheckpointError: unreadable, or changed since then.

        """
        if self._thread.ident is not None:
            self._thread.join()
        if isinstance(self._found, Exception):
            raise self._found
        now = file_states(self._path)
        if now != self.since:
            raise _changed(self.since, now)
        return self._found

    def _compute(self) -> None:
        try:
            self._found = checkpoint_hash(self._path, self.since)
        except Exception as error:
            self._found = error


def _changed(before: tuple[FileState, ...], after: tuple[FileState, ...]) -> CheckpointError:
    other = sorted({state.path for state in set(before) ^ set(after)})
    return CheckpointError(f"{', '.join(other)}: changed while it was read; load it again")


@lru_cache(maxsize=16)
def _hash(files: tuple[FileState, ...]) -> str:
    digest = hashlib.sha256()
    size = min(BUFFER, max(1, *(state.size for state in files)))
    # One is filled while the other is hashed.
    filling, hashed = bytearray(size), bytearray(size)
    with ThreadPoolExecutor(1, thread_name_prefix="pi05_hash_reader") as reader:
        for state in files:
            with open(state.path, "rb", buffering=0) as file:
                reading = reader.submit(file.readinto, filling)
                while count := reading.result():
                    filling, hashed = hashed, filling
                    reading = reader.submit(file.readinto, filling)
                    digest.update(memoryview(hashed)[:count])
    return "sha256:" + digest.hexdigest()
