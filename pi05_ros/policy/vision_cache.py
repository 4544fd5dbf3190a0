"""Image tokens of each camera kept while its picture stays as it is.

A camera fixed to the world often sees nothing new while the one at the wrist does; then only the
latter goes through the vision tower. Prefill is run for every observation, so the prompt and the
state in it are always fresh.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.resize import resize_with_pad, to_model_range
from pi05_ros.model import KVCache, Pi05
from pi05_ros.policy.kv_reuse import thumbnail


class VisionCache:
    """Makes contexts for the eager engine and reuses tokens camera by camera.

    Args:
        engine: with the plain model in ``model``.
        threshold: mean block difference of grey thumbnails (0..255) against the picture that the
            kept tokens come from, up to which they are used again. 0 reuses for equal pictures
            only.

    Raises:
        BackendError: the engine has no plain model.
        ValueError: negative threshold.

    """

    def __init__(self, engine: Any, threshold: float) -> None:
        model = getattr(engine, "model", None)
        if not isinstance(model, Pi05):
            raise BackendError(f"the vision cache needs the eager backend, not {engine.backend!r}")
        if not threshold >= 0:
            raise ValueError(f"vision cache threshold {threshold}; accepted: 0 or more")
        self._model = model
        self.threshold = threshold
        self.computed = 0
        self.reused = 0
        self._kept: dict[int, tuple[np.ndarray, torch.Tensor]] = {}

    def reset(self) -> None:
        """Forget all pictures."""
        self._kept.clear()

    @torch.no_grad()
    def context(self, images: Sequence[torch.Tensor], tokens: torch.Tensor) -> KVCache:
        """KV cache of cameras (uint8 ``[H, W, 3]`` each) and prompt ids ``[n]``, like `Engine`."""
        model = self._model
        prompt = model.embed_prompt(tokens.to(model.device))[None]
        seen = [self._tokens(i, image)[None].to(prompt.dtype) for i, image in enumerate(images)]
        embeddings = torch.cat([*seen, prompt], dim=1)
        mask = torch.ones(embeddings.shape[:2], dtype=torch.bool, device=model.device)
        return model.prefill_embedded(embeddings, mask, compact=False)

    def _tokens(self, camera: int, image: torch.Tensor) -> torch.Tensor:
        blocks = thumbnail(image.cpu().numpy())
        kept = self._kept.get(camera)
        if kept is not None and _difference(kept[0], blocks) <= self.threshold:
            self.reused += 1
            return kept[1]
        size = self._model.config.vision.image_size
        pixels = to_model_range(resize_with_pad(image, size)).to(self._model.device)
        found: torch.Tensor = self._model.embed_images(pixels[None])[0]
        self._kept[camera] = (blocks, found)
        self.computed += 1
        return found


def _difference(before: np.ndarray, now: np.ndarray) -> float:
    return float(np.abs(before - now).mean()) if before.shape == now.shape else float("inf")
