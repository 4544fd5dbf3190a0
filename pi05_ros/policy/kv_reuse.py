"""When to keep the KV cache of an earlier observation instead of computing a new one.

Vision and prefill are most of an inference. Keeping them saves that time and costs freshness, so
the rules here say when; `ChunkMaker` applies them and keeps the chunk anchored to the observation
the cache was made from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

MODES = ("plain", "vjp", "vjp-scaled", "identity", "trained")
"""Ways in which a chunk can continue the one before; `ChunkMaker` describes them."""
THUMBNAIL = 32
"""Side of the grey picture that changes are looked for in."""


class ReuseRule(Protocol):
    """Asked once per inference."""

    def fresh(self, images: Mapping[str, np.ndarray]) -> bool:
        """Whether this observation needs a KV cache of its own."""

    def reset(self) -> None:
        """Forget everything: the next answer is True."""


class EveryN:
    """A new cache every ``n`` inferences; 1 never reuses."""

    def __init__(self, n: int) -> None:
        if n < 1:
            raise ValueError(f"reuse is every {n} frames; accepted: 1 or more")
        self.n = n
        self._count = 0

    def fresh(self, images: Mapping[str, np.ndarray]) -> bool:
        """Whether this observation needs a KV cache of its own."""
        due = self._count % self.n == 0
        self._count += 1
        return due

    def reset(self) -> None:
        """Forget everything."""
        self._count = 0


class OnChange:
    """A new cache when a picture has changed since the last one, with hysteresis.

    The change is the mean block difference of grey thumbnails (of the camera that changed most)
    against the picture of the cache, 0..255. Above ``high`` a new cache is made, and from then
    on for every observation until two pictures in a row differ by less than ``low``: motion is
    followed to its end. At the latest after ``max_age`` reuses a new one is made in any case.
    The defaults keep about half of the caches of the simulated arm at five inferences a second.
    """

    def __init__(self, high: float = 20.0, low: float = 14.0, max_age: int = 3) -> None:
        if not 0 <= low <= high:
            raise ValueError(f"low {low} and high {high}: accepted are 0 <= low <= high")
        self.high = high
        self.low = low
        self.max_age = max_age
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._reference: dict[str, np.ndarray] = {}
        self._last: dict[str, np.ndarray] = {}
        self._age = 0
        self._moving = False

    def fresh(self, images: Mapping[str, np.ndarray]) -> bool:
        """Whether this observation needs a KV cache of its own."""
        now = {role: thumbnail(image) for role, image in images.items()}
        since = change(self._reference, now)
        if self._moving and change(self._last, now) < self.low:
            self._moving = False
        if self._reference and since > self.high:
            self._moving = True
        self._last = now
        if self._moving or self._age >= self.max_age or not self._reference:
            self._reference, self._age = now, 0
            return True
        self._age += 1
        return False


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Grey block means of uint8 ``[H, W, 3]``: float32 ``[h, w]``, about THUMBNAIL a side."""
    rows, columns = (max(1, side // THUMBNAIL) for side in image.shape[:2])
    h, w = image.shape[0] // rows, image.shape[1] // columns
    grey = image[: h * rows, : w * columns].astype(np.float32).mean(axis=2)
    blocks: np.ndarray = grey.reshape(h, rows, w, columns).mean(axis=(1, 3))
    return blocks


def change(before: Mapping[str, np.ndarray], now: Mapping[str, np.ndarray]) -> float:
    """Mean block difference of the camera that changed most.

    Infinite if a camera came, went or has another size.
    """
    if before.keys() != now.keys():
        return float("inf")
    largest = 0.0
    for role, blocks in now.items():
        if before[role].shape != blocks.shape:
            return float("inf")
        largest = max(largest, float(np.abs(blocks - before[role]).mean()))
    return largest


def make_rule(word: str) -> ReuseRule:
    """Rule by name: a number N, or "dynamic"."""
    if word == "dynamic":
        return OnChange()
    if word.isdigit() and int(word) >= 1:
        return EveryN(int(word))
    raise ValueError(f"kv reuse {word!r}; accepted: a number of frames from 1, or dynamic")
