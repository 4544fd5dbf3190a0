"""openpi's ``assets/<asset_id>/norm_stats.json``, and stand-ins for checkpoints without any."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from pi05_ros.policy.errors import PolicyError
from pi05_ros.policy.robots.profile import Ranges, RobotProfile
from pi05_ros.policy.transforms.normalize import NEEDED, Normalization, Normalizer
from pi05_ros.small_files import FileError, read_json

FILE_NAME = "norm_stats.json"
_NAMES = ("mean", "std", "q01", "q99", "q10", "q90", "min", "max")


def find_norm_stats(checkpoint: Path, asset_id: str | None) -> Path:
    """Path of the statistics file of a checkpoint directory.

    ``assets/<asset_id>/norm_stats.json`` if it exists; otherwise the only one below ``assets``
    (or ``norm_stats.json`` beside the weights).

    Raises:
        PolicyError: none, or several that the asset id does not tell apart.

    """
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    assets = folder / "assets"
    if asset_id and stays_inside(asset_id):
        wanted = assets / asset_id / FILE_NAME
        if os.path.lexists(wanted):  # False also for a name that is too long
            return wanted
    found = sorted(assets.rglob(FILE_NAME)) if assets.is_dir() else []
    if (folder / FILE_NAME).is_file():
        found.append(folder / FILE_NAME)
    if len(found) == 1:
        return found[0]
    ids = [str(p.parent.relative_to(assets)) for p in found if assets in p.parents]
    if not found:
        raise PolicyError(
            f"no {FILE_NAME} below {assets}; the checkpoint's statistics are needed "
            f"(openpi writes assets/<asset_id>/{FILE_NAME}; asset_id here: {asset_id!r})"
        )
    raise PolicyError(
        f"asset_id {asset_id!r} has no {FILE_NAME} below {assets}, and there are several others; "
        f"set asset_id in the robot profile to one of: {', '.join(ids)}"
    )


def stays_inside(name: str) -> bool:
    """Whether a relative path leads nowhere above its folder.

    By its words alone: in the Hugging Face cache the files of a checkpoint are links to a folder
    beside it.
    """
    return not Path(name).is_absolute() and ".." not in Path(name).parts


def read_norm_stats(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Statistics of a norm_stats.json: "state"/"actions" -> statistic -> float64 ``[n]``.

    Raises:
        PolicyError: not JSON, or not of openpi's form.

    """
    try:
        data = read_json(path)
    except FileError as error:
        raise PolicyError(str(error)) from error
    groups = data.get("norm_stats") if isinstance(data, dict) else None
    if not isinstance(groups, dict):
        raise PolicyError(
            f"{path} has no 'norm_stats' mapping; accepted: openpi's norm_stats.json"
        )
    result: dict[str, dict[str, np.ndarray]] = {}
    for key, stats in groups.items():
        if not isinstance(stats, dict):
            raise PolicyError(f"{path}: norm_stats.{key} is not a mapping")
        result[key] = {
            name: _vector(path, f"norm_stats.{key}.{name}", stats[name])
            for name in _NAMES
            if stats.get(name) is not None
        }
    return result


def _vector(path: Path, where: str, value: Any) -> np.ndarray:
    try:
        vector = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise PolicyError(f"{path}: {where} is not a list of numbers") from error
    if vector.ndim != 1:
        raise PolicyError(f"{path}: {where} is not a list of numbers")
    return vector


def openpi_normalization(checkpoint: Path, profile: RobotProfile) -> Normalization:
    """Normalization of an openpi checkpoint for a robot.

    A state without statistics passes unchanged, as in openpi. That, and a file of another asset
    id than the profile's, is in the result's ``doubts``.

    Raises:
        PolicyError: no usable file, none for the actions, or fewer values than the robot has.

    """
    if profile.normalization == "identity":
        return Normalization(source="identity (robot profile)")
    path = find_norm_stats(checkpoint, profile.asset_id)
    stats = read_norm_stats(path)
    doubts: list[str] = []
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    if profile.asset_id and path != folder / "assets" / profile.asset_id / FILE_NAME:
        doubts.append(
            f"statistics of {path} are used, the only ones there; robot profile "
            f"{profile.name!r} names the asset {profile.asset_id!r}"
        )
    parts = {}
    for key, count in (
        ("state", len(profile.state_names)),
        ("actions", len(profile.action_names)),
    ):
        if key not in stats and key == "actions":
            raise PolicyError(
                f"{path} has no statistics for 'actions' (it has {', '.join(stats) or 'none'}), "
                "so the model's numbers, about -1 to 1, would go to the robot as they are; copy "
                "the statistics of the training run, or set normalization: identity in the profile"
            )
        if key not in stats:
            parts[key] = Normalizer("identity")
            doubts.append(
                f"{path} has no statistics for {key!r} (it has {', '.join(stats) or 'none'}): "
                "values pass unchanged"
            )
            continue
        try:
            parts[key] = Normalizer(profile.normalization, stats[key])
        except PolicyError as error:
            raise PolicyError(f"{path}: {key}: {error}") from error
        size = parts[key].size
        if size is not None and size < count:
            raise PolicyError(
                f"{path}: {key} has statistics for {size} values, robot {profile.name!r} has "
                f"{count}; the file belongs to another robot"
            )
    return Normalization(parts["state"], parts["actions"], str(path), tuple(doubts))


def range_normalization(profile: RobotProfile) -> Normalization:
    """Statistics made of the profile's ranges; identity where it has none."""
    ranges = profile.ranges
    if ranges is None or profile.normalization == "identity":
        return Normalization()
    return Normalization(
        _from_range(profile.normalization, ranges, "state"),
        _from_range(profile.normalization, ranges, "action"),
        source=f"ranges of robot profile {profile.name!r}",
    )


def _from_range(kind: str, ranges: Ranges, which: str) -> Normalizer:
    low = np.array(getattr(ranges, f"{which}_low"), dtype=np.float64)
    high = np.array(getattr(ranges, f"{which}_high"), dtype=np.float64)
    first, second = NEEDED[kind]
    if kind == "zscore":
        return Normalizer(kind, {first: (low + high) / 2, second: (high - low) / 2})
    return Normalizer(kind, {first: low, second: high})
