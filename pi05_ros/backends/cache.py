"""The user's cache folder: where it lies, and that nobody else can put machine code into it.

    $XDG_CACHE_HOME/pi05_ros/       mode 0700
      kernels/                      cubins of the Hopper kernels
      triton/                       what Triton compiles (TRITON_CACHE_DIR)
      trt/                          graphs and TensorRT engines, see `files`
      scales/ tuning/ hashes/       numbers only

Compiled code is loaded again without a question, so a folder of it must belong to us and be closed
to others, whatever the umask was when it was made. One that is not is moved aside and made anew;
where that cannot be, code is compiled into a folder of this process.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import tempfile
import time
from functools import cache
from pathlib import Path

from pi05_ros.backends.errors import BackendError

log = logging.getLogger(__name__)

TRITON_VARIABLE = "TRITON_CACHE_DIR"
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


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


def cache_folder(kind: str) -> Path:
    """Folder of one kind of files; need not exist.

    A user without a home directory gets a new folder of this process: a fixed name in the system's
    temporary folder could be somebody else's.
    """
    place = cache_place()
    return (_folder_of_this_process() if place is None else place) / kind


def code_folder(kind: str) -> Path:
    """Folder for one kind of machine code, for our user only; made where it is missing.

    Args:
        kind: "kernels" or "triton".

    Returns:
        `cache_folder`; or a folder of this process, with a warning, where the user's cannot be
        made or belongs to somebody else.

    """
    folder = cache_folder(kind)
    try:
        _close(folder.parent)
        while True:
            try:
                return private_folder(folder)
            except NotPrivateError as error:
                _move_aside(folder, str(error))
    except (BackendError, OSError) as error:
        log.warning("compiled code is not kept: %s", error)
        return private_folder(_folder_of_this_process() / kind)


def private_triton_cache() -> Path:
    """Have Triton keep its compiled kernels in a folder of ours alone; returns it.

    A TRITON_CACHE_DIR of the user's is left where it is private.
    """
    given = os.environ.get(TRITON_VARIABLE)
    if given:
        try:
            return private_folder(Path(given).absolute())
        except BackendError as error:
            log.warning("%s is not used: %s", TRITON_VARIABLE, error)
    folder = code_folder("triton")
    os.environ[TRITON_VARIABLE] = str(folder)
    return folder


class NotPrivateError(BackendError):
    """A folder or file that somebody else owns or may write."""


def private_folder(path: Path) -> Path:
    """Make a folder for our user only, or check that it is one; folders above are made so too.

    Raises:
        NotPrivateError: it belongs to someone else, or others may write into it.
        BackendError: it cannot be made.

    """
    try:
        _make(path)
    except OSError as error:
        raise BackendError(f"cannot make {path}: {error.strerror or error}") from None
    require_private(path)
    return path


def require_private(path: Path) -> None:
    """Check that a folder or file, and a link to it, is ours and that no other user may write it.

    Raises:
        NotPrivateError: it is not.
        OSError: it is missing.

    """
    status = path.stat()
    if not (os.getuid() == status.st_uid == path.lstat().st_uid):
        raise NotPrivateError(f"{path} belongs to another user; nothing is loaded from there")
    if status.st_mode & _OTHERS_MAY_WRITE:
        raise NotPrivateError(
            f"others may write into {path}; nothing is loaded from there. "
            f"Fix it with: chmod go-w {path}"
        )


def read_private(path: Path, limit: int) -> bytes:
    """Content of a file of at most `limit` bytes that only we can have written, in our folder.

    Raises:
        NotPrivateError: somebody else may have written it; it is no regular file, or a link.
        OSError: missing, unreadable or larger.

    """
    require_private(path.parent)
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with open(os.open(path, flags), "rb") as file:
        status = os.fstat(file.fileno())
        ours = status.st_uid == os.getuid() and not status.st_mode & _OTHERS_MAY_WRITE
        if not (ours and stat.S_ISREG(status.st_mode)):
            raise NotPrivateError(f"{path} may have been written by somebody else")
        if status.st_size > limit:
            raise OSError(errno.EFBIG, f"larger than {limit} bytes", str(path))
        return file.read()


def _make(path: Path) -> None:
    """Make a folder and those above it that are missing, each with mode 0700."""
    if path.is_dir():
        return
    if path.parent != path:
        _make(path.parent)
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        if not path.is_dir():
            raise
    else:
        path.chmod(0o700)  # a umask can take bits of ours away


def _close(folder: Path) -> None:
    """Make the folder that holds the caches, or close one of ours to others."""
    try:
        private_folder(folder)
    except NotPrivateError as error:
        status = folder.stat()
        if status.st_uid != os.getuid() or folder.is_symlink():
            raise
        log.warning("%s; it is closed to them", str(error).partition(";")[0])
        folder.chmod(stat.S_IMODE(status.st_mode) & ~_OTHERS_MAY_WRITE)


def _move_aside(folder: Path, why: str) -> None:
    aside = folder.with_name(f"{folder.name}.untrusted-{os.getpid()}-{time.monotonic_ns()}")
    try:
        folder.rename(aside)
    except FileNotFoundError:  # another process was first
        return
    log.warning("%s. It was moved to %s and is made anew", why.partition(";")[0], aside)


@cache
def _folder_of_this_process() -> Path:
    return Path(tempfile.mkdtemp(prefix="pi05_ros-"))
