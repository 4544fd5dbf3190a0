"""What a checkpoint path holds: its files, its layout, and every tensor under its openpi name.

Only headers and small JSON files are read here. Layouts:

    openpi    names as in `layout`; the embedding under lm_head, under embed_tokens, or both
    lerobot   the same under `model.`; from 0.5 on lm_head and embed_tokens are both saved and
              only embed_tokens is live; early files call time_mlp_* action_time_mlp_*
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pi05_ros.model.checkpoint.discovery import (
    ACCEPTED,
    ADAPTER_CONFIG,
    find_files,
    read_json_file,
    shorten,
)
from pi05_ros.model.checkpoint.hub import locate
from pi05_ros.model.checkpoint.lora import Factors, split_lora
from pi05_ros.model.checkpoint.safetensors_file import (
    TensorEntry,
    read_header,
)
from pi05_ros.model.errors import CheckpointError
from pi05_ros.model.layout import (
    EMBED_TOKENS,
    EXPERT,
    EXPERT_LM_HEAD,
    LM_HEAD,
    VISION,
    VISION_TOWER,
)

RANDOM_MARK = "pi05_ros.random_weights"
"""Key in the metadata of a safetensors file; "true" if nobody trained what it holds."""

# Tensors that files may hold and actions never need. Anything else unknown is an error.
UNUSED = (
    (re.compile(re.escape(EXPERT_LM_HEAD)), "the action expert predicts no tokens"),
    (re.compile(r"state_proj\.(weight|bias)"), "pi0.5 has no state token"),
    (
        re.compile(
            re.escape(EXPERT) + r"(norm|layers\.\d+\.(input|post_attention)_layernorm)\.weight"
        ),
        "the expert's norms are adaRMS (dense)",
    ),
    (re.compile(re.escape(EXPERT) + r"embed_tokens\.weight"), "the expert embeds no tokens"),
    (re.compile(r".*\.rotary_emb\.inv_freq|.*\.position_ids"), "computed, not learned"),
    (re.compile(re.escape(VISION) + r"head\..*"), "the pooling head is not part of pi0.5"),
)


@dataclass(frozen=True)
class Checkpoint:
    """Headers of one checkpoint.

    Attributes:
        path: as the user gave it.
        directory: where JSON files beside the weights are looked for.
        files: the safetensors files, sorted.
        family: "openpi" or "lerobot".
        tensors: openpi name -> where it lies; the embedding is always under lm_head.
        unused: name in the file -> why no action depends on it.
        config_json: config.json beside the weights, {} if there is none.
        stored: every tensor under its name in the file.
        untied: the file has the embedding twice; embed_tokens is the live one.
        notes: what was found that a reader should know.
        random_weights: a file says that nobody trained its weights, see `RANDOM_MARK`.
        adapters: openpi name -> LoRA adapter that is merged into that tensor when it is read.

    """

    path: Path
    directory: Path
    files: tuple[Path, ...]
    family: str
    tensors: Mapping[str, TensorEntry]
    unused: Mapping[str, str]
    config_json: Mapping[str, Any]
    stored: Mapping[str, TensorEntry]
    untied: bool
    notes: tuple[str, ...]
    random_weights: bool = False
    adapters: Mapping[str, Factors] = field(default_factory=dict)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Read all headers of a checkpoint and name its tensors as openpi does.

    Raises:
        CheckpointError: no readable pi0.5 weights; the message says what it looks like.

    """
    path = locate(path)
    files = find_files(path)
    stored: dict[str, TensorEntry] = {}
    random_weights = False
    for file in files:
        entries, metadata = read_header(file)
        random_weights |= metadata.get(RANDOM_MARK) == "true"
        twice = stored.keys() & entries.keys()
        if twice:
            raise CheckpointError(f"{file}: tensors are in another shard too: {shorten(twice)}")
        stored.update(entries)
    # Of an adapter its own directory, not that of the base model.
    directory = files[-1].parent
    config_json, settings = (
        read_json_file(directory / name) if os.path.lexists(directory / name) else {}
        for name in ("config.json", ADAPTER_CONFIG)
    )
    if not config_json and os.path.lexists(files[0].parent / "config.json"):
        config_json = read_json_file(files[0].parent / "config.json")
    lora = split_lora(path, stored, settings or None, _openpi_name)
    if config_json.get("use_peft") is True and not lora.factors:
        raise CheckpointError(
            f"{path}: config.json says use_peft, but there are no adapters beside the weights; "
            "copy adapter_config.json and adapter_model.safetensors, or, if they are merged, set "
            "use_peft to false"
        )
    prefixed = any(name.startswith("model.") for name in lora.base)
    family = "lerobot" if prefixed or isinstance(config_json.get("type"), str) else "openpi"
    _check_kind(path, lora.base, config_json)
    tensors, unused, untied = _canonical(path, lora.base)
    for name, entry in lora.replaced.items():
        if not any(pattern.fullmatch(name) for pattern, _ in UNUSED):
            tensors[LM_HEAD if name == EMBED_TOKENS else name] = entry
    notes = ("the embedding is untied: embed_tokens is used, lm_head is not",) if untied else ()
    if random_weights:
        notes = (*notes, "the weights are random: the actions mean nothing")
    return Checkpoint(
        path,
        directory,
        files,
        family,
        tensors,
        unused,
        config_json,
        stored,
        untied,
        (*notes, *lora.notes),
        random_weights,
        {name: factors for name, factors in lora.factors.items() if name in tensors},
    )


