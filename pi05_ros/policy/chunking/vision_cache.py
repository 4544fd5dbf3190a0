"""Reuse of each camera's image tokens while its image stays as it is.

A camera fixed to the world often sees nothing new while the one at the wrist does; then only the
latter goes through the vision tower. Prefill is run for every observation, so the prompt and the
state in it are always fresh.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch

from pi05_ros.backends.engine import Engine
from pi05_ros.backends.errors import BackendError
from pi05_ros.errors import InvalidValueError
from pi05_ros.policy.chunking.kv_reuse import thumbnail

_IMAGES = itertools.count(1)  # engines compare numbers: two caches on one engine must not meet


class VisionCache:
    """Gives camera keys, by which an engine reuses image tokens (`Engine.prefill`).

    Args:
        engine: which must have the ability.
        threshold: mean block difference of gray thumbnails (0..255) against the image that the
            kept tokens come from, up to which they are used again. 0 reuses only where all block
            means are the same.

    Raises:
        BackendError: the engine cannot keep image tokens.
        ValueError: negative threshold.

    """

    def __init__(self, engine: Engine, threshold: float) -> None:
        if not engine.capabilities.camera_keys:
            raise BackendError(
                f"the vision cache needs backend eager or cuda, not {engine.backend!r}"
            )
        if not threshold >= 0:
            raise InvalidValueError(f"vision cache threshold {threshold}; accepted: 0 or more")
        self.threshold = threshold
        self.computed = 0
        self.reused = 0
        self._kept: dict[int, tuple[np.ndarray, int]] = {}

    def reset(self) -> None:
        """Forget all images."""
        self._kept.clear()

    def keys(self, images: Sequence[torch.Tensor]) -> list[int]:
        """One key per image: that of the image whose tokens serve for it."""
        keys = [self._key(camera, image) for camera, image in enumerate(images)]
        for camera in [camera for camera in self._kept if camera >= len(keys)]:
            del self._kept[camera]
        return keys

    def _key(self, camera: int, image: torch.Tensor) -> int:
        """Number of the image whose tokens serve for this one."""
        blocks = thumbnail(_levels(image))
        kept = self._kept.get(camera)
        if kept is not None and _difference(kept[0], blocks) <= self.threshold:
            self.reused += 1
            return kept[1]
        self.computed += 1
        self._kept[camera] = (blocks, next(_IMAGES))
        return self._kept[camera][1]


def _levels(image: torch.Tensor) -> np.ndarray:
    """Image ``[H, W, 3]`` in levels 0..255; float ``[3, S, S]`` is in [-1, 1]."""
    if image.is_floating_point():
        image = (image.movedim(0, -1) + 1.0) * 127.5
    return image.cpu().numpy()


def _difference(before: np.ndarray, now: np.ndarray) -> float:
    return float(np.abs(before - now).mean()) if before.shape == now.shape else float("inf")
