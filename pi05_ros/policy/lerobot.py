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

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from pi05_ros.model import CheckpointError
from pi05_ros.model.checkpoint import find_files
from pi05_ros.model.config import MAX_PROMPT_TOKENS
from pi05_ros.model.safetensors_file import read_header
from pi05_ros.policy.chunk import ActionMeaning, ActionUnit
from pi05_ros.policy.errors import PolicyError
from pi05_ros.policy.normalize import LEROBOT_EPS, NEEDED, Normalization, Normalizer
from pi05_ros.policy.profile import MODEL_DIM, Camera, RobotProfile
from pi05_ros.policy.profile_yaml import load_profile
from pi05_ros.policy.recipe import Recipe, read_json, whole_number

ERAS = ("auto", "0.4", "0.5")
DEFAULT_HZ = 30.0  # LeRobot's usual recording rate; its policy files do not tell it
STATE, ACTION = "observation.state", "action"
_MODES = {
    "IDENTITY": "identity",
    "MEAN_STD": "zscore",
    "MIN_MAX": "minmax",
    "QUANTILES": "quantile",
    "QUANTILE10": "quantile10",
}
_PREPROCESSOR = "policy_preprocessor.json"
_POSTPROCESSOR = "policy_postprocessor.json"
_RELATIVE = ("relative_actions_processor", "delta_actions_processor")
_KNOWN_STEPS = {
    *_RELATIVE,
    "rename_observations_processor",
    "to_batch_processor",
    "normalizer_processor",
    "pi05_prepare_state_tokenizer_processor_step",
    "tokenizer_processor",
    "device_processor",
    "unnormalizer_processor",
    "absolute_actions_processor",
}
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
    if (folder / _PREPROCESSOR).is_file():
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
    if config.get("use_proprioceptive_memory"):
        raise PolicyError(
            f"{folder} uses LeRobot's memory (use_proprioceptive_memory); not supported"
        )
    if config.get("n_obs_steps", 1) != 1:
        raise PolicyError(f"n_obs_steps is {config['n_obs_steps']}; accepted: 1")
    pre, post = _steps(folder / _PREPROCESSOR), _steps(folder / _POSTPROCESSOR)
    assumptions: list[str] = []
    for name, steps in ((_PREPROCESSOR, pre), (_POSTPROCESSOR, post)):
        if not steps:
            assumptions.append(f"{name} is missing: its values pass unchanged")
    era = _era(era, folder, config, pre, assumptions)
    inputs = _features(config, "input_features")
    state_size = _size(inputs, STATE, "input_features")
    action_size = _size(_features(config, "output_features"), ACTION, "output_features")
    rename = _config_of(pre, "rename_observations_processor").get("rename_map") or {}
    if not isinstance(rename, Mapping):
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
    tokenizer = _config_of(pre, "tokenizer_processor")
    length = whole_number(config, "tokenizer_max_length", MAX_PROMPT_TOKENS)
    old = era == "0.4"
    return Recipe(
        family="lerobot",
        profile=profile,
        normalization=Normalization(
            _normalizer(
                folder, pre, "normalizer_processor", "STATE", STATE, state_size, assumptions
            ),
            _normalizer(
                folder, post, "unnormalizer_processor", "ACTION", ACTION, action_size, assumptions
            ),
            source=f"{_PREPROCESSOR} and {_POSTPROCESSOR}",
        ),
        lerobot_pad=-3.0 if old else -1.0,
        prompt_state_size=whole_number(config, "max_state_dim", MODEL_DIM) if old else None,
        max_prompt_tokens=whole_number(tokenizer, "max_length", length),
        assumptions=tuple(assumptions),
    )


def _steps(path: Path) -> list[dict[str, Any]]:
    """Steps of a processor file, in order; [] if there is none."""
    steps = read_json(path).get("steps", [])
    if not isinstance(steps, list) or not all(isinstance(s, dict) for s in steps):
        raise PolicyError(f"{path} has no list of steps")
    for step in steps:
        name = step.get("registry_name")
        if not isinstance(name, str) or name not in _KNOWN_STEPS:
            raise PolicyError(
                f"{path} has the step {name or step.get('class')!r}, whose meaning is not known "
                f"here; accepted: {', '.join(sorted(_KNOWN_STEPS))}"
            )
    return steps


def _step(steps: Sequence[Mapping[str, Any]], *names: str) -> Mapping[str, Any] | None:
    return next((s for s in steps if s["registry_name"] in names), None)


