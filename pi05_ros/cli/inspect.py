"""`pi05 inspect CHECKPOINT`: what a checkpoint holds, what it means and what is assumed.

Reads headers and JSON files only, so it is as fast on 14 GB as on 2 MB. Exits 1 when there is
no checkpoint or it would not load, 2 when the named robot profile cannot be used.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from typing import Any

from pi05_ros.cli.checkpoint_options import add_checkpoint_options, load_keywords

NAMES_SHOWN = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `pi05 inspect`."""
    parser.add_argument("checkpoint", help="safetensors file, directory or hub id")
    parser.add_argument("--robot", help="robot profile, a shipped name or a .yaml file")
    parser.add_argument("--limits", help="URDF or joint limits (YAML) to compare statistics with")
    add_checkpoint_options(parser)
    parser.add_argument("--hash", action="store_true", help="also hash the weights (reads all)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print the report; 1 if the checkpoint would not load, 2 (`main`) for an unknown robot."""
    from pi05_ros.model import CheckpointError
    from pi05_ros.workflows.inspect_checkpoint import inspect_checkpoint

    try:
        report = inspect_checkpoint(
            args.checkpoint, args.robot, args.hash, args.limits, load_keywords(args)
        )
    except CheckpointError as error:
        if args.debug:
            raise
        if args.json:
            print(json.dumps({"checkpoint": args.checkpoint, "error": str(error)}, indent=2))
        else:
            print(f"pi05 inspect: {error}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        _print(report)
    return 1 if args.robot and report["open"] else 0


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


def _unit(units: Mapping[str, str]) -> str:
    """Unit of a column, or how the model's becomes the robot's."""
    model, robot = units["model"], units["robot"]
    return robot if model == robot else f"{model} -> {robot}"


def _print_meaning(report: Mapping[str, Any], line: Any) -> None:
    robot, prompt, normal = report["robot"], report["prompt"], report["normalisation"]
    line("robot", f"{robot['name']}, {robot['control_hz']:g} Hz")
    for role, slot in robot["cameras"].items():
        source = robot["camera_sources"].get(role, slot)
        line("camera", f"{role} -> {slot}" if source == slot else f"{role} -> {source} -> {slot}")
    states = zip(robot["state"], robot["state_units"], strict=True)
    line("state", ", ".join(f"{name} ({_unit(units)})" for name, units in states))
    actions = zip(robot["actions"].items(), robot["action_units"], strict=True)
    line(
        "actions",
        ", ".join(
            f"{name} ({text.split()[0]}, {_unit(units)})" for (name, text), units in actions
        ),
    )
    state = f", {prompt['state_values']} state values" if prompt["state_values"] else ""
    line("prompt", f"{prompt['mode']}{state}, at most {prompt['max_tokens']} tokens")
    steps = report["denoise_steps"]
    line("denoise_steps", f"{steps['steps']} ({steps['source']})")
    for which in ("state", "actions"):
        values = normal[which]["values"]
        held = "" if values is None else f", {values} values"
        line("normalization", f"{which}: {normal[which]['kind']}{held}")
    line("normalization", f"from {normal['source']}")
