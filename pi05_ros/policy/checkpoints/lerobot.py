"""LeRobot pi05 directories: config.json and the two processor JSON files say what numbers mean."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pi05_ros.model import CheckpointError
from pi05_ros.model.checkpoint.discovery import find_files
from pi05_ros.model.checkpoint.safetensors_file import read_header
from pi05_ros.model.config import MAX_PROMPT_TOKENS
from pi05_ros.model.expert import MAX_PERIOD, MIN_PERIOD
from pi05_ros.policy.checkpoints.lerobot_actions import in_order_of, read_names, read_relative
from pi05_ros.policy.checkpoints.lerobot_cameras import read_cameras, read_rename_map
from pi05_ros.policy.checkpoints.lerobot_processors import (
    POSTPROCESSOR,
    PREPROCESSOR,
    RELATIVE,
    Feature,
    check_images_unchanged,
    config_of,
    find_step,
    named_tokenizer,
    read_normalizer,
    read_steps,
)
from pi05_ros.policy.checkpoints.plausibility import statistics_doubts
from pi05_ros.policy.checkpoints.recipe import (
    Recipe,
    read_json,
    stated_denoise_steps,
    whole_number,
)
from pi05_ros.policy.errors import PolicyError
from pi05_ros.policy.interface import ActionMeaning
from pi05_ros.policy.robots.profile import MODEL_DIM, Camera, RobotProfile
from pi05_ros.policy.robots.profile_yaml import load_profile
from pi05_ros.policy.robots.units import Unit, UnitMap
from pi05_ros.policy.transforms.normalize import Normalization

ERAS = ("auto", "0.4", "0.5")
DEFAULT_HZ = 30.0  # LeRobot's usual recording rate; its policy files do not tell it
STATE, ACTION = "observation.state", "action"
_NEW_CONFIG_KEYS = (
    "use_relative_actions",
    "relative_exclude_joints",
    "action_feature_names",
    "rtc_training_max_delay",
    "use_proprioceptive_memory",
)


def is_lerobot(checkpoint: Path) -> bool:
    """Whether a path is a LeRobot policy directory (or the weights in one)."""
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    if os.path.lexists(folder / PREPROCESSOR):
        return True
    config = read_json(folder / "config.json")
    return "input_features" in config and "type" in config


def lerobot_recipe(
    checkpoint: Path,
    robot: str | Path | None = None,
    camera_roles: Mapping[str, str] | None = None,
    era: str = "auto",
    control_hz: float | None = None,
) -> Recipe:
    """Recipe of a LeRobot directory.

    Args:
        checkpoint: the directory.
        robot: optional profile for names, units, rate and default prompt; the checkpoint's
            files decide everything that changes numbers.
        camera_roles: role -> image feature, replacing the rule in the module's docstring.
        era: "0.4" (up to 0.4.4: state padded to 32 in the prompt, image borders at -3),
            "0.5" (since 0.5.0: neither), or "auto" to tell them apart by the files.
        control_hz: rate of the steps of a chunk; None takes the profile's or 30.

    Raises:
        PolicyError: files that are missing, contradictory or ask for what is not supported.

    """
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    config = read_json(folder / "config.json")
    if config.get("type") not in (None, "pi05"):
        raise PolicyError(f"{folder} holds a LeRobot {config['type']!r} policy; accepted: 'pi05'")
    _check_supported(folder, config)
    pre, post = read_steps(folder / PREPROCESSOR), read_steps(folder / POSTPROCESSOR)
    check_images_unchanged(folder, pre)
    assumptions: list[str] = []
    doubts: list[str] = []
    era = _era(era, folder, config, pre, assumptions)
    inputs = _features(config, "input_features")
    sizes = (
        _size(inputs, STATE, "input_features"),
        _size(_features(config, "output_features"), ACTION, "output_features"),
    )
    rename = read_rename_map(config_of(pre, "rename_observations_processor"))
    cameras = read_cameras(inputs, rename, camera_roles, assumptions)
    mask = read_relative(config, pre, post, sizes[1], doubts)
    names = read_names(config, pre, sizes[1], assumptions)
    if robot is None:
        profile = _profile(folder, names, cameras, sizes, mask, assumptions)
        if control_hz is None:
            assumptions.append(f"control rate is not in the files: {DEFAULT_HZ:g} Hz")
    else:
        notes = assumptions, doubts
        profile = _of_robot(load_profile(robot), names, cameras, sizes, mask, notes)
    horizon = whole_number(config, "chunk_size", 50, most=1024)
    profile = dataclasses.replace(
        profile,
        horizon=horizon,
        control_hz=profile.control_hz if control_hz is None else control_hz,
    )
    tokenizer = config_of(pre, "tokenizer_processor")
    length = whole_number(config, "tokenizer_max_length", MAX_PROMPT_TOKENS)
    normalization = Normalization(
        read_normalizer(folder, pre, Feature("STATE", STATE, sizes[0]), config, assumptions),
        read_normalizer(folder, post, Feature("ACTION", ACTION, sizes[1]), config, assumptions),
        source=f"{PREPROCESSOR} and {POSTPROCESSOR}",
    )
    doubts += statistics_doubts(profile, normalization)
    return Recipe(
        family="lerobot",
        profile=profile,
        normalization=dataclasses.replace(normalization, doubts=tuple(doubts)),
        lerobot_pad=-3.0 if era == "0.4" else -1.0,
        prompt_state_size=_prompt_state_size(config, pre, assumptions) if era == "0.4" else None,
        max_prompt_tokens=whole_number(tokenizer, "max_length", length),
        tokenizer=named_tokenizer(folder, tokenizer),
        denoise_steps=stated_denoise_steps(config),
        assumptions=tuple(assumptions),
        doubts=tuple(doubts),
    )


def _prompt_state_size(
    config: Mapping[str, Any], pre: Sequence[Mapping[str, Any]], assumptions: list[str]
) -> int:
    """Length to which LeRobot up to 0.4.4 padded the state in the prompts of training."""
    step = config_of(pre, "pi05_prepare_state_tokenizer_processor_step")
    size = whole_number(config, "max_state_dim", MODEL_DIM)
    size = whole_number(step, "max_state_dim", size)
    if size != MODEL_DIM:
        assumptions.append(
            f"the state is padded to max_state_dim {size} in the prompt, as in training; LeRobot "
            f"0.4 itself pads to {MODEL_DIM} when it loads the files again"
        )
    return size


def _check_supported(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise PolicyError for options that change the model into one that is not built here."""
    for key in ("use_proprioceptive_memory", "use_visual_memory"):
        if config.get(key):
            raise PolicyError(f"{folder} uses LeRobot's memory ({key}); not supported")
    for key, only in (("n_obs_steps", 1), ("min_period", MIN_PERIOD), ("max_period", MAX_PERIOD)):
        if config.get(key, only) not in (only, None):
            raise PolicyError(f"{folder}: {key} is {config[key]!r:.50}; accepted: {only:g}")


