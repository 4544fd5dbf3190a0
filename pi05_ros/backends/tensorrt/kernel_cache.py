"""Kernels that TensorRT for RTX compiled for this GPU, kept between starts.

It compiles them when a plan is loaded and run for the first time. A cache of another GPU, driver
or release is refused by the library and then written anew. It is code, and lies in the private
folder of the engines.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from pi05_ros.backends.cache import NotPrivateError, require_private
from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.files import write_atomically
from pi05_ros.small_files import MIB, FileError, read_bytes

KERNELS = "kernels.cache"
LARGEST = 1024 * MIB

log = logging.getLogger(__name__)


class KernelCache:
    """One runtime cache for all engines of a set.

    Args:
        path: file in a folder that only this user can write to.

    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._cache: Any = None
        self._saved = b""

    def attach(self, config: Any) -> None:
        """Make the contexts of an ``IRuntimeConfig`` take kernels from here and add theirs."""
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            self._saved = self._read()
            if self._saved and not self._cache.deserialize(self._saved):
                log.info(
                    "%s is of another GPU, driver or release: kernels compile anew", self.path
                )
                self._saved = b""
        config.set_runtime_cache(self._cache)

    def _read(self) -> bytes:
        """Content of the file; empty where it is missing or may be somebody else's."""
        try:
            require_private(self.path)
            return read_bytes(self.path, LARGEST)
        except NotPrivateError as error:
            log.warning("%s; kernels compile anew", error)
        except (FileError, OSError):
            pass
        return b""

    def save(self) -> None:
        """Write what was compiled since the cache was read; a full disk is logged."""
        if self._cache is None:
            return
        content = bytes(self._cache.serialize())
        if content == self._saved:
            return
        try:
            write_atomically(self.path, content)
        except BackendError as error:
            log.warning("the compiled kernels are not kept: %s", error)
            return
        self._saved = content
