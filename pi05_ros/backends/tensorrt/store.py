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
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pi05_ros.backends.errors import BackendError


def cache_root() -> Path:
    """Folder of all models: ``$XDG_CACHE_HOME/pi05_ros/trt``."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "pi05_ros" / "trt"


def model_folder(weights_id: str, root: Path | None = None) -> Path:
    """Folder of one checkpoint; the weights hash makes its name."""
    name = "".join(c if c.isalnum() else "_" for c in weights_id)
    return (root or cache_root()) / name[:80]


def private_folder(path: Path) -> Path:
    """Make a folder for our user only, or check that it is one.

    Raises:
        BackendError: it cannot be made, belongs to someone else, or others may write into it.

    """
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise BackendError(f"cannot make {path}: {error.strerror or error}") from None
    require_private(path)
    return path


def require_private(path: Path) -> None:
    """Raise BackendError if a folder belongs to someone else or others may write into it."""
    status = path.stat()
    if status.st_uid != os.getuid():
        raise BackendError(f"{path} belongs to another user; engines are not loaded from there")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise BackendError(
            f"others may write into {path}; engines are not loaded from there. "
            f"Fix it with: chmod go-w {path}"
        )


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


@contextlib.contextmanager
def whole_folder(directory: Path, last: str, mode: int = 0o777) -> Iterator[Path]:
    """Folder to write into; its files go to ``directory`` if the block ends well, else nowhere.

    Args:
        directory: where the files go; older ones of the same names are replaced.
        last: file without which the others do not count; it goes first and comes last.
        mode: of a folder that is made, less the umask.

    Raises:
        BackendError: the disk is full or the folder cannot be written.

    """
    place = directory.resolve()
    part = private_folder(place.with_name(f".{place.name}.part"))
    try:
        yield part
        place.mkdir(parents=True, exist_ok=True, mode=mode)
        (place / last).unlink(missing_ok=True)
        for path in sorted(part.iterdir(), key=lambda path: path.name == last):
            path.replace(place / path.name)
    except OSError as error:
        raise BackendError(f"cannot write into {directory}: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write beside the target, flush to disk, rename. Never leaves half a file.

    Raises:
        BackendError: the disk is full or the folder cannot be written.

    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise BackendError(f"cannot write {path}: {error.strerror or error}") from None
