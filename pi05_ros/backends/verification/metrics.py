"""How far a result is from the reference, and what may be wrong with it beyond that."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Distance:
    """One comparison; NaN where the reference is zero."""

    cosine: float
    relative: float
    max_abs: float
    mean_abs: float
    finite: bool
    constant: bool


def distance(found: Tensor, expected: Tensor) -> Distance:
    """Compare in float64, flattened.

    Raises:
        ValueError: shapes differ.

    """
    if found.shape != expected.shape:
        raise ValueError(f"shapes {list(found.shape)} and {list(expected.shape)} differ")
    a = found.detach().double().cpu().flatten()
    b = expected.detach().double().cpu().flatten()
    finite = bool(torch.isfinite(a).all())
    if not finite:
        nan = math.nan
        return Distance(nan, nan, nan, nan, False, False)
    difference = a - b
    norms = float(a.norm() * b.norm())
    size = float(b.norm())
    return Distance(
        cosine=float(a @ b) / norms if norms > 0 else math.nan,
        relative=float(difference.norm()) / size if size > 0 else math.nan,
        max_abs=float(difference.abs().max()),
        mean_abs=float(difference.abs().mean()),
        finite=True,
        constant=bool((a == a[0]).all()) and not bool((b == b[0]).all()),
    )


def duplicate_layers(layers: Tensor) -> list[tuple[int, int]]:
    """Pairs of layers ``[L, ...]`` with bit-equal content: one engine used for two layers."""
    seen: dict[bytes, int] = {}
    pairs = []
    for index in range(layers.shape[0]):
        content = layers[index].detach().float().cpu().contiguous().numpy().tobytes()
        if content in seen:
            pairs.append((seen[content], index))
        else:
            seen[content] = index
    return pairs
