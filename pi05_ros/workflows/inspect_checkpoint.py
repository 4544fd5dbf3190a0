"""What a checkpoint holds, what it means and what is assumed, as JSON-ready values.

Reads headers and JSON files only, so it is as fast on 14 GB as on 2 MB.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pi05_ros.execution.limit_sources.joint_limits import LimitsError
from pi05_ros.execution.limit_sources.limits_yaml import limits_from_yaml
from pi05_ros.execution.limits import limits_from_urdf
from pi05_ros.model import CheckpointError, checkpoint_hash
from pi05_ros.model.checkpoint.discovery import ACCEPTED
from pi05_ros.model.checkpoint.hub import locate
from pi05_ros.model.checkpoint.weight_report import WeightReport, describe
from pi05_ros.policy.checkpoints.loading import read_recipe, with_tokenizer
from pi05_ros.policy.checkpoints.plausibility import statistics_doubts
from pi05_ros.policy.checkpoints.recipe import (
    DEFAULT_DENOISE_STEPS,
    RANDOM_PREFIX,
    Recipe,
)
from pi05_ros.policy.errors import PolicyError
from pi05_ros.policy.interface import ActionUnit
from pi05_ros.policy.prompt.tokenizer import MissingTokenizerError, load_tokenizer
from pi05_ros.policy.robots.profile_yaml import available_robots, load_profile
from pi05_ros.policy.robots.units import Unit
from pi05_ros.policy.transforms.normalize import Normalizer
from pi05_ros.small_files import FileError, read_text


def inspect_checkpoint(
    checkpoint: str,
    robot: str | None = None,
    with_hash: bool = False,
    limits_file: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything `pi05 inspect` says, as JSON-ready values.

    Args:
        checkpoint: path or hub id.
        robot: shipped profile or YAML file.
        with_hash: read all weights and hash them.
        limits_file: URDF or limits in YAML, which the statistics are compared with.
        overrides: `control_hz`, `lerobot_era`, `camera_roles` of `PolicyConfig`.

    Raises:
        RobotProfileError: the named profile cannot be used.
        LimitsError: the limits cannot be used.
        CheckpointError: the weights would not load.

    """
    limits = None if limits_file is None else _limits(Path(os.path.expanduser(limits_file)))
    if robot is not None:
        load_profile(robot)
    if checkpoint.startswith(RANDOM_PREFIX):
        raise CheckpointError(
            f"{checkpoint}: random weights are made when they are loaded, there is no "
            f"file to look into; {ACCEPTED}"
        )
    weights = describe(checkpoint)
    report = _weights(checkpoint, weights)
    if with_hash:
        report["hash"] = checkpoint_hash(checkpoint)
    report["assumed"] = list(weights.inferred.notes)
    report["doubts"] = []
    report.update({"robot": None, "prompt": None, "normalisation": None})
    folder = locate(checkpoint)
    report["norm_stats"] = _norm_stats(folder if folder.is_dir() else folder.parent)
    try:
        recipe = read_recipe(folder, robot, **(overrides or {}))
    except PolicyError as error:
        report["open"] = [str(error)]
        return report
    report["open"] = []
    try:
        vocab = weights.inferred.config.vocab
        tokenizer = load_tokenizer(recipe.tokenizer, folder, vocab)
        recipe = with_tokenizer(recipe, tokenizer, vocab)
        recipe = dataclasses.replace(recipe, tokenizer=tokenizer.name)
    except MissingTokenizerError:
        pass  # it may be named when the policy is loaded
    except PolicyError as error:
        report["open"].append(str(error))
    report.update(_meaning(recipe))
    if recipe.profile.horizon is not None:
        report["horizon"] = {
            "steps": recipe.profile.horizon,
            "source": weights.inferred.sources["horizon"]
            if weights.inferred.sources["horizon"] == "config.json"
            else f"robot profile {recipe.profile.name!r}",
        }
        report["assumed"] = [n for n in report["assumed"] if not n.startswith("horizon")]
    report["assumed"] += list(recipe.assumptions)
    report["doubts"] = list(recipe.doubts)
    if limits is not None:
        doubts = statistics_doubts(recipe.profile, recipe.normalization, limits)
        report["doubts"] += [doubt for doubt in doubts if doubt not in recipe.doubts]
    return report


