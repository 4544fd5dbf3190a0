"""LeRobot pi05 directories: config.json and the two processor JSON files say what numbers mean.

Which camera is which role: features with "wrist", "hand" or "gripper" in their name are "wrist",
then "wrist_2"; the first other one is "base"; what is left over takes the roles still free in the
order base, wrist, wrist_2, and beyond three its own last name. ``camera_roles`` overrides it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pi05_ros.model import CheckpointError
from pi05_ros.model.checkpoint.open import find_files
from pi05_ros.model.checkpoint.safetensors_file import read_header
from pi05_ros.model.config import MAX_PROMPT_TOKENS
from pi05_ros.model.expert import MAX_PERIOD, MIN_PERIOD
from pi05_ros.policy.checkpoints.lerobot_processors import (
    POSTPROCESSOR,
    PREPROCESSOR,
    RELATIVE,
    check_pictures_unchanged,
    config_of,
    find_step,
    is_names,
    named_tokenizer,
    read_normalizer,
    read_steps,
)
from pi05_ros.policy.checkpoints.recipe import Recipe, read_json, whole_number
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
    if (folder / PREPROCESSOR).is_file():
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
        era: "0.4" (up to 0.4.4: state padded to 32 in the prompt, picture borders at -3),
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
    check_pictures_unchanged(folder, pre)
    assumptions: list[str] = []
    for name, steps in ((PREPROCESSOR, pre), (POSTPROCESSOR, post)):
        if not steps:
            assumptions.append(f"{name} is missing: its values pass unchanged")
    era = _era(era, folder, config, pre, assumptions)
    inputs = _features(config, "input_features")
    state_size = _size(inputs, STATE, "input_features")
    action_size = _size(_features(config, "output_features"), ACTION, "output_features")
    rename = config_of(pre, "rename_observations_processor").get("rename_map") or {}
    if not isinstance(rename, Mapping) or not is_names(list(rename.values())):
        raise PolicyError(f"rename_map is {rename!r:.80}; accepted: a mapping of feature names")
    profile = _profile(
        robot,
        folder,
        config,
        _cameras(inputs, rename, camera_roles),
        (state_size, action_size),
        (pre, post),
        control_hz,
        assumptions,
    )
    tokenizer = config_of(pre, "tokenizer_processor")
    length = whole_number(config, "tokenizer_max_length", MAX_PROMPT_TOKENS)
    old = era == "0.4"
    return Recipe(
        family="lerobot",
        profile=profile,
        normalization=Normalization(
            read_normalizer(
                folder, pre, "normalizer_processor", "STATE", STATE, state_size, assumptions
            ),
            read_normalizer(
                folder, post, "unnormalizer_processor", "ACTION", ACTION, action_size, assumptions
            ),
            source=f"{PREPROCESSOR} and {POSTPROCESSOR}",
        ),
        lerobot_pad=-3.0 if old else -1.0,
        prompt_state_size=whole_number(config, "max_state_dim", MODEL_DIM) if old else None,
        max_prompt_tokens=whole_number(tokenizer, "max_length", length),
        tokenizer=named_tokenizer(folder, tokenizer),
        assumptions=tuple(assumptions),
    )


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
        "prompt, picture borders at -3; set lerobot_era to '0.5' if that is wrong"
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


def _cameras(
    inputs: Mapping[str, Mapping[str, Any]],
    rename: Mapping[str, str],
    override: Mapping[str, str] | None,
) -> tuple[Camera, ...]:
    """Cameras in the order of config.json; ``empty_camera`` features stay masked for good."""
    features = [
        name
        for name, value in inputs.items()
        if value.get("type") == "VISUAL" and "empty_camera" not in name
    ]
    if not features:
        raise PolicyError("config.json: input_features has no camera (type VISUAL)")
    roles = derive_roles(features)
    if override is not None:
        named = {rename.get(feature, feature): role for role, feature in override.items()}
        unknown = [name for name in named if name not in features]
        if unknown:
            raise PolicyError(
                f"camera_roles names the feature {unknown[0]!r}; accepted: {', '.join(features)}"
            )
        features = [name for name in features if name in named]
        roles = named
    required = "base" if "base" in roles.values() else roles[features[0]]
    return tuple(
        Camera(role=roles[name], slot=name, required=roles[name] == required) for name in features
    )


def derive_roles(features: Sequence[str]) -> dict[str, str]:
    """Role of each image feature by the rule in the module's docstring."""
    free = ["base", "wrist", "wrist_2"]
    roles: dict[str, str] = {}
    for name in features:
        if any(word in name.lower() for word in ("wrist", "hand", "gripper")):
            role = next((r for r in free if r != "base"), None)
            if role is not None:
                roles[name] = role
                free.remove(role)
    for name in features:
        if name not in roles:
            roles[name] = free.pop(0) if free else name.rsplit(".", 1)[-1]
    return roles


