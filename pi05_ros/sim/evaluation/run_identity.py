"""Whose results a directory holds, so that a run that goes on does not mix two checkpoints."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from pi05_ros.errors import InvalidValueError
from pi05_ros.model import checkpoint_hash
from pi05_ros.model.checkpoint.open import open_checkpoint
from pi05_ros.policy.checkpoints.recipe import RANDOM_PREFIX
from pi05_ros.policy.remote.remote_options import is_remote
from pi05_ros.policy.remote.remote_policy import RemotePolicy
from pi05_ros.small_files import read_json, write_atomically

FILE = "run.json"
RESULT_FILES = ("results.jsonl", "ros.jsonl", "latency.json")
"""What a run adds to, and what is put aside to start over."""
OLD = ".old"
"""Added to the names of results that were put aside: a slip of the pen must not cost them."""


def claim(out: Path, checkpoint: str, resume: bool, **facts: str | int) -> None:
    """Note in ``out`` what is evaluated there; without ``resume`` put earlier results aside.

    Args:
        out: directory of results, made if it is not there.
        checkpoint: as for `Policy.load`; files are told apart by their contents.
        resume: keep earlier results.
        facts: what else all results of a directory have in common.

    Raises:
        ValueError: ``out`` holds results of something else.
        CheckpointError: the checkpoint cannot be read.
        RemoteError: the policy server cannot be used.

    """
    if checkpoint.startswith(RANDOM_PREFIX):
        weights = checkpoint
    elif is_remote(checkpoint):
        policy = RemotePolicy(checkpoint)
        policy.close()
        weights = f"{policy.info.checkpoint_hash} served by {checkpoint}"
    else:
        open_checkpoint(checkpoint)  # refuses what is none before gigabytes are hashed
        weights = checkpoint_hash(checkpoint)
    now: Mapping[str, object] = {**facts, "weights": weights}
    path = out / FILE
    out.mkdir(parents=True, exist_ok=True)
    if not resume:
        for name in RESULT_FILES:
            with contextlib.suppress(FileNotFoundError):
                (out / name).replace(out / (name + OLD))
    elif os.path.lexists(path) and any((out / name).is_file() for name in RESULT_FILES):
        before = _read(path)
        other = [name for name in now if name in before and before[name] != now[name]]
        if other:
            raise InvalidValueError(
                f"{out} holds results of {other[0]} {before[other[0]]}, not "
                f"{now[other[0]]}; take another --out, or --no-resume to put them aside"
            )
    write_atomically(path, json.dumps({**now, "checkpoint": checkpoint}, indent=1) + "\n")


def _read(path: Path) -> dict[str, object]:
    try:
        return dict(read_json(path))
    except (ValueError, TypeError) as error:
        raise InvalidValueError(
            f"{path} does not say whose results are there ({error}); take another --out, or "
            "--no-resume to put them aside"
        ) from error