def _era(
    era: str,
    folder: Path,
    config: Mapping[str, Any],
    pre: Sequence[Mapping[str, Any]],
    assumptions: list[str],
) -> str:
    if era not in ERAS:
        raise PolicyError(f"lerobot_era is {era!r}; accepted: {', '.join(ERAS)}")
    if era != "auto":
        return era
    signs = [f"config.json has {key}" for key in _NEW_CONFIG_KEYS if key in config]
    relative = find_step(pre, *RELATIVE)
    if relative is not None:
        signs.append(f"{PREPROCESSOR} has {relative['registry_name']}")
    names = _tensor_names(folder)
    if any(n.endswith("language_model.embed_tokens.weight") for n in names) and any(
        n.endswith("paligemma.lm_head.weight") for n in names
    ):
        signs.append("the weights hold an untied embedding")
    if signs:
        assumptions.append(f"written by LeRobot 0.5 or later, because {signs[0]}")
        return "0.5"
    assumptions.append(
        "written by LeRobot 0.4.4 or earlier (nothing newer in its files): state padded in the "
        "prompt, image borders at -3; set lerobot_era to '0.5' if that is wrong"
    )
    return "0.4"


def _tensor_names(folder: Path) -> tuple[str, ...]:
    """Tensor names in the weight files; () where loading them will fail anyway."""
    try:
        return tuple(name for file in find_files(folder) for name in read_header(file)[0])
    except CheckpointError:
        return ()


