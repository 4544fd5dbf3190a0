"""Files of the TensorRT path: where they lie and how they are written.

    $XDG_CACHE_HOME/pi05_ros/trt/<model>/
      quant/<calibration>/    amax.safetensors calibration.json golden.safetensors
      onnx/<name>/            vision.onnx prefill.onnx denoise_step.onnx (+ .data) export.json
      engines/<engine key>/   *.plan key.json layers_*.json build.log check.json check.md

Engine plans are code for the GPU, so their folders belong to the user alone (mode 0700).
Everything is written to a temporary name and renamed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pi05_ros import small_files
from pi05_ros.backends.cache import cache_place, private_folder
from pi05_ros.backends.errors import BackendError

log = logging.getLogger(__name__)


def cache_root() -> Path:
    """Folder of all models: ``$XDG_CACHE_HOME/pi05_ros/trt``.

    Raises:
        BackendError: the user has no home directory, so nothing would be found again.

    """
    place = cache_place()
    if place is None:
        raise BackendError(
            "this user has no home directory, where graphs and engines are kept; set "
            "XDG_CACHE_HOME to the absolute path of a folder for them"
        )
    return place / "trt"


def model_folder(weights_id: str, root: Path | None = None) -> Path:
    """Folder of one checkpoint; the weights hash makes its name. It need not exist.

    Raises:
        BackendError: see `cache_root`.

    """
    name = "".join(c if c.isalnum() else "_" for c in weights_id)
    return (root or cache_root()) / name[:80]


def make_model_folder(weights_id: str, root: Path | None = None) -> Path:
    """Make the folder of one checkpoint if it is not there, for our user only.

    Its mode does not depend on the umask: engines will lie in it.

    Raises:
        BackendError: it cannot be made.

    """
    path = model_folder(weights_id, root)
    return path if path.is_dir() else private_folder(path)


def require_writable(path: Path) -> None:
    """Refuse a folder that could not be made or written, before hours of work end there.

    Raises:
        BackendError: it, or the nearest one above that exists, is no folder or not writable.

    """
    place = path.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise BackendError(f"cannot write {path}: {place} is not a folder we may write into")


def sha256_file(path: Path) -> str:
    """sha256 of a file's content, hex."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            state.update(block)
    return state.hexdigest()


def _part_of(place: Path) -> Path:
    """Where the files of a folder are written first.

    Inside it once it is there: it may be another disk, in a folder that we may not write into.
    """
    return place / ".part" if place.is_dir() else place.with_name(f".{place.name}.part")


@contextlib.contextmanager
def _alone(part: Path) -> Iterator[None]:
    """Have an empty folder to oneself, then remove it; another process that has it is waited for.

    The lock is on the folder itself and ends with the process, so a killed one leaves no lock.
    """
    while True:
        try:
            private_folder(part)
            handle = os.open(part, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # the one before us has just removed it
            continue
        try:
            _lock(handle, part)
            try:
                ours = os.path.samestat(os.fstat(handle), part.stat())
            except FileNotFoundError:
                ours = False
            if not ours:
                continue
            for left in part.iterdir():  # of a killed process
                left.unlink()
            try:
                yield
            finally:
                shutil.rmtree(part, ignore_errors=True)
            return
        finally:
            os.close(handle)


def _lock(handle: int, part: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.warning("waiting for another process that writes %s", part)
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as error:  # some network disks have no locks
        log.debug("no lock on %s: %s", part, error)


def wait_for_writer(directory: Path) -> bool:
    """Whether another process was writing into a folder; it has ended then."""
    part = _part_of(directory.resolve())
    if not part.is_dir():
        return False
    try:
        with _alone(part):
            return True
    except OSError as error:
        raise BackendError(f"cannot write into {directory}: {error}") from error


@contextlib.contextmanager
def whole_folder(directory: Path, last: str, mode: int = 0o777) -> Iterator[Path]:
    """Folder to write into; its files go to ``directory`` if the block ends well, else nowhere.

    One process at a time; the others wait.

    Args:
        directory: where the files go; older ones of the same names are replaced.
        last: file without which the others do not count; it goes first and comes last.
        mode: of a folder that is made, less the umask.

    Raises:
        BackendError: the disk is full or the folder cannot be written.

    """
    place = directory.resolve()
    part = _part_of(place)
    try:
        with _alone(part):
            yield part
            place.mkdir(parents=True, exist_ok=True, mode=mode)
            (place / last).unlink(missing_ok=True)
            for path in sorted(part.iterdir(), key=lambda path: path.name == last):
                path.replace(place / path.name)
    except OSError as error:
        full = "" if error.errno else "; is the disk full?"  # numpy writes and does not ask why
        raise BackendError(f"cannot write into {directory}: {error}{full}") from error


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write a file; after a crash either the old or the new one exists.

    Raises:
        BackendError: the disk is full or the folder cannot be written.

    """
    try:
        small_files.write_atomically(path, content)
    except OSError as error:
        raise BackendError(f"cannot write {path}: {error.strerror or error}") from None
