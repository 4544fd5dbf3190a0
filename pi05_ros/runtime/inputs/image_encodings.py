"""Encodings of sensor_msgs/Image and their conversion to RGB.

Accepted are encodings whose meaning is defined: RGB and gray of 8 bits, 16-bit gray, YUV 4:2:2 and
4:2:0, Bayer patterns. 8UC3 does not say its channel order and 16UC1 is depth; both are refused.
YUV follows OpenCV: BT.601 with studio range (16 to 235), chroma repeated. Bayer is bilinear as in
OpenCV, 16-bit gray is divided by 256 as in cv_bridge. Results equal OpenCV's bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

# Rows ``[R, bytes]`` uint8, width, height, big endian -> RGB ``[H, W, 3]`` uint8.
Convert = Callable[[np.ndarray, int, int, bool], np.ndarray]


@dataclass(frozen=True)
class Encoding:
    """Layout of one encoding.

    Attributes:
        pixel_bytes: bytes per pixel in a row.
        convert: rows without padding to RGB.
        rows: rows per pixel row: 1, or 1.5 where half-size chroma rows follow the image.
        multiple: width and height must be multiples of these.
        least: smallest width and height.

    """

    pixel_bytes: int
    convert: Convert
    rows: float = 1.0
    multiple: tuple[int, int] = (1, 1)
    least: int = 1

    def row_count(self, height: int) -> int:
        """Rows in the message."""
        return int(height * self.rows)

    def fits(self, width: int, height: int) -> bool:
        """Whether an image of this size exists in the encoding."""
        across, down = self.multiple
        return not (width % across or height % down or min(width, height) < self.least)


def _channels(depth: int, *order: int) -> Encoding:
    def convert(rows: np.ndarray, width: int, height: int, big: bool) -> np.ndarray:
        pixels = rows.reshape(height, width, depth)
        if depth == 3 and order == (0, 1, 2):
            return np.ascontiguousarray(pixels)
        return np.stack([pixels[..., channel] for channel in order], axis=-1)

    return Encoding(depth, convert)


def _mono16(rows: np.ndarray, width: int, height: int, big: bool) -> np.ndarray:
    values = np.ascontiguousarray(rows).view(">u2" if big else "<u2")
    gray = np.minimum(np.rint(values / 256), 255).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=-1)


_LUMA = np.maximum(np.arange(256, dtype=np.int32) - 16, 0) * 1220542


def _yuv_to_rgb(y: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """BT.601, studio range, 20-bit fixed point.

    Args:
        y: ``[H, W]`` uint8.
        u, v: ``[H, W/2]`` or ``[H/2, W/2]`` uint8.

    """
    rows, columns = y.shape[0] // u.shape[0], y.shape[1] // u.shape[1]
    luma = _LUMA[y]
    u, v = u.astype(np.int32) - 128, v.astype(np.int32) - 128
    rgb = np.empty((*y.shape, 3), np.uint8)
    terms = (1673527 * v, -409993 * u - 852492 * v, 2116026 * u)
    for channel, chroma in enumerate(terms):
        wide = (chroma + (1 << 19)).repeat(columns, axis=1)
        wide = wide.repeat(rows, axis=0) if rows > 1 else wide
        wide += luma
        wide >>= 20
        np.clip(wide, 0, 255, out=wide)
        rgb[..., channel] = wide
    return rgb


def _yuv422(first: int) -> Encoding:
    """4:2:2 in one plane; `first` is the byte of the first luma: 1 in UYVY, 0 in YUYV."""

    def convert(rows: np.ndarray, width: int, height: int, big: bool) -> np.ndarray:
        chroma = 1 - first
        return _yuv_to_rgb(rows[:, first::2], rows[:, chroma::4], rows[:, chroma + 2 :: 4])

    return Encoding(2, convert, multiple=(2, 1), least=2)


def _semi_planar(u: int) -> Encoding:
    """4:2:0 with interleaved chroma below the image; `u` is the place of U: 0 in NV12."""

    def convert(rows: np.ndarray, width: int, height: int, big: bool) -> np.ndarray:
        chroma = rows[height:].reshape(height // 2, width // 2, 2)
        return _yuv_to_rgb(rows[:height], chroma[..., u], chroma[..., 1 - u])

    return Encoding(1, convert, rows=1.5, multiple=(2, 2), least=2)


def _bayer(pattern: str) -> Encoding:
    """Bilinear demosaic; `pattern` names the upper left 2x2 pixels row by row."""

    def convert(rows: np.ndarray, width: int, height: int, big: bool) -> np.ndarray:
        raw = rows.astype(np.int16)
        rgb = np.empty((height, width, 3), np.uint8)
        for y, x in ((1, 1), (1, 2), (2, 1), (2, 2)):  # the four places in the pattern
            up, mid, low = (slice(y + k, height - 1 + k, 2) for k in (-1, 0, 1))
            left, center, right = (slice(x + k, width - 1 + k, 2) for k in (-1, 0, 1))
            here = raw[mid, center]
            across = raw[mid, left] + raw[mid, right]
            down = raw[up, center] + raw[low, center]
            if pattern[y % 2 * 2 + x % 2] == "g":
                row_color = pattern[y % 2 * 2 + (x + 1) % 2]
                values = {"g": here, row_color: (across + 1) >> 1}
                values["r" if row_color == "b" else "b"] = (down + 1) >> 1
            else:
                color = pattern[y % 2 * 2 + x % 2]
                corners = raw[up, left] + raw[up, right] + raw[low, left] + raw[low, right]
                values = {color: here, "g": (across + down + 2) >> 2}
                values["r" if color == "b" else "b"] = (corners + 2) >> 2
            for index, color in enumerate("rgb"):
                rgb[mid, center, index] = values[color]
        # The border repeats its neighbors.
        rgb[:, 0], rgb[:, -1] = rgb[:, 1], rgb[:, -2]
        rgb[0], rgb[-1] = rgb[1], rgb[-2]
        return rgb

    return Encoding(1, convert, least=3)


ENCODINGS: Mapping[str, Encoding] = {
    "rgb8": _channels(3, 0, 1, 2),
    "bgr8": _channels(3, 2, 1, 0),
    "rgba8": _channels(4, 0, 1, 2),
    "bgra8": _channels(4, 2, 1, 0),
    "mono8": _channels(1, 0, 0, 0),
    "8UC1": _channels(1, 0, 0, 0),
    "mono16": Encoding(2, _mono16),
    "yuv422": _yuv422(1),
    "uyvy": _yuv422(1),
    "yuv422_yuy2": _yuv422(0),
    "yuyv": _yuv422(0),
    "nv12": _semi_planar(0),
    "nv21": _semi_planar(1),
    "bayer_rggb8": _bayer("rggb"),
    "bayer_bggr8": _bayer("bggr"),
    "bayer_gbrg8": _bayer("gbrg"),
    "bayer_grbg8": _bayer("grbg"),
}

_HINTS: Mapping[str, str] = {
    "8UC3": "8UC3 does not say its channel order: publish it as rgb8 or bgr8",
    "8UC4": "8UC4 does not say its channel order: publish it as rgba8 or bgra8",
    "16UC1": "16UC1 is depth; 16-bit gray is mono16",
}


def refusal(encoding: str) -> str:
    """Why an encoding is not accepted, and which are."""
    hint = _HINTS.get(encoding, "")
    return (
        f"image encoding {str(encoding)[:40]!r}; accepted: {', '.join(ENCODINGS)}"
        + f" ({hint})" * bool(hint)
    )
