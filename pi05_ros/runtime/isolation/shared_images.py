"""Memory that node and engine process share: a heartbeat and a ring of two observations.

The memory is an anonymous file that exists as long as one of the two holds it, so that nothing is
left behind, whichever process is killed. Pages that were never written cost nothing.

Layout: 64 bytes with the heartbeat counter, then the slots. A slot holds the images of one
observation one after the other, then its state as float64.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from pi05_ros.runtime.isolation.errors import IsolationError

SLOTS = 2
SLOT_BYTES = 96 * 2**20
HEADER_BYTES = 4096
TOTAL_BYTES = HEADER_BYTES + SLOTS * SLOT_BYTES
_COUNTER = struct.Struct("<Q")


def make_file() -> int:
    """Descriptor of a fresh anonymous file of the right size."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("pi05_ros_engine")
    else:  # not Linux
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        os.ftruncate(descriptor, TOTAL_BYTES)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


class SharedImages:
    """The mapped memory, in either process.

    Args:
        descriptor: from `make_file`; stays the caller's.

    """

    def __init__(self, descriptor: int) -> None:
        self._map = mmap.mmap(descriptor, TOTAL_BYTES)

    def beat(self) -> None:
        """Engine: show that the process is alive."""
        _COUNTER.pack_into(self._map, 0, self.beats() + 1)

    def beats(self) -> int:
        """Heartbeats so far."""
        return int(_COUNTER.unpack_from(self._map, 0)[0])

    def write(
        self, slot: int, images: Mapping[str, np.ndarray], state: np.ndarray
    ) -> tuple[list[Any], list[Any]]:
        """Node: copy an observation into a slot.

        Args:
            slot: 0 or 1.
            images: role -> array ``[H, W, 3]`` or ``[3, H, W]`` of any dtype that numpy names.
            state: ``[n]``.

        Returns:
            Where things are, for `read`: per image role, offset, dtype, shape; and the same of
            the state without a role.

        Raises:
            IsolationError: they do not fit.

        """
        start = HEADER_BYTES + slot * SLOT_BYTES
        offset, end = start, start + SLOT_BYTES
        places = []
        for role, image in images.items():
            places.append([role, *self._put(offset, end, image)])
            offset = -(-(offset + image.nbytes) // 64) * 64
        return places, self._put(offset, end, np.asarray(state, np.float64))

    def read(
        self, places: list[Any], state: list[Any]
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Engine: views of an observation; images are valid until the slot is written again."""
        images = {role: self._view(*place) for role, *place in places}
        return images, self._view(*state).copy()

    def close(self) -> None:
        """Unmap; views that are still held keep the memory."""
        with contextlib.suppress(BufferError):  # freed with the last view
            self._map.close()

    def _put(self, offset: int, end: int, array: np.ndarray) -> list[Any]:
        if array.dtype.hasobject or offset + array.nbytes > end:
            raise IsolationError(
                f"an observation of more than {SLOT_BYTES >> 20} MiB or of {array.dtype} does not "
                "fit; use smaller images, or isolation:=thread"
            )
        self._view(offset, array.dtype.str, list(array.shape))[...] = array
        return [offset, array.dtype.str, list(array.shape)]

    def _view(self, offset: int, dtype: str, shape: list[int]) -> np.ndarray:
        return np.ndarray(tuple(shape), np.dtype(dtype), self._map, offset)
