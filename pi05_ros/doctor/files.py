"""Checks of what the user would run: checkpoint, tokenizer, robot profile."""

from __future__ import annotations

from pathlib import Path

from pi05_ros.doctor.check import Check, Level
from pi05_ros.policy.errors import PolicyError

RANDOM = "random:"


def robot(name: str | None) -> tuple[list[Check], tuple[str, ...]]:
    """The robot profile, and the joint names it asks for."""
    from pi05_ros.policy.profile_yaml import available_robots, load_profile

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
    """Whether a checkpoint's files are there and whole, from headers alone."""
    if path is None:
        return [
            Check(
                "checkpoint",
                Level.INFO,
                "none named: random:tiny (seeded random weights) serves tests and the demo",
                "pi05 doctor --checkpoint <directory>",
            )
        ]
    if path.startswith(RANDOM):
        known = path in ("random:tiny", "random:pi05")
        return [
            Check(
                "checkpoint",
                Level.OK if known else Level.FAIL,
                f"{path}: seeded random weights, must not move a real arm",
                "" if known else "accepted: random:tiny, random:pi05, or a path",
            )
        ]
    place = Path(path).expanduser()
    files = sorted(place.glob("*.safetensors")) if place.is_dir() else [place]
    files = [file for file in files if file.is_file() and file.suffix == ".safetensors"]
    if not files:
        reason = "does not exist" if not place.exists() else "holds no .safetensors file"
        return [Check("checkpoint", Level.FAIL, f"{place} {reason}", f"pi05 inspect {place}")]
    try:
        tensors, values = _count(files)
    except Exception as error:  # safetensors raises its own kinds
        return [
            Check(
                "checkpoint",
                Level.FAIL,
                f"{place} is damaged or incomplete: {error}",
                "download it again and compare its sha256",
            )
        ]
    text = f"{place}: {tensors} tensors, {values / 1e9:.2f} billion values"
    return [Check("checkpoint", Level.OK, text, f"pi05 inspect {place} (for every detail)")]


def tokenizer(path: str | None, checkpoint_path: str | None) -> list[Check]:
    """Whether a tokenizer is found and opens."""
    from pi05_ros.policy.tokenizer import load_tokenizer

    real = checkpoint_path is not None and not checkpoint_path.startswith(RANDOM)
    place = Path(checkpoint_path).expanduser() if real and checkpoint_path else None
    try:
        found = load_tokenizer(path, place, 2**31)
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


def _count(files: list[Path]) -> tuple[int, int]:
    """Tensors and values of safetensors files."""
    from safetensors import safe_open

    tensors = values = 0
    for file in files:
        with safe_open(file, framework="numpy") as handle:
            for key in handle.keys():  # noqa: SIM118 - not a dict
                size = 1
                for length in handle.get_slice(key).get_shape():
                    size *= length
                tensors += 1
                values += size
    return tensors, values
