"""Writes a full-size openpi checkpoint folder with random weights.

For measuring start-up and loading from disk where no trained weights can be had. Its actions mean
nothing: the file says so, chunks repeat it, and the executor refuses them. It has no tokenizer:
load it with the tokenizer "bytes".

usage: python3 scripts/random_checkpoint.py FOLDER [--robot droid] [--preset pi05] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from pi05_ros.model.checkpoint.open import RANDOM_MARK
from pi05_ros.model.config import PRESETS
from pi05_ros.model.layout import EXPERT_LM_HEAD, model_name, openpi_layout
from pi05_ros.model.pi05 import Pi05
from pi05_ros.policy.robots.profile_yaml import load_profile


def write_checkpoint(folder: Path, robot: str, preset: str, seed: int) -> Path:
    """Weights in bfloat16 where openpi has them so, and statistics that normalize to -1 .. 1."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = PRESETS[preset]
    draw = Pi05.random if device == "cpu" else Pi05.random_on_device
    parameters = dict(draw(config, seed, torch.bfloat16, device).named_parameters())
    tensors = {
        name: parameters[model_name(name)].data.cpu().contiguous()
        for name in openpi_layout(config)
        if name != EXPERT_LM_HEAD
    }
    profile = load_profile(robot)
    assets = folder / "assets" / robot
    assets.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt", RANDOM_MARK: "true"})
    statistics = {
        "state": _unit_statistics(len(profile.state_names)),
        "actions": _unit_statistics(len(profile.action_names)),
    }
    (assets / "norm_stats.json").write_text(json.dumps({"norm_stats": statistics}))
    return folder


def _unit_statistics(columns: int) -> dict[str, list[float]]:
    values = {"mean": 0.0, "std": 1.0, "q01": -1.0, "q99": 1.0}
    return {name: [value] * columns for name, value in values.items()}


def main() -> int:
    """Write it and say where."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--robot", default="droid")
    parser.add_argument("--preset", default="pi05", choices=sorted(PRESETS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(write_checkpoint(args.folder, args.robot, args.preset, args.seed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
