"""Where the weights of a checkpoint lie: a file, an index of shards, a directory, a hub id."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pi05_ros.model.checkpoint.hub import cache_folder, check_content, fetch_command, locate
from pi05_ros.model.checkpoint.safetensors_file import MAX_HEADER
from pi05_ros.model.errors import CheckpointError
from pi05_ros.small_files import FileError, read_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"  # of PEFT
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
SHOWN = 10  # names listed in a message
ACCEPTED = (
    "accepted: a pi0.5 safetensors file, or a directory with model.safetensors, in the layout of "
    "openpi's PyTorch port or of LeRobot (policy type pi05)"
)
ORBAX = ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt", "ocdbt.process_0", "_sharding")


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
    path = locate(path)
    try:
        if path.is_dir():
            files = _files_in(path)
        elif not os.path.lexists(path):
            raise CheckpointError(f"{path}: no such file or directory; {ACCEPTED}")
        else:
            files = _named(path)
        for file in files:
            check_content(file)
    except (OSError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path!s:.200}: cannot be looked at: {error}") from error
    return files


def _named(path: Path) -> tuple[Path, ...]:
    """Weight files of a path that is no directory."""
    if path.is_symlink() and not path.exists():
        check_content(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: not a regular file; {ACCEPTED}")
    if path.name.endswith(".index.json"):
        return _shards(path)
    if path.suffix.lower() in PICKLES or _looks_pickled(path):
        raise CheckpointError(f"{path}: {_PICKLE}; {ACCEPTED}")
    if path.name.startswith("adapter_"):
        return _with_base(path.parent)
    return _whole(path)


_PICKLE = (
    "a pickle file; it can run code when opened and is refused. Save the weights as safetensors"
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
    if os.path.lexists(directory / ADAPTER_CONFIG) and os.path.lexists(directory / ADAPTER):
        return _with_base(directory)
    return _whole_model(directory)


def _with_base(directory: Path) -> tuple[Path, ...]:
    """Files of a PEFT adapter's base model, then the adapter's own."""
    adapter = directory / ADAPTER
    if not os.path.lexists(directory / ADAPTER_CONFIG):
        raise CheckpointError(
            f"{directory}: a LoRA adapter without {ADAPTER_CONFIG}, which names its base model "
            f"and its scale; {ACCEPTED}"
        )
    if any(os.path.lexists(directory / name) for name in (WEIGHTS, INDEX)):
        return (*_whole_model(directory), adapter)
    settings = read_json_file(directory / ADAPTER_CONFIG)
    base, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    if not isinstance(base, str) or not base:
        raise CheckpointError(
            f"{directory}: a LoRA adapter whose {ADAPTER_CONFIG} has no base_model_name_or_path; "
            "write the path or hub id of the base model into it"
        )
    if isinstance(revision, str) and "@" not in base and not os.path.lexists(base):
        base = f"{base}@{revision}"
    try:
        return (*find_files(base), adapter)
    except CheckpointError as error:
        raise CheckpointError(
            f"{directory}: the base model of this LoRA adapter ({ADAPTER_CONFIG}: "
            f"base_model_name_or_path) cannot be used: {error}"
        ) from error


def _whole_model(directory: Path) -> tuple[Path, ...]:
    for name in (WEIGHTS, INDEX):
        file = directory / name
        if file.is_symlink() and not file.exists():
            check_content(file)
    if (directory / WEIGHTS).is_file():
        return (directory / WEIGHTS,)
    if (directory / INDEX).is_file():
        return _shards(directory / INDEX)
    cache = cache_folder(directory)
    if cache is not None:
        raise CheckpointError(f"{directory}: {cache}")
    names = sorted(entry.name for entry in directory.iterdir())
    if ADAPTER_CONFIG in names or ADAPTER in names:
        return _with_base(directory)
    weights = [
        name
        for name in names
        if name.endswith(".safetensors")
        and not name.startswith("policy_")
        and ((directory / name).is_file() or (directory / name).is_symlink())
    ]
    indices = [name for name in names if name.endswith(".safetensors.index.json")]
    if len(indices) == 1:
        return _shards(directory / indices[0])
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
    if directory.parent.name == "snapshots":
        hint = f"; get them with: {fetch_command(directory)}"
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
        raise CheckpointError(
            f"{index}: {len(missing)} of {len(files)} shards are missing: {shorten(missing)}; get "
            f"them with: {fetch_command(index)}"
        )
    return files
