"""Whose results a directory holds, so that a run that goes on does not mix two checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pi05_ros.model import checkpoint_hash
from pi05_ros.policy.recipe import RANDOM_PREFIX

FILE = "run.json"
RESULT_FILES = ("results.jsonl", "latency.json")
"""What a run adds to, and what is removed to start over."""


def claim(out: Path, checkpoint: str, resume: bool, **facts: str | int) -> None:
    """Note in ``out`` what is evaluated there; without ``resume`` remove earlier results first.

    Args:
        out: directory of results, made if it is not there.
        checkpoint: as for `Policy.load`; files are told apart by their contents.
        resume: keep earlier results.
        facts: what else all results of a directory have in common.

    Raises:
        ValueError: ``out`` holds results of something else.
        CheckpointError: the checkpoint cannot be read.

    """
    weights = checkpoint if checkpoint.startswith(RANDOM_PREFIX) else checkpoint_hash(checkpoint)
    now: Mapping[str, object] = {**facts, "weights": weights}
    path = out / FILE
    out.mkdir(parents=True, exist_ok=True)
    if not resume:
        for name in RESULT_FILES:
            (out / name).unlink(missing_ok=True)
    elif path.is_file() and any((out / name).is_file() for name in RESULT_FILES):
        before = json.loads(path.read_text("utf-8"))
        other = [name for name in now if before.get(name) != now[name]]
        if other:
            raise ValueError(
                f"{out} holds results of {other[0]} {before.get(other[0])}, not "
                f"{now[other[0]]}; take another --out, or --no-resume to replace them"
            )
    path.write_text(json.dumps({**now, "checkpoint": checkpoint}, indent=1) + "\n", "utf-8")
