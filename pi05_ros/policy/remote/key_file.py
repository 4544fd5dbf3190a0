"""API keys in a file that only its owner may read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from pi05_ros.policy.remote.errors import KeyFileError

MAX_KEYS_FILE = 64 * 1024
MIN_KEY_LENGTH = 16


def read_keys(path: Path) -> tuple[bytes, ...]:
    """Keys of a file, one a line; blank lines and lines that start with # do not count.

    Raises:
        KeyFileError: the file is missing, readable by others, empty, or a key is too short.

    """
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_KEYS_FILE:
            raise KeyFileError(
                f"keys file {path} is no regular file of at most {MAX_KEYS_FILE} bytes"
            )
        if found.st_mode & 0o077:
            raise KeyFileError(f"keys file {path} may be read by others: chmod 600 {path}")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise KeyFileError(f"keys file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise KeyFileError(f"keys file {path} is no UTF-8 text") from error
    lines = [line.strip() for line in text.splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise KeyFileError(f"keys file {path} holds no key; one key a line")
    if any(len(key) < MIN_KEY_LENGTH or " " in key for key in keys):
        raise KeyFileError(
            f"keys file {path}: a key is shorter than {MIN_KEY_LENGTH} characters or has a space; "
            "`openssl rand -hex 32` makes one"
        )
    return tuple(key.encode() for key in keys)
