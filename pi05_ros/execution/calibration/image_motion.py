"""A number per image that follows a small motion in it: the strongest pattern of change."""

from __future__ import annotations

import numpy as np

SIZE = (36, 48)
"""Images are averaged over blocks to about this many rows and columns."""
PATTERNS = 5


def small_gray(rgb: np.ndarray) -> np.ndarray:
    """Gray levels of an image ``[H, W, 3]`` averaged over blocks, float32, at most `SIZE`."""
    gray: np.ndarray = rgb.astype(np.float32).mean(axis=2)
    for axis, wanted in enumerate(SIZE):
        length = gray.shape[axis]
        edges = np.linspace(0, length, min(wanted, length) + 1).astype(int)[:-1]
        widths = np.diff(np.append(edges, length))
        shape = (-1, 1) if axis == 0 else (1, -1)
        gray = np.add.reduceat(gray, edges, axis=axis) / widths.reshape(shape)
    return gray


def motion_patterns(images: np.ndarray) -> list[np.ndarray]:
    """How strongly each of the main patterns of change is in each image.

    An image that a small motion changes is nearly the mean image plus the motion times a fixed
    pattern. Patterns are the principal components of the images about their mean; which of them is
    the motion's is told by correlation with it.

    Args:
        images: ``[N, h, w]``.

    Returns:
        Up to `PATTERNS` signals ``[N]``, the strongest first; none where nothing changes.

    """
    rows = images.reshape(len(images), -1).astype(np.float32)
    rows = rows - rows.mean(axis=0)
    # Of the images' products with each other: far fewer numbers than pixels.
    sizes, weights = np.linalg.eigh((rows @ rows.T).astype(np.float64))
    if not sizes.size or sizes[-1] < 1e-6:
        return []
    count = min(PATTERNS, len(sizes))
    return [weights[:, -k] * np.sqrt(max(sizes[-k], 0.0)) for k in range(1, count + 1)]
