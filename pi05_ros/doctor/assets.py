"""Checks of what the user would run: checkpoint, tokenizer, robot profile."""

from __future__ import annotations

import os
from pathlib import Path

from pi05_ros.doctor.checks import Check, Level
from pi05_ros.policy.errors import PolicyError


def robot(name: str | None) -> tuple[list[Check], tuple[str, ...]]:
    """The robot profile, and the joint names it asks for."""
    from pi05_ros.policy.robots.profile_yaml import available_robots, load_profile

    try:
        profile = load_profile(name or "sim_arm")
    except PolicyError as error:
        return [Check("robot profile", Level.FAIL, str(error), "pi05 doctor --robot <name>")], ()
    if name is None:
        text = f"shipped: {', '.join(available_robots())}"
        return [Check("robot profiles", Level.OK, text)], ()
    text = (
        f"{profile.name}: cameras {', '.join(profile.camera_roles)}; "
        f"{len(profile.state_names)} state values, {len(profile.action_names)} actions"
    )
    return [Check("robot profile", Level.OK, text)], profile.state_names


def checkpoint(path: str | None) -> list[Check]:
    """Whether a checkpoint's files are those of a pi0.5 model and whole, from headers alone."""
    from pi05_ros.model.checkpoint.weight_report import describe
    from pi05_ros.model.errors import CheckpointError
    from pi05_ros.policy.checkpoints.recipe import RANDOM_PREFIX

    if path is None:
        return [
            Check(
                "checkpoint",
                Level.INFO,
                "none named: random:tiny (seeded random weights) serves tests and the demo",
                "pi05 doctor --checkpoint <directory>",
            )
        ]
    if path.startswith(RANDOM_PREFIX):
        return [_random(path)]
    place = Path(os.path.expanduser(path))
    try:
        found = describe(place)
    except CheckpointError as error:
        return [Check("checkpoint", Level.FAIL, str(error), "docs/checkpoints.md: what is read")]
    count = sum(parameters for _, parameters in found.dtypes.values())
    text = f"{place}: {found.family} pi0.5, {count / 1e9:.2f} billion parameters"
    return [Check("checkpoint", Level.OK, text, f"pi05 inspect {place} (for every detail)")]


def _random(name: str) -> Check:
    from pi05_ros.policy.checkpoints.loading import MAX_SEED_DIGITS, PRESETS
    from pi05_ros.policy.checkpoints.recipe import RANDOM_PREFIX

    preset, _, seed = name.removeprefix(RANDOM_PREFIX).partition(":")
    if preset in PRESETS and (not seed or (seed.isdecimal() and len(seed) <= MAX_SEED_DIGITS)):
        text = f"{name}: seeded random weights, must not move a real arm"
        return Check("checkpoint", Level.OK, text)
    accepted = ", ".join(RANDOM_PREFIX + preset for preset in PRESETS)
    fix = f"accepted: {accepted} (with :<seed> of up to {MAX_SEED_DIGITS} digits), or a path"
    return Check("checkpoint", Level.FAIL, f"{name} is unknown", fix)


def _vocabulary(checkpoint: Path | None) -> int:
    """Rows of a checkpoint's embedding; very many where that cannot be told."""
    from pi05_ros.model import CheckpointError, infer_config, open_checkpoint

    try:
        return (
            2**31 if checkpoint is None else infer_config(open_checkpoint(checkpoint)).config.vocab
        )
    except CheckpointError:  # said by the check of the checkpoint
        return 2**31


def tokenizer(path: str | None, checkpoint_path: str | None) -> list[Check]:
    """Whether a tokenizer is found and opens."""
    from pi05_ros.policy.checkpoints.recipe import RANDOM_PREFIX
    from pi05_ros.policy.prompt.tokenizer import load_tokenizer

    real = checkpoint_path is not None and not checkpoint_path.startswith(RANDOM_PREFIX)
    place = Path(os.path.expanduser(checkpoint_path)) if real and checkpoint_path else None
    try:
        found = load_tokenizer(path, place, _vocabulary(place))
    except PolicyError as error:
        needed = real or path is not None
        detail = str(error) if needed else "paligemma_tokenizer.model not found (real checkpoints)"
        return [
            Check(
                "tokenizer",
                Level.FAIL if needed else Level.MISSING,
                detail,
                "gsutil cp gs://big_vision/paligemma_tokenizer.model ~/.cache/openpi/big_vision/",
            )
        ]
    return [Check("tokenizer", Level.OK, f"{found.name}, {found.vocab_size} tokens")]
