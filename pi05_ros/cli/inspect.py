"""`pi05 inspect CHECKPOINT`: what a checkpoint holds, what it means and what is assumed.

Reads headers and JSON files only, so it is as fast on 14 GB as on 2 MB. Exits 1 when there is
no checkpoint or it would not load, 2 when the named robot profile cannot be used.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pi05_ros.model import CheckpointError, checkpoint_hash
from pi05_ros.model.checkpoint.open import ACCEPTED
from pi05_ros.model.checkpoint.summary import WeightReport, describe
from pi05_ros.policy.checkpoints.lerobot import is_lerobot, lerobot_recipe
from pi05_ros.policy.checkpoints.recipe import (
    DEFAULT_DENOISE_STEPS,
    RANDOM_PREFIX,
    Recipe,
    openpi_recipe,
)
from pi05_ros.policy.errors import PolicyError
from pi05_ros.policy.robots.profile_yaml import available_robots, load_profile
from pi05_ros.policy.transforms.normalize import Normalizer

NAMES_SHOWN = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `pi05 inspect`."""
    parser.add_argument("checkpoint", help="safetensors file or directory (openpi or LeRobot)")
    parser.add_argument("--robot", help="robot profile, a shipped name or a .yaml file")
    parser.add_argument("--hash", action="store_true", help="also hash the weights (reads all)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print the report; 1 if the checkpoint would not load, 2 for a robot that is not known."""
    if args.robot is not None:
        load_profile(args.robot)
    try:
        if args.checkpoint.startswith(RANDOM_PREFIX):
            raise CheckpointError(
                f"{args.checkpoint}: random weights are made when they are loaded, there is no "
                f"file to look into; {ACCEPTED}"
            )
        report = inspect(args.checkpoint, args.robot, args.hash)
    except CheckpointError as error:
        if args.debug:
            raise
        if args.json:
            print(json.dumps({"checkpoint": args.checkpoint, "error": str(error)}, indent=2))
        else:
            print(f"error: {error}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        _print(report)
    return 0


def inspect(checkpoint: str, robot: str | None = None, with_hash: bool = False) -> dict[str, Any]:
    """Everything `pi05 inspect` says, as JSON-ready values.

    Raises:
        CheckpointError: the weights would not load.

    """
    weights = describe(checkpoint)
    report = _weights(checkpoint, weights)
    if with_hash:
        report["hash"] = checkpoint_hash(checkpoint)
    report["assumed"] = list(weights.inferred.notes)
    report["doubts"] = []
    report.update({"robot": None, "prompt": None, "normalisation": None})
    folder = Path(checkpoint)
    report["norm_stats"] = _norm_stats(folder if folder.is_dir() else folder.parent)
    try:
        lerobot = is_lerobot(folder)
        recipe = lerobot_recipe(folder, robot) if lerobot else openpi_recipe(folder, robot)
    except PolicyError as error:
        report["open"] = [str(error)]
        return report
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
    report["open"] = []
    return report


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


def _normalizer(normalizer: Normalizer) -> dict[str, Any]:
    return {"kind": normalizer.kind, "values": normalizer.size}


def _print(report: Mapping[str, Any]) -> None:
    config, count = report["config"], report["parameters"]

    def line(label: str, text: object) -> None:
        print(f"{label:15} {text}")

    line("checkpoint", report["checkpoint"])
    line("family", f"{report['family']} pi0.5, {report['embedding']} embedding")
    for name, size in report["files"].items():
        line("file", f"{name}, {size / 1e9:.3f} GB")
    if "hash" in report:
        line("hash", report["hash"])
    for name, held in report["dtypes"].items():
        line("dtype", f"{name}: {held['tensors']} tensors, {held['parameters']:,} parameters")
    for stage in ("vision", "prefill", "denoise", "unused"):
        line("parameters", f"{stage}: {count[stage]:,}")
    for reason, names in report["unused"].items():
        more = f", ... ({len(names)} in all)" if len(names) > NAMES_SHOWN else ""
        line("unused", f"{', '.join(names[:NAMES_SHOWN])}{more}: {reason}")
    for part in ("vision", "vlm", "expert"):
        line(part, ", ".join(f"{key} {value}" for key, value in config[part].items()))
    line("vocabulary", config["vocab"])
    line("action_dim", config["action_dim"])
    line("horizon", f"{report['horizon']['steps']} ({report['horizon']['source']})")
    for asset, robots in report["norm_stats"].items():
        line("norm_stats", f"{asset} (robot profiles: {', '.join(robots) or 'none shipped'})")
    if report["robot"] is not None:
        _print_meaning(report, line)
    for kind in ("notes", "assumed", "doubts", "open"):
        for text in report[kind]:
            line(kind.removesuffix("s"), text)


def _print_meaning(report: Mapping[str, Any], line: Any) -> None:
    robot, prompt, normal = report["robot"], report["prompt"], report["normalisation"]
    line("robot", f"{robot['name']}, {robot['control_hz']:g} Hz")
    for role, slot in robot["cameras"].items():
        source = robot["camera_sources"].get(role, slot)
        line("camera", f"{role} -> {slot}" if source == slot else f"{role} -> {source} -> {slot}")
    line("state", ", ".join(robot["state"]))
    line("actions", ", ".join(f"{name} ({text})" for name, text in robot["actions"].items()))
    state = f", {prompt['state_values']} state values" if prompt["state_values"] else ""
    line("prompt", f"{prompt['mode']}{state}, at most {prompt['max_tokens']} tokens")
    steps = report["denoise_steps"]
    line("denoise_steps", f"{steps['steps']} ({steps['source']})")
    for which in ("state", "actions"):
        values = normal[which]["values"]
        held = "" if values is None else f", {values} values"
        line("normalisation", f"{which}: {normal[which]['kind']}{held}")
    line("normalisation", f"from {normal['source']}")
