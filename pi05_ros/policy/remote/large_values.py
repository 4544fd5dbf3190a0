"""Pictures of a msgpack frame without a copy: they are cut out before the frame is decoded.

msgpack copies every binary value. Of a request that is nearly all pictures this is most of the
decoding. Here a walk over the headers finds the large values, and what is decoded has a short
stand-in for each. A frame that the walk does not understand is left whole, for msgpack to judge.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack

LARGE = 64 * 1024
"""Bytes from which a binary value is cut out."""
_STAND_IN = 0x35  # type of the extension that stands for one; its data are the number
_MOST = 2000  # values that are walked over; requests with pictures have some dozens


def _sizes() -> tuple[tuple[int, int, int], ...]:
    """For each first byte: bytes of a length behind it, fixed bytes behind that, values within."""
    table = [(0, 0, 0)] * 256
    for n in range(16):
        table[0x80 + n], table[0x90 + n] = (0, 0, 2 * n), (0, 0, n)
    for n in range(32):
        table[0xA0 + n] = (0, n, 0)
    for first, width in ((0xC4, 1), (0xC5, 2), (0xC6, 4), (0xD9, 1), (0xDA, 2), (0xDB, 4)):
        table[first] = (width, 0, 0)
    for first, width in ((0xC7, 1), (0xC8, 2), (0xC9, 4)):
        table[first] = (width, 1, 0)
    for first, fixed in zip(range(0xCA, 0xD4), (4, 8, 1, 2, 4, 8, 1, 2, 4, 8), strict=True):
        table[first] = (0, fixed, 0)
    for n in range(5):
        table[0xD4 + n] = (0, 1 + 2**n, 0)
    for first, width, each in ((0xDC, 2, 1), (0xDD, 4, 1), (0xDE, 2, 2), (0xDF, 4, 2)):
        table[first] = (width, 0, each)
    return tuple(table)


_SIZES = _sizes()


def cut_out(frame: memoryview) -> tuple[bytes, list[memoryview]] | None:
    """A frame with stand-ins, and the large values; None if there is nothing to gain."""
    at, left, begin, end = 0, 1, 0, len(frame)
    parts: list[bytes] = []
    values: list[memoryview] = []
    for _ in range(_MOST):
        if not left:
            break
        if at >= end:
            return None
        first = frame[at]
        width, fixed, within = _SIZES[first]
        left += within - 1
        at += 1 + fixed
        if not width:
            continue
        length = int.from_bytes(frame[at - fixed : at - fixed + width], "big")
        at += width
        if first >= 0xDC:
            left += within * (length - 1)
        elif first == 0xC6 and length >= LARGE:
            if at + length > end:
                return None
            parts += (bytes(frame[begin : at - 5]), bytes((0xD4, _STAND_IN, len(values))))
            values.append(frame[at : at + length])
            at = begin = at + length
        else:
            at += length
    if left or at != end or not 0 < len(values) < 256:
        return None
    parts.append(bytes(frame[begin:]))
    return b"".join(parts), values


def stand_ins(values: list[memoryview]) -> Callable[[int, bytes], Any]:
    """What msgpack asks about extensions of a frame that was cut."""

    def found(code: int, data: bytes) -> Any:
        if code == _STAND_IN and len(data) == 1 and data[0] < len(values):
            return values[data[0]]
        return msgpack.ExtType(code, data)

    return found
