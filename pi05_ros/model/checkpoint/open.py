"""What a checkpoint path holds: its files, its layout, and every tensor under its openpi name.

Only headers and small JSON files are read here. Layouts:

    openpi    names as in `layout`; the embedding under lm_head, under embed_tokens, or both
    lerobot   the same under `model.`; from 0.5 on lm_head and embed_tokens are both saved and
              only embed_tokens is live; early files call time_mlp_* action_time_mlp_*
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pi05_ros.model.checkpoint.safetensors_file import (
    MAX_HEADER,
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
from pi05_ros.small_files import FileError, read_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
SHOWN = 10  # names listed in a message
ACCEPTED = (
    "accepted: a pi0.5 safetensors file, or a directory with model.safetensors, in the layout of "
    "openpi's PyTorch port or of LeRobot (policy type pi05)"
)
ORBAX = ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt", "ocdbt.process_0", "_sharding")

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


def shorten(names: Iterable[str]) -> str:
    """First ten names and the count of all."""
    everything = sorted(names)
    text = ", ".join(name[:200] for name in everything[:SHOWN])
    if len(everything) > SHOWN:
        text += f", ... ({len(everything)} in all)"
    return text


def read_json_file(path: Path) -> dict[str, Any]:
    """Read a JSON object from a small file.

    Raises:
        CheckpointError: not readable, too large, not JSON, or not an object.

    """
    try:
        data = read_json(path, MAX_HEADER)
    except FileError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return data


def find_files(path: str | Path) -> tuple[Path, ...]:
    """Weight files of a checkpoint path (a file, an index, or a directory).

    Raises:
        CheckpointError: nothing there that could be read, with what it looks like instead.

    """
    path = Path(path)
    try:
        if path.is_dir():
            return _files_in(path)
        if not path.exists():
            raise CheckpointError(f"{path}: no such file or directory; {ACCEPTED}")
    except (OSError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path!s:.200}: cannot be looked at: {error}") from error
    if not path.is_file():
        raise CheckpointError(f"{path}: not a regular file; {ACCEPTED}")
    if path.name.endswith(".index.json"):
        return _shards(path)
    if path.suffix.lower() in PICKLES or _looks_pickled(path):
        raise CheckpointError(f"{path}: {_PICKLE}; {ACCEPTED}")
    if path.name.startswith("adapter_"):
        raise CheckpointError(f"{path}: {_LORA}; {ACCEPTED}")
    return _whole(path)


_PICKLE = (
    "a pickle file; it can run code when opened and is refused. Save the weights as safetensors"
)
_LORA = (
    "a LoRA adapter without the model it adapts; merge it into the base model and save the result"
)
_ORBAX = (
    "a JAX (orbax) checkpoint; convert it with openpi's "
    "examples/convert_jax_model_to_pytorch.py and give the directory it writes"
)


def _looks_pickled(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            start = file.read(4)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    return start.startswith(b"PK\x03\x04") or (start[:1] == b"\x80" and start[1:2] in b"\2\3\4\5")


def _files_in(directory: Path) -> tuple[Path, ...]:
    if (directory / WEIGHTS).is_file():
        return (directory / WEIGHTS,)
    if (directory / INDEX).is_file():
        return _shards(directory / INDEX)
    names = sorted(entry.name for entry in directory.iterdir())
    if "adapter_config.json" in names or "adapter_model.safetensors" in names:
        raise CheckpointError(f"{directory}: {_LORA}; {ACCEPTED}")
    weights = [
        name
        for name in names
        if name.endswith(".safetensors")
        and not name.startswith("policy_")
        and (directory / name).is_file()
    ]
    if len(weights) == 1:
        return _whole(directory / weights[0])
    if len(weights) > 1:
        raise CheckpointError(
            f"{directory}: {len(weights)} safetensors files and neither {WEIGHTS} nor {INDEX}: "
            f"{shorten(weights)}; give the path of one file"
        )
    for place in (directory, directory / "params"):
        if any((place / name).exists() for name in ORBAX):
            raise CheckpointError(f"{directory}: {_ORBAX}; {ACCEPTED}")
    pickles = [name for name in names if Path(name).suffix.lower() in PICKLES]
    if pickles:
        raise CheckpointError(f"{directory}: {shorten(pickles)}: {_PICKLE}; {ACCEPTED}")
    inner = [n for n in ("pretrained_model", "params") if (directory / n / WEIGHTS).is_file()]
    hint = f"; did you mean {directory / inner[0]}?" if inner else ""
    held = shorten(names) if names else "nothing"
    raise CheckpointError(f"{directory}: no weights in it (it holds {held}){hint}; {ACCEPTED}")


def _whole(file: Path) -> tuple[Path, ...]:
    shard = re.search(r"-\d+-of-(\d+)\.safetensors$", file.name)
    if shard and int(shard[1]) > 1:
        raise CheckpointError(
            f"{file}: one of {int(shard[1])} shards; accepted: the directory that holds all of "
            f"them and {INDEX}, or that index file"
        )
    return (file,)


def _shards(index: Path) -> tuple[Path, ...]:
    weight_map = read_json_file(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: lacks a weight_map")
    names = set()
    for name in weight_map.values():
        if not isinstance(name, str) or Path(name).name != name or "\0" in name:
            raise CheckpointError(f"{index}: {name!r:.200} is not the name of a file beside it")
        names.add(name)
    files = tuple(index.parent / name for name in sorted(names))
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise CheckpointError(f"{index}: shards are missing: {shorten(missing)}")
    return files


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Read all headers of a checkpoint and name its tensors as openpi does.

    Raises:
        CheckpointError: no readable pi0.5 weights; the message says what it looks like.

    """
    path = Path(path)
    files = find_files(path)
    stored: dict[str, TensorEntry] = {}
    for file in files:
        entries, _ = read_header(file)
        twice = stored.keys() & entries.keys()
        if twice:
            raise CheckpointError(f"{file}: tensors are in another shard too: {shorten(twice)}")
        stored.update(entries)
    directory = files[0].parent
    config_json: dict[str, Any] = {}
    if (directory / "config.json").is_file():
        config_json = read_json_file(directory / "config.json")
    prefixed = any(name.startswith("model.") for name in stored)
    family = "lerobot" if prefixed or isinstance(config_json.get("type"), str) else "openpi"
    _check_kind(path, stored, config_json)
    tensors, unused, untied = _canonical(path, stored)
    notes = ("the embedding is untied: embed_tokens is used, lm_head is not",) if untied else ()
    return Checkpoint(
        path, directory, files, family, tensors, unused, config_json, stored, untied, notes
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
    lora = [name for name in names if re.search(r"(^|\.|_)lora_[abAB](\.|$|_)", name)]
    if lora:
        raise CheckpointError(
            f"{path}: {len(lora)} of {len(names)} tensors are LoRA factors ({shorten(lora)}): it "
            f"looks like {_LORA}; {ACCEPTED}"
        )
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