def _limits(file: Path) -> dict[str, tuple[float, float]]:
    """Position limits of a URDF's or a limits file's joints, rad or m."""
    if file.suffix in (".yaml", ".yml"):
        found = limits_from_yaml(file)
    else:
        try:
            found = limits_from_urdf(read_text(file))
        except FileError as error:
            raise LimitsError(f"limits: {error}") from error
    ends = zip(found.names, found.lower, found.upper, found.continuous, strict=True)
    return {
        name: (float(low), float(high))
        for name, low, high, endless in ends
        if not endless and math.isfinite(low) and math.isfinite(high)
    }


def _weights(checkpoint: str, found: WeightReport) -> dict[str, Any]:
    config = found.inferred.config
    return {
        "checkpoint": checkpoint,
        "family": found.family,
        "files": {file.name: size for file, size in found.files.items()},
        "dtypes": {
            name: {"tensors": tensors, "parameters": elements}
            for name, (tensors, elements) in found.dtypes.items()
        },
        "embedding": found.embedding,
        "parameters": {**found.parameters, "unused": found.unused_parameters},
        "unused": {reason: list(names) for reason, names in found.unused.items()},
        "config": config.to_dict(),
        "config_sources": dict(found.inferred.sources),
        "horizon": {"steps": config.horizon, "source": found.inferred.sources["horizon"]},
        "notes": list(found.notes),
    }


def _norm_stats(folder: Path) -> dict[str, list[str]]:
    """Asset ids of an openpi checkpoint -> shipped robot profiles with that asset id."""
    assets = folder / "assets"
    if not assets.is_dir():
        return {}
    profiles = [load_profile(name) for name in available_robots()]
    ids = sorted(
        file.parent.relative_to(assets).as_posix() for file in assets.rglob("norm_stats.json")
    )
    return {asset: [p.name for p in profiles if p.asset_id == asset] for asset in ids}


def _meaning(recipe: Recipe) -> dict[str, Any]:
    profile, normal = recipe.profile, recipe.normalization
    return {
        "robot": {
            "name": profile.name,
            "cameras": {camera.role: camera.slot for camera in profile.cameras},
            "camera_sources": {c.role: c.source for c in profile.cameras if c.source},
            "state": list(profile.state_names),
            "state_units": _units(profile.state_units, profile.observed_units),
            "action_units": _units(profile.action_units, profile.command_units),
            "actions": {
                name: f"{meaning.name.lower()} {unit.name.lower()}"
                for name, meaning, unit in zip(
                    profile.action_names,
                    profile.action_meanings,
                    profile.command_units,
                    strict=True,
                )
            },
            "control_hz": profile.control_hz,
        },
        "prompt": {
            "mode": "task and state" if profile.discrete_state else "task only",
            "state_values": (recipe.prompt_state_size or len(profile.state_names))
            if profile.discrete_state
            else 0,
            "max_tokens": recipe.max_prompt_tokens,
            "tokenizer": recipe.tokenizer,
        },
        "denoise_steps": {
            "steps": recipe.denoise_steps or DEFAULT_DENOISE_STEPS,
            "source": "openpi's default" if recipe.denoise_steps is None else "config.json",
        },
        "normalisation": {
            "state": _normalizer(normal.state),
            "actions": _normalizer(normal.actions),
            "source": normal.source,
        },
    }


def _units(model: tuple[Unit, ...], robot: tuple[ActionUnit, ...]) -> list[dict[str, str]]:
    """Units of columns as the model has them, and on the robot's side."""
    return [
        {"model": a.name.lower(), "robot": b.name.lower()}
        for a, b in zip(model, robot, strict=True)
    ]


def _normalizer(normalizer: Normalizer) -> dict[str, Any]:
    return {"kind": normalizer.kind, "values": normalizer.size}