def _features(config: Mapping[str, Any], key: str) -> dict[str, Mapping[str, Any]]:
    features = config.get(key)
    if not isinstance(features, Mapping) or not features:
        raise PolicyError(f"config.json has no {key}; accepted: a LeRobot pi05 config.json")
    return {str(name): value for name, value in features.items() if isinstance(value, Mapping)}


def _size(features: Mapping[str, Mapping[str, Any]], name: str, where: str) -> int:
    shape = features.get(name, {}).get("shape")
    if not isinstance(shape, list | tuple) or len(shape) != 1 or not isinstance(shape[0], int):
        raise PolicyError(f"config.json: {where} has no {name!r} with a shape of one number")
    if not 1 <= shape[0] <= MODEL_DIM:
        raise PolicyError(
            f"config.json: {name!r} has {shape[0]} values; accepted: 1 to {MODEL_DIM}"
        )
    return int(shape[0])


def _profile(
    folder: Path,
    names: tuple[str, ...] | None,
    cameras: tuple[Camera, ...],
    sizes: tuple[int, int],
    mask: tuple[bool, ...],
    assumptions: list[str],
) -> RobotProfile:
    """Profile of a checkpoint that is used without a robot's."""
    state_size, action_size = sizes
    if names is None:
        names = tuple(f"action_{i}" for i in range(action_size))
        assumptions.append("action names are not in the files: numbered")
    states = names if state_size == action_size else [f"state_{i}" for i in range(state_size)]
    assumptions.append(
        "state names and units are not in the files: name a robot profile to set them"
    )
    return RobotProfile(
        name=f"lerobot:{folder.name}",
        description="from the LeRobot checkpoint's own files",
        cameras=cameras,
        state_names=tuple(states),
        state_maps=(UnitMap(Unit.DIMENSIONLESS),) * state_size,
        action_names=names,
        action_meanings=(ActionMeaning.ABSOLUTE,) * action_size,
        action_maps=(UnitMap(Unit.DIMENSIONLESS),) * action_size,
        control_hz=DEFAULT_HZ,
        delta_mask=mask,
    )


def _of_robot(
    given: RobotProfile,
    names: tuple[str, ...] | None,
    cameras: tuple[Camera, ...],
    sizes: tuple[int, int],
    mask: tuple[bool, ...],
    notes: tuple[list[str], list[str]],
) -> RobotProfile:
    """Return a robot's profile with what the checkpoint decides."""
    if (len(given.state_names), len(given.action_names)) != sizes:
        raise PolicyError(
            f"robot profile {given.name!r} has {len(given.state_names)} state values and "
            f"{len(given.action_names)} actions, the checkpoint {sizes[0]} and {sizes[1]}"
        )
    turned = {c.role for c in given.cameras if c.rotate_180}
    needed = set(given.required_roles)
    cameras = tuple(
        dataclasses.replace(
            c, required=c.required or c.role in needed, rotate_180=c.role in turned
        )
        for c in cameras
    )
    ordered = in_order_of(given, names, any(mask), *notes)
    return dataclasses.replace(
        ordered, cameras=cameras, delta_mask=mask, discrete_state=True, adapt="none"
    )
