"""Read small files that may be anything (pipes, devices, huge, deeply nested); write them whole.

Everything the package reads apart from weights, bags and engines comes through here: regular files
only, up to a stated size, JSON without duplicate keys and up to a stated depth. Every failure is a
`FileError` whose text names the file and the reason. `strict_yaml` does the same for YAML.
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pi05_ros.errors import Pi05Error

MIB = 2**20
MAX_SIZE = 16 * MIB
"""Default limit of a file, bytes."""
MAX_DEPTH = 64
"""Default limit of lists and objects inside one another."""
_LFS = b"version https://git-lfs.github.com/spec/"
_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


class FileError(Pi05Error, ValueError):
    """A file that cannot be used; the text starts with its path and says why."""


class MissingFileError(FileError):
    """There is no such file, or it is a link to nothing."""


def require_regular(path: str | Path, limit: int | None = None) -> os.stat_result:
    """Status of a regular file, links followed; nothing is opened.

    Args:
        path: of the file.
        limit: most bytes that it may have; None accepts any size.

    Raises:
        FileError: anything else: missing, a directory, a pipe, a device, a socket, a larger file.

    """
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        if os.path.islink(path):
            target = os.readlink(path)
            raise MissingFileError(f"{path} is a link to {target}, which does not exist") from None
        raise MissingFileError(f"{path} does not exist") from None
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # a null character
        raise FileError(f"{path!s} is not a path: {error}") from None
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for check, name in _KINDS if check(status.st_mode)), "no file")
        raise FileError(f"{path} is {kind}; accepted: a regular file")
    if limit is not None and status.st_size > limit:
        size = _size(status.st_size)
        raise FileError(f"{path} has {size}; accepted: up to {_size(limit)}")
    return status


def read_bytes(path: str | Path, limit: int = MAX_SIZE) -> bytes:
    """Content of a regular file of at most ``limit`` bytes.

    Raises:
        FileError: not a regular file, larger, unreadable, or a Git LFS pointer.

    """
    require_regular(path)
    try:
        # Not blocking: the path may have become a pipe since it was looked at.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        with open(handle, "rb") as file:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise FileError(f"{path} is no regular file any more")
            content = b"" if status.st_size > limit else file.read(limit + 1)
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}") from None
    size = max(status.st_size, len(content))
    if size > limit:
        raise FileError(f"{path} has {_size(size)}; accepted: at most {_size(limit)}")
    if content.startswith(_LFS):
        raise FileError(
            f"{path} is a Git LFS pointer, not the file itself; fetch it with: git lfs pull"
        )
    return content


def read_text(path: str | Path, limit: int = MAX_SIZE) -> str:
    """Text of a UTF-8 file, with or without byte order mark.

    Raises:
        FileError: see `read_bytes`; or not UTF-8.

    """
    content = read_bytes(path, limit)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise FileError(
            f"{path} is not text in UTF-8: byte 0x{content[error.start]:02x} in line {line}"
        ) from None


def read_json(
    path: str | Path, limit: int = MAX_SIZE, *, max_depth: int | None = MAX_DEPTH
) -> Any:
    """Value of a JSON file.

    Raises:
        FileError: see `read_text` and `parse_json`.

    """
    return parse_json(read_text(path, limit), str(path), max_depth=max_depth)


def parse_json(text: str | bytes, where: str, *, max_depth: int | None = MAX_DEPTH) -> Any:
    """Value of a JSON text.

    Args:
        text: one JSON value; bytes are UTF-8.
        where: what it is or where it comes from, for the error.
        max_depth: of lists and objects inside one another; None only for large files whose
            depth does not matter: the interpreter's own limit still holds.

    Raises:
        FileError: not JSON, a key twice in one object, numbers of thousands of digits, too deep.

    """
    try:
        value = json.loads(text, object_pairs_hook=_no_duplicates)
    except RecursionError:
        raise FileError(f"{where} is nested too deeply; {_accepted(max_depth)}") from None
    except json.JSONDecodeError as error:
        raise FileError(
            f"{where} is not valid JSON: line {error.lineno}, column {error.colno}: {error.msg}"
        ) from None
    except ValueError as error:  # duplicate keys, UTF-8, int's limit of digits
        raise FileError(f"{where} is not valid JSON: {error}") from None
    if max_depth is not None and _deeper(value, max_depth):
        raise FileError(f"{where} is nested too deeply; {_accepted(max_depth)}")
    return value


def write_atomically(path: Path, content: str | bytes | memoryview) -> None:
    """Write a file, making its folder; after a crash either the old or the new file exists.

    Args:
        path: the file.
        content: text is written as UTF-8.

    Raises:
        OSError: the disk is full, or the folder cannot be made or written.

    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the key {name!r} occurs twice in one object")
        found[name] = value
    return found


def _deeper(value: Any, depth: int) -> bool:
    """Whether lists and objects lie more than ``depth`` inside one another."""
    level: list[Any] = [value]
    for _ in range(depth + 1):
        level = list(_inside(level))
        if not level:
            return False
    return True


def _inside(level: list[Any]) -> Iterator[Any]:
    for item in level:
        values = item.values() if isinstance(item, dict) else item
        if isinstance(item, dict | list):
            yield from (child for child in values if isinstance(child, dict | list))


def _accepted(max_depth: int | None) -> str:
    return f"accepted: at most {MAX_DEPTH if max_depth is None else max_depth} levels"


def _size(count: int) -> str:
    return f"{count} bytes" if count < 10 * 1024 else f"{count / MIB:.1f} MiB"
