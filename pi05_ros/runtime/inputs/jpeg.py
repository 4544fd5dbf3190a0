"""Strict JPEG decoding: an image with a damaged scan is refused instead of half gray.

libjpeg-turbo through simplejpeg; equal to Pillow bit for bit, which uses the same library and
tells nothing about damage. Where simplejpeg is not installed Pillow decodes, and damage inside the
scan passes. EXIF orientation is not applied: cameras on robots do not set it, and the model was
trained on frames as they were recorded.
"""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
from PIL import Image

try:
    import simplejpeg
except ImportError:  # no wheel for this platform; `pi05 doctor` says so
    simplejpeg = None

STRICT = simplejpeg is not None
MAX_STRAY_BYTES = 8
"""Bytes left over before a marker that many webcams leave; more is damage."""
_STRAY = re.compile(r"(\d+) extraneous bytes before marker")


def decode_jpeg(data: Any, memory: np.ndarray | None = None) -> np.ndarray:
    """JPEG as ``[H, W, 3]`` uint8 RGB.

    Args:
        data: the file.
        memory: uint8, as large as the image or larger, into which it may be decoded.

    MJPEG frames without Huffman tables, AVI1 headers, bytes after the end and a few stray bytes
    before restart markers are accepted.

    Raises:
        ValueError, OSError: damaged, cut, or no JPEG; the text is the library's.

    """
    if simplejpeg is None:
        with Image.open(io.BytesIO(bytes(data)), formats=("JPEG",)) as image:
            return np.asarray(image.convert("RGB"))
    try:
        return np.asarray(simplejpeg.decode_jpeg(data, "RGB", buffer=memory))
    except ValueError as error:
        stray = _STRAY.search(str(error))
        if stray is None or int(stray[1]) > MAX_STRAY_BYTES:
            raise
    return np.asarray(simplejpeg.decode_jpeg(data, "RGB", buffer=memory, strict=False))


def encode_jpeg(image: np.ndarray, quality: int) -> bytes:
    """JPEG of ``[H, W, 3]`` uint8 RGB."""
    if simplejpeg is None:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=quality)
        return buffer.getvalue()
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality, "RGB"))
