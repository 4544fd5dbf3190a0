"""The tiny run of openpi's own model, and small helpers shared by the tests of this room."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from pi05_ros.model import Pi05, Pi05Config, load_checkpoint

DATA = Path(__file__).resolve().parents[1] / "data" / "openpi_tiny"
WEIGHTS = DATA / "tiny.safetensors"


@lru_cache(maxsize=1)
def config() -> Pi05Config:
    return Pi05Config.from_dict(json.loads((DATA / "tiny.meta.json").read_text()))


@lru_cache(maxsize=1)
def recorded() -> dict[str, torch.Tensor]:
    with np.load(DATA / "tiny.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@lru_cache(maxsize=1)
def weights() -> dict[str, torch.Tensor]:
    return load_file(WEIGHTS)


@lru_cache(maxsize=1)
def model() -> Pi05:
    return load_checkpoint(WEIGHTS, config())


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    z = recorded()
    images, masks = z["images"].transpose(0, 1), z["img_masks"].transpose(0, 1)
    return images, masks, z["tokens"], z["token_mask"]


def worst(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape, (a.shape, b.shape)
    return float((a.double() - b.double()).abs().max())


def same_parameters(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    left, right = dict(a.named_parameters()), dict(b.named_parameters())
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name])
        for name in left
    )
