"""Cameras of a LeRobot checkpoint: which role each image feature is.

Features with "wrist", "hand" or "gripper" in their name are "wrist", then "wrist_2"; the first
other one is "base"; what is left over takes the roles still free in the order base, wrist,
wrist_2, and beyond three its own last name. Where the checkpoint renames the data set's features
(rename_map), the data set's names decide: the policy's say nothing about the camera.
The parameter ``camera_map`` (``camera_roles`` in Python) overrides all of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pi05_ros.policy.checkpoints.lerobot_processors import is_names
from pi05_ros.policy.errors import PolicyError
from pi05_ros.policy.robots.profile import Camera


def read_rename_map(config: Mapping[str, Any]) -> dict[str, str]:
    """Data set's feature -> policy's feature of a rename step's settings.

    Raises:
        PolicyError: not a mapping of texts.

    """
    rename = config.get("rename_map") or {}
    if not isinstance(rename, Mapping) or not is_names(list(rename.values())):
        raise PolicyError(f"rename_map is {rename!r:.80}; accepted: a mapping of feature names")
    return {str(source): str(feature) for source, feature in rename.items()}


def read_cameras(
    inputs: Mapping[str, Mapping[str, Any]],
    rename: Mapping[str, str],
    override: Mapping[str, str] | None,
    assumptions: list[str],
) -> tuple[Camera, ...]:
    """Cameras in the order of config.json; ``empty_camera`` features stay masked for good.

    Args:
        inputs: input_features of config.json.
        rename: data set's feature -> policy's feature.
        override: role -> feature of the policy or of the data set; features it leaves out stay
            masked.
        assumptions: gets a sentence for each camera that is renamed.

    Raises:
        PolicyError: no camera, or an override that names no feature.

    """
    features = [
        name
        for name, value in inputs.items()
        if value.get("type") == "VISUAL" and "empty_camera" not in name
    ]
    if not features:
        raise PolicyError("config.json: input_features has no camera (type VISUAL)")
    sources = {name: name for name in features}
    for source, feature in rename.items():
        if feature in sources and sources[feature] == feature:
            sources[feature] = source
        elif feature in sources:
            assumptions.append(
                f"rename_map gives {feature} two sources, {sources[feature]} and {source}; its "
                "role is that of the first"
            )
    if override is None:
        by_source = derive_roles([sources[name] for name in features])
        roles = {name: by_source[sources[name]] for name in features}
    else:
        roles = {rename.get(feature, feature): role for role, feature in override.items()}
        unknown = [name for name in roles if name not in features]
        if unknown:
            raise PolicyError(
                f"camera_map names the feature {unknown[0]!r}; accepted: {', '.join(features)}"
            )
        features = [name for name in features if name in roles]
    assumptions += [
        f"camera {roles[name]!r} is {sources[name]} of the data set, which rename_map puts into "
        f"{name}" + ("; set camera_map if it is another" if override is None else "")
        for name in features
        if sources[name] != name
    ]
    required = "base" if "base" in roles.values() else roles[features[0]]
    return tuple(
        Camera(
            role=roles[name],
            slot=name,
            required=roles[name] == required,
            source=sources[name],
        )
        for name in features
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
