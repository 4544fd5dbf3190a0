"""Checkpoints on the Hugging Face hub, by id, and what is wrong with copies of them.

``hf://org/name`` and ``hf://org/name@revision`` always mean the hub; plain ``org/name`` does where
there is no such path. Downloads go through `huggingface_hub`, so its environment variables hold:
HF_HOME, HF_TOKEN, HF_ENDPOINT, and HF_HUB_OFFLINE for what is in the cache already.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pi05_ros.model.errors import CheckpointError

SCHEME = "hf://"
_NAME = r"[A-Za-z0-9][\w.-]{0,95}"
_HUB_ID = re.compile(rf"({_NAME}/{_NAME})(?:@([\w./-]{{1,200}}))?")
_CACHED = re.compile(r"models--(.+?)--(.+)")
# What a policy is made of: no pickles, no optimizer.
_WANTED = ("*.json", "*.safetensors", "*.model")
TOKENIZER_FILES = ("tokenizer.json", "*.model")
_UNWANTED = ["*training_state*", "*optimizer*"]
_POINTERS = (
    (b"version https://git-lfs.github.com/spec/", "a Git LFS pointer"),
    (b"# xet version ", "a Xet pointer"),
)


@dataclass(frozen=True)
class HubId:
    """Repository of the hub, and a branch, tag or commit of it (None: its main branch)."""

    name: str
    revision: str | None = None


def parse_hub_id(checkpoint: str | Path) -> HubId | None:
    """Hub id that a checkpoint's name is, or None for a path.

    Raises:
        CheckpointError: it begins with hf:// and is no id.

    """
    text = str(checkpoint)
    stated = text.startswith(("hf://", "hf:/"))  # a Path has lost one of the two
    rest = re.sub(r"^hf:/+", "", text) if stated else text
    match = _HUB_ID.fullmatch(rest)
    if match is None or any(".." in part or "--" in part for part in rest.split("/")):
        if stated:
            raise CheckpointError(
                f"{text!r:.200} is no hub id; accepted: hf://ORGANIZATION/NAME or "
                "hf://ORGANIZATION/NAME@REVISION"
            )
        return None
    plain = rest.endswith((".safetensors", ".json")) or os.path.lexists(rest.split("/")[0])
    if not stated and (plain or os.path.lexists(text)):
        return None
    return HubId(match[1], match[2])


def locate(checkpoint: str | Path, wanted: tuple[str, ...] = _WANTED) -> Path:
    """Path of a checkpoint on this machine; a hub id is downloaded first, or found in the cache.

    Args:
        checkpoint: path or hub id.
        wanted: patterns of the files to download.

    Raises:
        CheckpointError: the hub has no such repository or revision, or cannot be reached.

    """
    path = Path(os.path.expanduser(checkpoint))
    if os.path.lexists(path):
        return path
    hub_id = parse_hub_id(checkpoint)
    return path if hub_id is None else _download(hub_id, wanted)


@lru_cache(maxsize=16)
def _download(hub_id: HubId, wanted: tuple[str, ...]) -> Path:
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError as error:
        raise CheckpointError(
            f"{hub_id.name} is no path here, and hub ids need huggingface_hub: "
            "pip install huggingface_hub"
        ) from error
    shown = SCHEME + hub_id.name + (f"@{hub_id.revision}" if hub_id.revision else "")
    try:
        folder = snapshot_download(
            hub_id.name,
            revision=hub_id.revision,
            allow_patterns=list(wanted),
            ignore_patterns=_UNWANTED,
        )
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{shown}: access is restricted; accept its terms on the hub and log in with: "
            "hf auth login"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{shown}: the repository has no such revision") from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{shown}: no such path here, and the hub has no such repository that you may read "
            "(for a private one: hf auth login)"
        ) from error
    except Exception as error:  # of the library, of its HTTP client, or of the file system
        from huggingface_hub import constants

        first = (str(error).splitlines() or [""])[0]
        why = f"{type(error).__name__}: {first:.200}"
        if constants.HF_HUB_OFFLINE:
            why = f"it is not in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE is set"
        raise CheckpointError(
            f"{shown}: no such path here, and it cannot be got from {constants.ENDPOINT}: {why}"
        ) from error
    return Path(folder)


def fetch_command(path: Path) -> str:
    """Command that gets the real content of a file of a copied repository."""
    for folder in (path, *path.parents):
        match = _CACHED.fullmatch(folder.name)
        if match is not None:
            snapshot = path.relative_to(folder).parts
            revision = f" --revision {snapshot[1]}" if snapshot[:1] == ("snapshots",) else ""
            return f"hf download {match[1]}/{match[2]}{revision}"
        if (folder / ".git").exists():
            return f"git -C {folder} lfs pull"
    place = path.parent
    return f"git lfs pull (in its clone), or hf download ORGANIZATION/NAME --local-dir {place}"


def check_content(file: Path) -> None:
    """Raise CheckpointError for a link to nothing, or a pointer in place of a file."""
    if file.is_symlink() and not file.exists():
        raise CheckpointError(
            f"{file} is a link to {os.readlink(file)}, which does not exist (an interrupted "
            f"download or a cleaned cache); get it with: {fetch_command(file)}"
        )
    try:
        with open(file, "rb") as opened:
            start = opened.read(64)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror or error}") from error
    for mark, what in _POINTERS:
        if start.startswith(mark):
            raise CheckpointError(
                f"{file} is {what}, not the file itself; get it with: {fetch_command(file)}"
            )


def cache_folder(directory: Path) -> str | None:
    """Return what a folder of the hub's cache is and what to give instead, or None for another."""
    match = _CACHED.fullmatch(directory.name)
    if match is None and directory.name == "snapshots":
        match = _CACHED.fullmatch(directory.parent.name)
        directory = directory.parent
    if match is not None:
        name = f"{match[1]}/{match[2]}"
        held = sorted((directory / "snapshots").glob("*"))
        snapshots = ", ".join(str(snapshot) for snapshot in held[:3]) or "none"
        return (
            f"the cache folder of {name}; give {SCHEME}{name}, or one of its snapshots: "
            f"{snapshots}"
        )
    repositories = [
        found
        for entry in sorted(directory.glob("models--*"))
        if (found := _CACHED.fullmatch(entry.name))
    ]
    if repositories:
        names = ", ".join(f"{SCHEME}{found[1]}/{found[2]}" for found in repositories[:3])
        return f"the hub's cache; give one of its repositories: {names}"
    return None
