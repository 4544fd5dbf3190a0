"""Videos and statistics of one episode of a LeRobot dataset."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np


def pixel_format(height: int, width: int) -> str:
    """4:2:0 needs even sides."""
    return "yuv444p" if height % 2 or width % 2 else "yuv420p"


class EpisodeVideo:
    """Encodes the frames of one camera as H.264; use as a context manager.

    Frame k has the time k / fps. The file is put in place whole at the end.
    """

    def __init__(self, path: Path, fps: int, height: int, width: int) -> None:
        import av

        path.parent.mkdir(parents=True, exist_ok=True)
        self._av, self._path = av, path
        self._part = path.with_name(f".{path.name}.part.mp4")
        self._container = av.open(str(self._part), "w")
        self._stream: Any = self._container.add_stream("libx264", rate=fps)
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = pixel_format(height, width)
        self._stream.options = {"crf": "18", "g": "2", "preset": "veryfast", "bf": "0"}
        self._time_base = Fraction(1, fps)
        self._stream.codec_context.time_base = self._time_base
        self._count = 0

    def add(self, image: np.ndarray) -> None:
        """Append an RGB frame ``[H, W, 3]`` uint8."""
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame.pts, frame.time_base = self._count, self._time_base
        self._count += 1
        self._container.mux(self._stream.encode(frame))

    def __enter__(self) -> EpisodeVideo:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self._container.mux(self._stream.encode())
        self._container.close()
        if kind is None:
            os.replace(self._part, self._path)
        else:
            self._part.unlink(missing_ok=True)


QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)


class ChannelStatistics:
    """Mean, deviation and range of numbers per column, or of images per channel."""

    def __init__(self) -> None:
        self._count, self._rows = 0, 0
        self._sum = self._squares = self._low = self._high = np.zeros(0)

    def add(self, values: np.ndarray) -> None:
        """Take rows ``[N, C]``."""
        rows = values.astype(np.float64)
        low, high = rows.min(0), rows.max(0)
        if not self._rows:
            self._sum, self._squares = np.zeros_like(low), np.zeros_like(low)
            self._low, self._high = low, high
        self._sum, self._squares = self._sum + rows.sum(0), self._squares + (rows**2).sum(0)
        self._low, self._high = np.minimum(self._low, low), np.maximum(self._high, high)
        self._rows += len(rows)
        self._count += 1

    def result(self, count: int, shape: tuple[int, ...]) -> dict[str, Any]:
        """min, max, mean, std and count as LeRobot stores them."""
        mean = self._sum / self._rows
        std = np.sqrt(np.maximum(self._squares / self._rows - mean**2, 0.0))
        named = {"min": self._low, "max": self._high, "mean": mean, "std": std}
        found: dict[str, Any] = {
            key: value.reshape(shape).tolist() for key, value in named.items()
        }
        return found | {"count": [count]}


def merge_stats(stats: Iterable[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Statistics of all episodes together."""
    each = list(stats)
    found: dict[str, dict[str, Any]] = {}
    for feature in each[0] if each else ():
        parts = [{k: np.asarray(v, np.float64) for k, v in s[feature].items()} for s in each]
        counts = np.array([part["count"][0] for part in parts])
        total = counts.sum()
        share = [count / total for count in counts]
        pairs = list(zip(share, parts, strict=True))
        mean = sum((w * part["mean"] for w, part in pairs), np.zeros(()))
        square = sum(
            (w * (part["std"] ** 2 + part["mean"] ** 2) for w, part in pairs), np.zeros(())
        )
        found[feature] = {
            "min": np.min([part["min"] for part in parts], axis=0).tolist(),
            "max": np.max([part["max"] for part in parts], axis=0).tolist(),
            "mean": mean.tolist(),
            "std": np.sqrt(np.maximum(square - mean**2, 0.0)).tolist(),
            "count": [int(total)],
        }
    return found


def quantiles(values: np.ndarray) -> dict[str, list[float]]:
    """Quantiles of each column of ``[N, C]``, by which LeRobot's pi05 normalizes."""
    found = np.quantile(np.asarray(values, np.float64), QUANTILES, axis=0)
    return {
        f"q{round(100 * q):02d}": row.tolist() for q, row in zip(QUANTILES, found, strict=True)
    }
