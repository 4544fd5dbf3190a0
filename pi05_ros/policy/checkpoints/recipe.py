"""What a checkpoint's numbers mean: everything between an observation and the model, resolved.

Precedence of each fact: explicit parameter, then the checkpoint's own files, then the robot
profile, then openpi's defaults. What had to be assumed is listed in words.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pi05_ros import small_files
from pi05_ros.model.checkpoint.infer_config import SCALARS
from pi05_ros.model.config import MAX_PROMPT_TOKENS
from pi05_ros.policy.checkpoints.norm_stats import openpi_normalization, range_normalization
from pi05_ros.policy.checkpoints.plausibility import statistics_doubts
from pi05_ros.policy.errors import PolicyError
from pi05_ros.policy.interface import MAX_DENOISE_STEPS
from pi05_ros.policy.robots.profile import RobotProfile
from pi05_ros.policy.robots.profile_yaml import available_robots, load_profile
from pi05_ros.policy.transforms.normalize import Normalization
from pi05_ros.small_files import FileError

RANDOM_PREFIX = "random:"
RANDOM_WEIGHTS = "weights are random: the actions mean nothing"
DEFAULT_ROBOT = "sim_arm"  # of seeded random weights
DEFAULT_DENOISE_STEPS = 10  # of openpi and LeRobot


@dataclass(frozen=True)
class Recipe:
    """Resolved semantics of one checkpoint on one robot.

    Attributes:
        family: "random", "openpi" or "lerobot".
        profile: the robot; ``horizon`` is None if only the weights' configuration tells it.
        normalization: state in, actions out.
        lerobot_pad: border value of LeRobot's resize, or None for openpi's (Pillow) resize.
        prompt_state_size: the normalized state is padded with zeros to this length before it
            goes into the prompt (LeRobot up to 0.4.4), or None.
        max_prompt_tokens: longer prompts are refused.
        prompt_bos: prompts begin with BOS.
        tokenizer: what the checkpoint names as its tokenizer, or None.
        denoise_steps: Euler steps of the flow that the checkpoint's files ask for, or None.
        assumptions: facts that no file told, one sentence each.
        doubts: why numbers may mean something else than is taken here, one sentence each.

    """

    family: str
    profile: RobotProfile
    normalization: Normalization
    lerobot_pad: float | None = None
    prompt_state_size: int | None = None
    max_prompt_tokens: int = MAX_PROMPT_TOKENS
    prompt_bos: bool = True
    tokenizer: str | None = None
    denoise_steps: int | None = None
    assumptions: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; {} if there is no such file.

    Raises:
        PolicyError: not a readable JSON file, or not an object.

    """
    if not os.path.lexists(path):
        return {}
    try:
        data = small_files.read_json(path)
    except FileError as error:
        raise PolicyError(str(error)) from error
    if not isinstance(data, dict):
        raise PolicyError(f"{path} holds a {type(data).__name__}; accepted: a JSON object")
    return data


def whole_number(config: Mapping[str, Any], key: str, default: int, most: int = 100_000) -> int:
    """Positive whole number of a JSON object; null and absent mean the default.

    Raises:
        PolicyError: something else.

    """
    value = config.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise PolicyError(f"{key} is {value!r:.50}; accepted: a whole number from 1 to {most}")
    return value


def stated_scalar(config: Mapping[str, Any], field: str, most: int = 100_000) -> int | None:
    """Positive whole number of config.json under any name in `model.infer.SCALARS`, or None.

    That the names agree is checked with the weights.
    """
    for key in SCALARS[field]:
        if config.get(key) is not None:
            return whole_number(config, key, 0, most)
    return None


def stated_denoise_steps(config: Mapping[str, Any]) -> int | None:
    """Flow steps that config.json asks for (LeRobot's num_inference_steps, num_steps), or None.

    Raises:
        PolicyError: not a whole number from 1 to MAX_DENOISE_STEPS, or two that differ.

    """
    found = {
        key: whole_number(config, key, 0, MAX_DENOISE_STEPS)
        for key in ("num_inference_steps", "num_steps")
        if config.get(key) is not None
    }
    if len(set(found.values())) > 1:
        raise PolicyError(f"config.json contradicts itself about the flow steps: {found}")
    return next(iter(found.values()), None)


def random_recipe(robot: str | Path | None) -> Recipe:
    """Recipe of seeded random weights: the profile's ranges, a byte tokenizer."""
    profile = load_profile(DEFAULT_ROBOT if robot is None else robot)
    return Recipe(
        family="random",
        profile=profile,
        normalization=range_normalization(profile),
        tokenizer="bytes",
        assumptions=(RANDOM_WEIGHTS,),
    )


def openpi_recipe(checkpoint: Path, robot: str | Path | None) -> Recipe:
    """Recipe of an openpi checkpoint, whose semantics are the robot profile's.

    config.json may add two keys that openpi does not write: ``robot`` (profile used when no
    robot is given) and ``tokenizer`` (a file beside it, or "bytes").

    Raises:
        PolicyError: no robot given, or no usable statistics.

    """
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    config = read_json(folder / "config.json")
    robot = robot if robot is not None else config.get("robot")
    if not isinstance(robot, str | Path):
        raise PolicyError(
            f"checkpoint {checkpoint} does not say which robot it is for; set robot to one of "
            f"{', '.join(available_robots())}, or to a .yaml file"
        )
    profile = load_profile(robot)
    assumptions = []
    horizon = stated_scalar(config, "horizon", most=1024)
    if horizon is not None:
        if profile.horizon not in (None, horizon):
            assumptions.append(
                f"horizon {horizon} of config.json is used, not {profile.horizon} of robot "
                f"profile {profile.name!r}"
            )
        profile = dataclasses.replace(profile, horizon=horizon)
    else:
        assumptions.append(
            f"the files tell no horizon; {profile.horizon or 'the model default'} is used"
        )
    assumptions.append(
        f"prompt {'with' if profile.discrete_state else 'without'} state, as robot profile "
        f"{profile.name!r} says"
    )
    tokenizer = config.get("tokenizer")
    if tokenizer is not None and tokenizer != "bytes":
        tokenizer = str(folder / str(tokenizer))
    normalization = openpi_normalization(checkpoint, profile)
    doubts = (*normalization.doubts, *statistics_doubts(profile, normalization))
    return Recipe(
        family="openpi",
        profile=profile,
        normalization=dataclasses.replace(normalization, doubts=doubts),
        max_prompt_tokens=stated_scalar(config, "max_prompt_tokens") or MAX_PROMPT_TOKENS,
        tokenizer=tokenizer,
        denoise_steps=stated_denoise_steps(config),
        assumptions=tuple(assumptions),
        doubts=doubts,
    )
