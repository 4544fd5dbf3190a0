"""LoRA adapters among the tensors of a checkpoint: found, checked, and merged into their weights.

PEFT      `<module>.lora_A[.<adapter>].weight` [r, in], `lora_B` [out, r], beside the weight or in
a directory with adapter_config.json; the scale is lora_alpha / r, or / sqrt(r)
openpi    `<module>.lora_a` [in, r], `lora_b` [r, out], or per head [N, in, r], [N, r, H]
(models/lora.py); the scale is 1, because its variants have alpha = rank
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pi05_ros.model.checkpoint.discovery import shorten
from pi05_ros.model.checkpoint.safetensors_file import TensorEntry
from pi05_ros.model.errors import CheckpointError

_PEFT = "base_model.model."
_FACTOR = re.compile(r"(.+?)[._]lora_([abAB])(?:\.([\w-]+))?")
_SAVED = re.compile(r"\.modules_to_save\.[\w-]+\.")
_OTHER = re.compile(r"lora_(?!([abAB])(\.|$))\w+|lora_[AB](\.[\w-]+)?\.bias$")
_MERGE = "merge it with PEFT's merge_and_unload() and save the result"


@dataclass(frozen=True)
class Factors:
    """The two factors of one weight's update.

    Attributes:
        a, b: where they lie.
        scale: of their product.
        form: how they make the product, see `_form`.

    """

    a: TensorEntry
    b: TensorEntry
    scale: float
    form: str


@dataclass(frozen=True)
class LoraSplit:
    """Tensors of a checkpoint, told apart.

    Attributes:
        base: name in the file (without PEFT's additions) -> weights that are not adapters.
        factors: openpi name of a weight -> its adapter.
        replaced: openpi name -> weight that was trained whole and replaces the base's.
        notes: what was found, in words.

    """

    base: Mapping[str, TensorEntry]
    factors: Mapping[str, Factors]
    replaced: Mapping[str, TensorEntry]
    notes: tuple[str, ...] = ()


def split_lora(
    path: Path,
    stored: Mapping[str, TensorEntry],
    settings: Mapping[str, Any] | None,
    openpi_name: Callable[[str], str],
) -> LoraSplit:
    """Tell adapters from weights.

    Args:
        path: of the checkpoint, for errors.
        stored: every tensor under its name in the files.
        settings: adapter_config.json, or None without one.
        openpi_name: maps names of tensors to openpi's.

    Raises:
        CheckpointError: an adapter that is incomplete, fits no weight, has no known scale, or is
            of a kind that is not supported.

    """
    base: dict[str, TensorEntry] = {}
    replaced: dict[str, TensorEntry] = {}
    found: dict[str, dict[str, TensorEntry]] = {}
    adapters: set[str] = set()
    other = [name for name in stored if _OTHER.search(name)]
    if other:
        raise CheckpointError(
            f"{path}: LoRA adapters of a kind that is not supported here: {shorten(other)}; "
            f"{_MERGE}"
        )
    for name, entry in stored.items():
        bare = name.removeprefix(_PEFT).replace(".base_layer.", ".")
        factor = _FACTOR.fullmatch(bare.removesuffix(".weight"))
        if factor is not None:
            adapters.add(factor[3] or "")
            weight = openpi_name(f"{factor[1]}.weight")
            found.setdefault(weight, {})[factor[2]] = entry
        elif ".original_module." in bare:
            continue
        elif _SAVED.search(bare):
            replaced[openpi_name(_SAVED.sub(".", bare))] = entry
        elif settings is not None and entry.file.name.startswith("adapter_"):
            replaced[openpi_name(bare)] = entry
        else:
            base[bare] = entry
    if not found:
        return LoraSplit(base, {}, replaced)
    if len(adapters) > 1:
        raise CheckpointError(
            f"{path}: several LoRA adapters: {shorten(adapters)}; accepted: one. Merge the one "
            "you want and save the result"
        )
    weights = {openpi_name(name): entry for name, entry in base.items()} | replaced
    scale_of = _scales(path, settings, found)
    factors = {}
    for name, sides in found.items():
        a, b = (sides.get(x) or sides.get(x.upper()) for x in "ab")
        if a is None or b is None or len(sides) != 2:
            raise CheckpointError(f"{path}: the LoRA adapter of {name} has not both factors")
        if name not in weights:
            raise CheckpointError(
                f"{path}: a LoRA adapter without the weight {name} that it adapts; merge it into "
                "the base model and save the result, or name the base in adapter_config.json"
            )
        form = _form(a.shape, b.shape, weights[name].shape, openpi="a" in sides)
        if form is None:
            raise CheckpointError(
                f"{path}: LoRA factors {list(a.shape)} and {list(b.shape)} do not fit {name} of "
                f"{list(weights[name].shape)}"
            )
        rank = a.shape[0] if form == "peft" else a.shape[-1]
        factors[name] = Factors(a, b, scale_of(name, rank), form)
    scales = sorted({f"{f.scale:g}" for f in factors.values()})
    origin = "adapter_config.json" if settings is not None else "openpi, whose alpha is the rank"
    note = (
        f"LoRA adapters of {len(factors)} weights are merged, scale {', '.join(scales)} ({origin})"
    )
    return LoraSplit(base, factors, replaced, (note,))


def _form(
    a: tuple[int, ...], b: tuple[int, ...], weight: tuple[int, ...], openpi: bool
) -> str | None:
    """How factors make the update of a weight ``[out, in]``, or None if they do not."""
    if len(weight) != 2:
        return None
    rows, columns = weight
    fitting = []
    if len(a) == len(b) == 2:
        if (a[1], b[0]) == (columns, rows) and a[0] == b[1]:
            fitting.append("peft")
        if (a[0], b[1]) == (columns, rows) and a[1] == b[0]:
            fitting.append("openpi")
    if len(a) == len(b) == 3 and a[0] == b[0] and a[2] == b[1]:
        if (a[1], b[0] * b[2]) == (columns, rows):
            fitting.append("heads out")
        if (a[0] * a[1], b[2]) == (columns, rows):
            fitting.append("heads in")
    if len(fitting) > 1 and not openpi:
        return fitting[0]
    return fitting[-1] if fitting else None


def _scales(
    path: Path, settings: Mapping[str, Any] | None, found: Mapping[str, Mapping[str, TensorEntry]]
) -> Callable[[str, int], float]:
    """Scale of a weight's adapter, given its openpi name and rank."""
    if settings is None:
        if all(set(sides) <= {"a", "b"} for sides in found.values()):
            return lambda name, rank: 1.0
        raise CheckpointError(
            f"{path}: LoRA adapters ({shorten(found)}) and no adapter_config.json, so their scale "
            f"(lora_alpha) is not known; accepted: that file beside the weights, or {_MERGE}"
        )
    where = f"{path}: adapter_config.json:"
    if settings.get("peft_type") not in (None, "LORA"):
        raise CheckpointError(f"{where} peft_type {settings['peft_type']!r:.50}; accepted: 'LORA'")
    for key in ("use_dora", "fan_in_fan_out", "lora_bias"):
        if settings.get(key):
            raise CheckpointError(f"{where} {key} is not supported here; {_MERGE}")
    alpha = _number(where, "lora_alpha", settings.get("lora_alpha"))
    patterns = settings.get("alpha_pattern") or {}
    if not isinstance(patterns, Mapping):
        raise CheckpointError(f"{where} alpha_pattern is {patterns!r:.80}; accepted: a mapping")
    special = {
        str(key): _number(where, f"alpha_pattern.{key}", value) for key, value in patterns.items()
    }

    def scale(name: str, rank: int) -> float:
        module = name.removesuffix(".weight")
        own = next((v for k, v in special.items() if _matches(k, module)), alpha)
        return own / (math.sqrt(rank) if settings.get("use_rslora") else rank)

    return scale


def _matches(pattern: str, module: str) -> bool:
    try:
        return re.fullmatch(rf"(.*\.)?({pattern})", module) is not None
    except re.error:
        return module.endswith(pattern)


def _number(where: str, key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise CheckpointError(f"{where} {key} is {value!r:.50}; accepted: a number")
    return float(value)


def merge(weight: Tensor, a: Tensor, b: Tensor, factors: Factors) -> Tensor:
    """Weight ``[out, in]`` with its adapter merged; all float32."""
    if factors.form == "peft":
        update = b @ a
    elif factors.form == "openpi":
        update = (a @ b).T
    elif factors.form == "heads out":
        update = torch.einsum("nxr,nry->nyx", a, b).reshape(weight.shape)
    else:
        update = torch.einsum("nxr,nry->ynx", a, b).reshape(weight.shape)
    return weight + factors.scale * update