def _config_of(steps: Sequence[Mapping[str, Any]], *names: str) -> Mapping[str, Any]:
    step = _step(steps, *names)
    config = (step or {}).get("config") or {}
    return config if isinstance(config, Mapping) else {}


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
    relative = _step(pre, *_RELATIVE)
    if relative is not None:
        signs.append(f"{_PREPROCESSOR} has {relative['registry_name']}")
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
    relative = _config_of(pre, *_RELATIVE)
    names = relative.get("action_names") or config.get("action_feature_names")
    if names is not None and not _is_names(names):
        raise PolicyError(f"action names are {names!r:.80}; accepted: a list of different texts")
    exclude = relative.get("exclude_joints") or []
    if not _is_names(exclude):
        raise PolicyError(f"exclude_joints is {exclude!r:.80}; accepted: a list of texts")
    absolute = _config_of(post, "absolute_actions_processor")
    mask: tuple[bool, ...] = ()
    if absolute.get("enabled"):
        if not relative:
            raise PolicyError(
                f"{_POSTPROCESSOR} makes actions absolute, but {_PREPROCESSOR} has none of the "
                f"steps {', '.join(_RELATIVE)} that would say which"
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
            control_hz=control_hz or given.control_hz,
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
        state_units=(ActionUnit.DIMENSIONLESS,) * state_size,
        action_names=tuple(str(n) for n in names),
        action_meanings=(ActionMeaning.ABSOLUTE,) * action_size,
        action_units=(ActionUnit.DIMENSIONLESS,) * action_size,
        control_hz=control_hz or DEFAULT_HZ,
        delta_mask=mask,
        horizon=horizon,
    )


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value)


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


def _normalizer(
    folder: Path,
    steps: Sequence[Mapping[str, Any]],
    step_name: str,
    kind: str,
    feature: str,
    size: int,
    assumptions: list[str],
) -> Normalizer:
    """Normaliser of one feature as its step says; statistics that are not there mean identity."""
    step = _step(steps, step_name)
    if step is None:
        return Normalizer("identity", family="lerobot")
    config = _config_of(steps, step_name)
    norm_map = config.get("norm_map") or {}
    if not isinstance(norm_map, Mapping):
        raise PolicyError(f"norm_map is {norm_map!r:.80}; accepted: a mapping of feature types")
    mode = str(norm_map.get(kind, "IDENTITY"))
    if mode not in _MODES:
        raise PolicyError(f"norm_map.{kind} is {mode!r}; accepted: {', '.join(_MODES)}")
    keys = config.get("normalize_observation_keys")
    if keys is not None and not _is_names(keys):
        raise PolicyError(f"normalize_observation_keys is {keys!r:.80}; accepted: a list of texts")
    eps = config.get("eps", LEROBOT_EPS)
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 <= eps < 1:
        raise PolicyError(f"eps is {eps!r:.50}; accepted: a number from 0 to below 1")
    if _MODES[mode] == "identity" or (
        keys is not None and kind == "STATE" and feature not in keys
    ):
        return Normalizer("identity", family="lerobot")
    stats = _read_stats(folder, step, feature)
    if not stats:
        assumptions.append(f"no statistics for {feature}: it passes unchanged")
        return Normalizer("identity", family="lerobot")
    try:
        normalizer = Normalizer(_MODES[mode], stats, family="lerobot", eps=float(eps))
    except PolicyError as error:
        raise PolicyError(f"{feature}: {error}") from error
    if normalizer.size != size:
        raise PolicyError(
            f"{step.get('state_file')}: statistics of {feature} cover {normalizer.size} values; "
            f"config.json says {size}"
        )
    return normalizer


def _read_stats(folder: Path, step: Mapping[str, Any], feature: str) -> dict[str, np.ndarray]:
    name = step.get("state_file")
    if name is None:
        return {}
    try:
        path = (folder / str(name)).resolve()
        inside = folder.resolve() in path.parents and path.is_file()
    except (OSError, ValueError):  # too long, or with a null character
        inside = False
    if not inside:
        raise PolicyError(f"state_file {name!r:.80} is not a file in {folder}")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise PolicyError(f"{path} is not a readable safetensors file: {error}") from error
    wanted = {stat for pair in NEEDED.values() for stat in pair}
    return {
        stat: np.asarray(values, dtype=np.float32)
        for key, values in tensors.items()
        for part, _, stat in [key.rpartition(".")]
        if part == feature and stat in wanted
    }
