"""When to keep the KV cache of an earlier observation instead of computing a new one.

Vision and prefill are most of an inference. Reusing them saves that time and costs freshness, so
the rules here say when; `ChunkGenerator` applies them and keeps the chunk anchored to the
observation the cache was made from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from pi05_ros.errors import InvalidValueError

MODES = ("plain", "vjp", "vjp-scaled", "identity", "trained")
"""Ways in which a chunk can continue the one before; `ChunkGenerator` describes them."""
MAX_DIGITS = 9
"""Of the number in "every N"."""
THUMBNAIL = 32
"""Side of the gray image that changes are looked for in."""
DYNAMIC: dict[str, float | int] = {
    "high": 50.0,
    "low": 25.0,
    "max_age": 3,
    "slow": 0.3,
    "share": 0.5,
    "save": 3.0,
}
"""`OnChange` as "dynamic". Chosen in the simulated arm at five inferences a second."""


@dataclass(frozen=True)
class RemainingMotion:
    """What is still to be done of the last chunk, as far as a rule needs it.

    Attributes:
        motion: largest change of a joint over the next quarter of a chunk, normalized actions.
        old: the cache is too old to be used once more.

    """

    motion: float = float("inf")
    old: bool = False


UNKNOWN_MOTION = RemainingMotion()


class ReuseRule(Protocol):
    """Asked once per inference."""

    def fresh(
        self, images: Mapping[str, np.ndarray], plan: RemainingMotion = UNKNOWN_MOTION
    ) -> bool:
        """Whether this observation needs a KV cache of its own."""

    def reset(self) -> None:
        """Forget everything: the next answer is True."""


class EveryN:
    """A new cache every ``n`` inferences; 1 never reuses."""

    def __init__(self, n: int) -> None:
        if n < 1:
            raise InvalidValueError(f"reuse is every {n} frames; accepted: 1 or more")
        self.n = n
        self._count = 0

    def fresh(
        self, images: Mapping[str, np.ndarray], plan: RemainingMotion = UNKNOWN_MOTION
    ) -> bool:
        """Whether this observation needs a KV cache of its own."""
        due = self._count % self.n == 0
        self._count += 1
        return due or plan.old

    def reset(self) -> None:
        """Forget everything."""
        self._count = 0


class OnChange:
    """A new cache when there is something to see, within a budget.

    There is something to see

    - when a image has changed since the cache was made: the mean block difference of gray
      thumbnails (of the camera that changed most), 0..255, is above ``high``; then until two
      images in a row differ by less than ``low``, so that motion is followed to its end;
    - when the arm is about to move by less than ``slow`` (normalized actions, over a quarter of a
      chunk): the precise part of a motion, before contact.

    An arm in quick motion changes its images as much as anything else does, so ``high`` is for
    changes beyond that; where a look at the scene matters is better told by ``slow``.

    Each inference earns ``share`` of a cache, a cache costs one, up to ``save`` are saved. With
    ``share`` 0.5 an episode of n inferences never has more caches than under `EveryN` (2), unless
    ``max_age`` is below 1 or cameras come and go. ``share`` 1 is no limit.
    Without a cache, when a camera comes or goes, after ``max_age`` reuses, and when the cache is
    too old for the chunk, a new one is made whatever has been saved.
    """

    def __init__(
        self,
        high: float = 20.0,
        low: float = 14.0,
        max_age: int = 3,
        slow: float = 0.0,
        share: float = 1.0,
        save: float = 2.0,
    ) -> None:
        if not 0 <= low <= high:
            raise InvalidValueError(f"low {low} and high {high}: accepted are 0 <= low <= high")
        if not (0 < share <= 1 <= save and max_age >= 0 and slow >= 0):
            raise InvalidValueError(
                f"share {share}, save {save}, max_age {max_age}, slow {slow}: accepted are "
                "0 < share <= 1, save from 1, max_age and slow from 0"
            )
        self.high = high
        self.low = low
        self.max_age = max_age
        self.slow = slow
        self.share = share
        self.save = save
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._reference: dict[str, np.ndarray] = {}
        self._last: dict[str, np.ndarray] = {}
        self._age = 0
        self._moving = False
        self._saved = 1.0 - self.share

    def fresh(
        self, images: Mapping[str, np.ndarray], plan: RemainingMotion = UNKNOWN_MOTION
    ) -> bool:
        """Whether this observation needs a KV cache of its own."""
        now = {role: thumbnail(image) for role, image in images.items()}
        since = change(self._reference, now)
        if self._moving and change(self._last, now) < self.low:
            self._moving = False
        if self._reference and since > self.high:
            self._moving = True
        self._last = now
        self._saved = min(self.save, self._saved + self.share)
        wanted = self._moving or plan.motion < self.slow
        must = plan.old or since == float("inf") or self._age >= self.max_age
        if must or (wanted and self._saved >= 1.0):
            self._reference, self._age = now, 0
            self._saved -= 1.0
            return True
        self._age += 1
        return False


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Gray block means of uint8 ``[H, W, 3]``: float32 ``[h, w]``, about THUMBNAIL a side."""
    rows, columns = (max(1, side // THUMBNAIL) for side in image.shape[:2])
    h, w = image.shape[0] // rows, image.shape[1] // columns
    whole = image[: h * rows, : w * columns].reshape(h, rows, w * columns * 3)
    lines = whole.sum(axis=1, dtype=np.float32)  # along memory: ten times faster than mean(2)
    blocks: np.ndarray = lines.reshape(h, w, columns * 3).sum(axis=2) / (rows * columns * 3)
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
    """Rule by name: a number N, "dynamic", or "dynamic:high=30:share=1": values of `OnChange`."""
    if word.isascii() and word.isdigit() and len(word) <= MAX_DIGITS and int(word) >= 1:
        return EveryN(int(word))
    name, *options = word.split(":")
    if name == "dynamic":
        values: dict[str, Any] = dict(DYNAMIC)
        for option in options:
            key, _, value = option.partition("=")
            try:
                values[key] = type(values[key])(value)
            except (KeyError, ValueError) as error:
                raise InvalidValueError(
                    f"kv reuse {word!r}: {option!r} is none of {', '.join(DYNAMIC)} with a number"
                ) from error
        return OnChange(**values)
    raise InvalidValueError(f"kv reuse {word!r}; accepted: a number of frames from 1, or dynamic")