def _profile(
    robot: str | Path | None,
    folder: Path,
    config: Mapping[str, Any],
    cameras: tuple[Camera, ...],
    sizes: tuple[int, int],
    processors: tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]],
    control_hz: float | None,
    assumptions: list[str],
) -> RobotProfile:
    state_size, action_size = sizes
    pre, post = processors
    relative = config_of(pre, *RELATIVE)
    names = relative.get("action_names") or config.get("action_feature_names")
    if names is not None and not is_names(names):
        raise PolicyError(f"action names are {names!r:.80}; accepted: a list of different texts")
    exclude = relative.get("exclude_joints") or []
    if not is_names(exclude):
        raise PolicyError(f"exclude_joints is {exclude!r:.80}; accepted: a list of texts")
    absolute = config_of(post, "absolute_actions_processor")
    mask: tuple[bool, ...] = ()
    if absolute.get("enabled"):
        if not relative:
            raise PolicyError(
                f"{POSTPROCESSOR} makes actions absolute, but {PREPROCESSOR} has none of the "
                f"steps {', '.join(RELATIVE)} that would say which"
            )
        mask = relative_mask(exclude, names, action_size)
    horizon = whole_number(config, "chunk_size", 50, most=1024)
    if robot is not None:
        given = load_profile(robot)
        if (len(given.state_names), len(given.action_names)) != (state_size, action_size):
            raise PolicyError(
                f"robot profile {given.name!r} has {len(given.state_names)} state values and "
                f"{len(given.action_names)} actions, the checkpoint {state_size} and {action_size}"
            )
        turned = {c.role for c in given.cameras if c.rotate_180}
        needed = set(given.required_roles)
        cameras = tuple(
            dataclasses.replace(
                c, required=c.required or c.role in needed, rotate_180=c.role in turned
            )
            for c in cameras
        )
        return dataclasses.replace(
            given,
            cameras=cameras,
            delta_mask=mask,
            horizon=horizon,
            discrete_state=True,
            control_hz=given.control_hz if control_hz is None else control_hz,
            adapt="none",
        )
    if names is None or len(names) != action_size:
        names = [f"action_{i}" for i in range(action_size)]
        assumptions.append("action names are not in the files: numbered")
    states = names if state_size == action_size else [f"state_{i}" for i in range(state_size)]
    assumptions.append(
        "state names and units are not in the files: name a robot profile to set them"
    )
    if control_hz is None:
        assumptions.append(f"control rate is not in the files: {DEFAULT_HZ:g} Hz")
    return RobotProfile(
        name=f"lerobot:{folder.name}",
        description="from the LeRobot checkpoint's own files",
        cameras=cameras,
        state_names=tuple(str(n) for n in states),
        state_maps=(UnitMap(Unit.DIMENSIONLESS),) * state_size,
        action_names=tuple(str(n) for n in names),
        action_meanings=(ActionMeaning.ABSOLUTE,) * action_size,
        action_maps=(UnitMap(Unit.DIMENSIONLESS),) * action_size,
        control_hz=DEFAULT_HZ if control_hz is None else control_hz,
        delta_mask=mask,
        horizon=horizon,
    )


def relative_mask(
    exclude: Sequence[str], names: Sequence[str] | None, size: int
) -> tuple[bool, ...]:
    """Which actions are relative: all but those whose name contains an excluded word.

    As LeRobot's RelativeActionsProcessorStep: case is ignored; without names nothing is excluded.
    """
    words = [str(word).lower() for word in exclude if word]
    if not words or names is None:
        return (True,) * size
    mask = [not any(word in str(name).lower() for word in words) for name in names[:size]]
    mask += [True] * (size - len(mask))
    return tuple(mask)
