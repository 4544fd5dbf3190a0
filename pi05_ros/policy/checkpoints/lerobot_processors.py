"""LeRobot's processor files: their steps, and the normalizers with their statistics."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load

from pi05_ros.policy.checkpoints.norm_stats import stays_inside
from pi05_ros.policy.checkpoints.recipe import read_json
from pi05_ros.policy.errors import PolicyError
from pi05_ros.policy.transforms.normalize import LEROBOT_EPS, NEEDED, Normalizer
from pi05_ros.small_files import FileError, MissingFileError, read_bytes

PREPROCESSOR = "policy_preprocessor.json"
POSTPROCESSOR = "policy_postprocessor.json"
RELATIVE = ("relative_actions_processor", "delta_actions_processor")
_MODES = {
    "IDENTITY": "identity",
    "MEAN_STD": "zscore",
    "MIN_MAX": "minmax",
    "QUANTILES": "quantile",
    "QUANTILE10": "quantile10",
}
# Steps that change numbers, in the only order in which they are known to mean what is read here.
_ORDER = (
    *RELATIVE,
    "normalizer_processor",
    "pi05_prepare_state_tokenizer_processor_step",
    "tokenizer_processor",
    "unnormalizer_processor",
    "absolute_actions_processor",
)
_KNOWN_STEPS = {
    *_ORDER,
    "rename_observations_processor",
    "to_batch_processor",
    "device_processor",
}


def read_steps(path: Path) -> list[dict[str, Any]]:
    """Steps of a processor file, in order.

    Raises:
        PolicyError: no such file, a step whose meaning is not known, or an order of steps that
            means something else.

    """
    if not os.path.lexists(path):
        raise PolicyError(
            f"{path} is missing: without it, relative actions and statistics of the checkpoint "
            f"are not known; copy {PREPROCESSOR}, {POSTPROCESSOR} and the .safetensors files they "
            "name from the training run or the hub"
        )
    steps = read_json(path).get("steps")
    if not isinstance(steps, list) or not all(isinstance(s, dict) for s in steps):
        raise PolicyError(f"{path} has no list of steps")
    for step in steps:
        name = step.get("registry_name")
        if not isinstance(name, str) or name not in _KNOWN_STEPS:
            raise PolicyError(
                f"{path} has the step {name or step.get('class')!r}, whose meaning is not known "
                f"here; accepted: {', '.join(sorted(_KNOWN_STEPS))}"
            )
    names = [step["registry_name"] for step in steps]
    order = [name for name in names if name in _ORDER]
    if order != sorted(set(order), key=_ORDER.index):
        raise PolicyError(
            f"{path} has the steps {', '.join(order)}; another order or number of them means "
            f"other values; accepted, each at most once: {', '.join(_ORDER)}"
        )
    return steps


def find_step(steps: Sequence[Mapping[str, Any]], *names: str) -> Mapping[str, Any] | None:
    """Return the first step registered under one of the names."""
    return next((s for s in steps if s["registry_name"] in names), None)


def config_of(steps: Sequence[Mapping[str, Any]], *names: str) -> Mapping[str, Any]:
    """Return the settings of that step; {} without it."""
    step = find_step(steps, *names)
    config = (step or {}).get("config") or {}
    return config if isinstance(config, Mapping) else {}


def is_names(value: Any) -> bool:
    """Whether a JSON value is a list of texts."""
    return isinstance(value, list) and all(isinstance(v, str) for v in value)


@dataclass(frozen=True)
class Feature:
    """State or action of a policy.

    Attributes:
        kind: "STATE" or "ACTION", key of norm_map.
        name: of the feature, key of the statistics.
        size: its values.

    """

    kind: str
    name: str
    size: int


def read_normalizer(
    folder: Path,
    steps: Sequence[Mapping[str, Any]],
    feature: Feature,
    policy: Mapping[str, Any],
    assumptions: list[str],
) -> Normalizer:
    """Normalizer of one feature as its step says.

    Args:
        folder: of the checkpoint.
        steps: of the preprocessor (for the state) or the postprocessor (for the actions).
        feature: which.
        policy: config.json; its normalization_mapping tells whether a step has to be there.
        assumptions: gets a sentence where a state passes unchanged.

    Raises:
        PolicyError: no step or no statistics although values are not meant to pass unchanged, or
            statistics that cannot be used.

    """
    is_state = feature.kind == "STATE"
    step_name = "normalizer_processor" if is_state else "unnormalizer_processor"
    where = PREPROCESSOR if is_state else POSTPROCESSOR
    step = find_step(steps, step_name)
    if step is None:
        mapping = policy.get("normalization_mapping")
        if isinstance(mapping, Mapping) and mapping.get(feature.kind) == "IDENTITY":
            return Normalizer("identity", family="lerobot")
        raise PolicyError(
            f"{where} has no {step_name} step, so how {feature.name} is normalized is not known; "
            "copy the processor files of the training run, or state IDENTITY for "
            f"{feature.kind} in normalization_mapping of config.json"
        )
    config = config_of(steps, step_name)
    norm_map = config.get("norm_map") or {}
    if not isinstance(norm_map, Mapping):
        raise PolicyError(f"norm_map is {norm_map!r:.80}; accepted: a mapping of feature types")
    mode = str(norm_map.get(feature.kind, "IDENTITY"))
    if mode not in _MODES:
        raise PolicyError(f"norm_map.{feature.kind} is {mode!r}; accepted: {', '.join(_MODES)}")
    keys = config.get("normalize_observation_keys")
    if keys is not None and not is_names(keys):
        raise PolicyError(f"normalize_observation_keys is {keys!r:.80}; accepted: a list of texts")
    eps = config.get("eps", LEROBOT_EPS)
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 <= eps < 1:
        raise PolicyError(f"eps is {eps!r:.50}; accepted: a number from 0 to below 1")
    if _MODES[mode] == "identity":
        return Normalizer("identity", family="lerobot")
    if is_state and not _covers(config, keys, feature.name):
        assumptions.append(
            f"{feature.name} passes unchanged: the normalizer step of {where} does not list it"
        )
        return Normalizer("identity", family="lerobot")
    stats, others = _read_stats(folder, step, feature.name)
    if not stats:
        held = f"it has those of {', '.join(others)}" if others else "there are none"
        raise PolicyError(
            f"{step.get('state_file') or where} has no statistics of {feature.name!r}, which "
            f"norm_map normalizes by {mode} ({held}); without them values would pass as they are. "
            "Copy the statistics of the training run (a base checkpoint has none of your robot's: "
            f"fine-tune it), or state IDENTITY for {feature.kind} in norm_map"
        )
    try:
        normalizer = Normalizer(_MODES[mode], stats, family="lerobot", eps=float(eps))
    except PolicyError as error:
        raise PolicyError(f"{step.get('state_file')}: {feature.name}: {error}") from error
    if normalizer.size != feature.size:
        raise PolicyError(
            f"{step.get('state_file')}: statistics of {feature.name} cover {normalizer.size} "
            f"values; config.json says {feature.size}"
        )
    return normalizer


def _covers(config: Mapping[str, Any], keys: Sequence[str] | None, feature: str) -> bool:
    """Whether a normalizer step touches an observation: it is in `features` and in the keys."""
    features = config.get("features")
    listed = not isinstance(features, Mapping) or not features or feature in features
    return listed and (keys is None or feature in keys)


def check_images_unchanged(folder: Path, steps: Sequence[Mapping[str, Any]]) -> None:
    """Raise PolicyError if the preprocessor normalizes images by statistics.

    pi0.5 scales them to [-1, 1] in the model and expects IDENTITY here. An image without
    statistics passes unchanged whatever the map says.
    """
    step = find_step(steps, "normalizer_processor")
    config = config_of(steps, "normalizer_processor")
    norm_map, features = config.get("norm_map"), config.get("features")
    if step is None or not isinstance(norm_map, Mapping) or not isinstance(features, Mapping):
        return
    if norm_map.get("VISUAL", "IDENTITY") == "IDENTITY":
        return
    for name, value in features.items():
        visual = isinstance(value, Mapping) and value.get("type") == "VISUAL"
        if visual and _read_stats(folder, step, str(name))[0]:
            raise PolicyError(
                f"{PREPROCESSOR} normalizes {name!r} by {norm_map['VISUAL']!r:.50}; "
                "accepted for images: IDENTITY"
            )


def named_tokenizer(folder: Path, config: Mapping[str, Any]) -> str | None:
    """Path of the tokenizer that newer LeRobot saves with the checkpoint, or None.

    Older files name a Hugging Face repository, which is not downloaded here.
    """
    name = config.get("tokenizer_name")
    if not isinstance(name, str) or not name:
        return None
    try:
        path = folder / name
        inside = stays_inside(name) and os.path.lexists(path / "tokenizer.json")
    except (OSError, ValueError):  # too long, or with a null character
        return None
    return str(path) if inside else None


def _read_stats(
    folder: Path, step: Mapping[str, Any], feature: str
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return a feature's statistics in a step's file, and the features that it has some of."""
    name = step.get("state_file")
    if name is None:
        return {}, []
    path = folder / str(name)
    try:
        if not stays_inside(str(name)):
            raise MissingFileError("it lies elsewhere")
        content = read_bytes(path)
    except MissingFileError as error:
        raise PolicyError(
            f"state_file {name!r:.80} is not a file in {folder} ({error}); copy it from the "
            "training run or the hub"
        ) from error
    except FileError as error:
        raise PolicyError(f"state_file {error}") from error
    try:
        tensors = load(content)
    except (SafetensorError, ValueError, TypeError) as error:
        raise PolicyError(f"{path} is not a readable safetensors file: {error}") from error
    wanted = {stat for pair in NEEDED.values() for stat in pair}
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, values in tensors.items():
        part, _, stat = key.rpartition(".")
        if stat in wanted:
            found.setdefault(part, {})[stat] = values
    stats = {
        stat: values.to(torch.float32, copy=True).numpy()
        for stat, values in found.get(feature, {}).items()
    }
    return stats, sorted(found)