def _bare(name: str) -> str:
    return name.removeprefix("model.")


def _openpi_name(stored: str) -> str:
    """Return openpi's name of a tensor of any layout.

    Differences: LeRobot's prefix, pi0's name of the time MLP, and the image tower without its
    inner level (transformers 5.23).
    """
    name = _bare(stored)
    if name.startswith("action_time_mlp_"):
        return name.removeprefix("action_")
    if name.startswith(VISION_TOWER) and not name.startswith(VISION):
        return VISION + name.removeprefix(VISION_TOWER)
    return name


def _check_kind(path: Path, stored: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Refuse what is clearly something else than a pi0.5 model."""
    names = [_bare(name) for name in stored]
    head = f"{path}: holds {len(names)} tensors ({shorten(stored) or 'none'}) and looks like "
    adaptive = any(name.startswith(EXPERT) and ".dense." in name for name in names)
    plain = any(
        name.startswith(EXPERT) and name.endswith("layernorm.weight") for name in names
    ) or any(name.startswith(("state_proj.", "action_time_mlp_")) for name in names)
    if plain and not adaptive:
        raise CheckpointError(
            head + "pi0, not pi0.5: the action expert has plain norms or a state token where "
            f"pi0.5 has adaRMS (…layernorm.dense) and time_mlp; {ACCEPTED}"
        )
    kind = config.get("type")
    if isinstance(kind, str) and kind != "pi05":
        raise CheckpointError(f"{path}: config.json says policy type {kind!r}; {ACCEPTED}")
    if not any(name.startswith(EXPERT) for name in names):
        if any(name.startswith(("paligemma", "vision_tower", "language_model")) for name in names):
            raise CheckpointError(
                head + f"PaliGemma or pi0-FAST: there is no action expert; {ACCEPTED}"
            )
        raise CheckpointError(head + f"no model that is known here; {ACCEPTED}")


def _canonical(
    path: Path, stored: Mapping[str, TensorEntry]
) -> tuple[dict[str, TensorEntry], dict[str, str], bool]:
    """Rename to openpi's names and set aside what no action depends on."""
    tensors: dict[str, TensorEntry] = {}
    origin: dict[str, str] = {}
    unused: dict[str, str] = {}
    for stored_name, entry in stored.items():
        name = _openpi_name(stored_name)
        reason = next((why for pattern, why in UNUSED if pattern.fullmatch(name)), None)
        if reason is not None:
            unused[stored_name] = reason
            continue
        if name in tensors:
            raise CheckpointError(
                f"{path}: {shorten([stored_name, origin[name]])} mean the same tensor"
            )
        tensors[name], origin[name] = entry, stored_name
    untied = EMBED_TOKENS in tensors and LM_HEAD in tensors
    if untied:
        unused[origin[LM_HEAD]] = "untied from embed_tokens, which is the live embedding"
    if EMBED_TOKENS in tensors:
        tensors[LM_HEAD] = tensors.pop(EMBED_TOKENS)
    return tensors, unused, untied
