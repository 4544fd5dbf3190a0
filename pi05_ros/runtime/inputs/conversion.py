"""ROS messages to arrays and back, on plain objects with the fields of the messages.

Nothing here imports rclpy, so bag readers use the same code. Whatever arrives on the wire, the
only exception that leaves the functions that read messages is ConversionError.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from pi05_ros.errors import Pi05Error
from pi05_ros.runtime.inputs.image_encodings import ENCODINGS, refusal
from pi05_ros.runtime.inputs.jpeg import decode_jpeg, encode_jpeg
from pi05_ros.runtime.inputs.pixel_pool import PixelPool, pageable

NS = 1_000_000_000

# Above any camera in use (8K is 33 megapixels); the model sees 224 x 224.
MAX_PIXELS = 2**25
MAX_SIDE = 16384
MAX_COMPRESSED_BYTES = 2**26

_PIXELS = PixelPool()  # of decoded JPEGs
_COMPRESSED_MODES = ("L", "RGB", "RGBA", "P")


class ConversionError(Pi05Error, ValueError):
    """A message that cannot be used.

    Attributes:
        code: one word for counters ("encoding", "short_data", ...).

    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


def stamp_ns(stamp: Any) -> int:
    """builtin_interfaces/Time as nanoseconds."""
    return int(stamp.sec) * NS + int(stamp.nanosec)


def split_ns(nanoseconds: int) -> tuple[int, int]:
    """Nanoseconds as (sec, nanosec) of builtin_interfaces/Time and Duration."""
    sec, nanosec = divmod(int(nanoseconds), NS)
    return sec, nanosec


def check_image(message: Any) -> None:
    """Refuse an Image by its header fields and length, without touching the pixels."""
    encoding = message.encoding
    if encoding not in ENCODINGS:
        raise ConversionError("encoding", refusal(encoding))
    layout = ENCODINGS[encoding]
    width, height, step = int(message.width), int(message.height), int(message.step)
    _check_size(width, height)
    if not layout.fits(width, height):
        raise ConversionError("size", f"image of {width}x{height} pixels cannot be {encoding}")
    row = width * layout.pixel_bytes
    if step < row:
        raise ConversionError(
            "step", f"image step {step} is less than the {row} bytes of {width} {encoding} pixels"
        )
    # The padding of the last row may be absent.
    needed = step * (layout.row_count(height) - 1) + row
    if len(message.data) < needed:
        raise ConversionError(
            "short_data",
            f"image data has {len(message.data)} bytes; {width}x{height} {encoding} with step "
            f"{step} needs {needed}",
        )


def _check_size(width: int, height: int) -> None:
    inside = 0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE
    if not inside or width * height > MAX_PIXELS:
        raise ConversionError(
            "size",
            f"image of {width}x{height} pixels; accepted: 1 to {MAX_SIDE} per side, up to "
            f"{MAX_PIXELS} in all",
        )


def image_to_rgb(message: Any) -> np.ndarray:
    """sensor_msgs/Image -> uint8 ``[H, W, 3]`` RGB.

    rgb8 without padding is a view of the message; everything else is one copy.
    """
    try:
        check_image(message)
        width, height, step = int(message.width), int(message.height), int(message.step)
        layout = ENCODINGS[message.encoding]
        shape = (layout.row_count(height), width * layout.pixel_bytes)
        raw = np.frombuffer(message.data, np.uint8)
        rows = np.lib.stride_tricks.as_strided(raw, shape=shape, strides=(step, 1))
        return layout.convert(rows, width, height, bool(message.is_bigendian))
    except ConversionError:
        raise
    except Exception as error:
        raise ConversionError("malformed", f"image: {_line(error)}") from error


def check_compressed(message: Any) -> None:
    """Refuse a CompressedImage that is neither JPEG nor PNG by its first bytes."""
    size = len(message.data)
    if size > MAX_COMPRESSED_BYTES:
        raise ConversionError(
            "size", f"compressed image of {size} bytes; accepted: up to {MAX_COMPRESSED_BYTES}"
        )
    head = bytes(message.data[:8])
    if not (head.startswith(b"\xff\xd8\xff") or head == b"\x89PNG\r\n\x1a\n"):
        raise ConversionError(
            "encoding",
            f"compressed image {str(message.format)[:40]!r} of {size} bytes; accepted: "
            "JPEG and PNG",
        )


def compressed_to_rgb(message: Any) -> np.ndarray:
    """sensor_msgs/CompressedImage (JPEG or PNG, 8 bit) -> uint8 ``[H, W, 3]`` RGB.

    A JPEG with a damaged scan is "undecodable", see `runtime.jpeg`.
    """
    try:
        check_compressed(message)
        data = bytes(message.data)
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            _check_size(*image.size)
            if image.mode not in _COMPRESSED_MODES:
                raise ConversionError(
                    "encoding",
                    f"compressed image of mode {image.mode}; accepted: 8-bit gray, RGB, RGBA",
                )
            if data.startswith(b"\xff\xd8"):
                width, height = image.size
                return decode_jpeg(data, _PIXELS.lend(3 * width * height))
            return np.asarray(image.convert("RGB"))
    except ConversionError:
        raise
    except Image.DecompressionBombError as error:
        raise ConversionError("size", f"compressed image: {_line(error)}") from error
    except UnidentifiedImageError as error:
        raise ConversionError("undecodable", "compressed image: neither JPEG nor PNG") from error
    except Exception as error:
        raise ConversionError("undecodable", f"compressed image: {_line(error)}") from error


def load_decoders(make: Callable[[int], np.ndarray] = pageable) -> None:
    """Import what the first compressed image would import, longer than an inference takes.

    Args:
        make: makes the memory that JPEGs are decoded into from now on, see `PixelPool`.

    """
    global _PIXELS
    _PIXELS = PixelPool(make)
    tiny = encode_jpeg(np.zeros((8, 8, 3), np.uint8), quality=90)
    compressed_to_rgb(SimpleNamespace(format="jpeg", data=tiny))


def _line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
