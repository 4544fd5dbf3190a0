"""Read a robot profile from YAML: strict keys, values named in every error.

The keys are documented in docs/robots.md; unknown ones are refused with the closest accepted one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pi05_ros.policy.errors import RobotProfileError
from pi05_ros.policy.pose_groups import PoseGroup
from pi05_ros.policy.robots.columns import Column, apply_grippers, read_columns
from pi05_ros.policy.robots.profile import ROLES, SLOTS, Camera, Ranges, RobotProfile
from pi05_ros.policy.robots.yaml_values import (
    boolean,
    closest,
    integer,
    listed,
    mapping,
    number,
    optional_text,
    text,
)
from pi05_ros.resources import robots_dir
from pi05_ros.small_files import FileError
from pi05_ros.strict_yaml import read_yaml

_TOP = (
    "description", "source", "control_hz", "horizon", "prompt", "cameras", "state", "actions",
    "normalization", "asset_id", "adapt", "grippers", "poses",
)  # fmt: skip
_PROMPT = ("discrete_state", "default")
_POSE = ("name", "frame", "tool", "columns", "rotation", "axes")
_CAMERA = ("role", "slot", "required", "rotate_180")


def available_robots() -> tuple[str, ...]:
    """Names of the shipped profiles."""
    return tuple(sorted(path.stem for path in robots_dir().glob("*.yaml")))


def load_profile(robot: str | Path) -> RobotProfile:
    """Read a profile by shipped name ("libero") or by path to a YAML file.

    Raises:
        RobotProfileError: no such profile, or a file that does not fit the schema.

    """
    path = Path(robot)
    if isinstance(robot, str) and path.suffix not in (".yaml", ".yml"):
        path = robots_dir() / f"{robot}.yaml"
        if "/" in robot or not os.path.isfile(path):  # False also for a name that is too long
            known = available_robots()
            raise RobotProfileError(
                f"robot {robot!r} is not known{closest(robot, known)}; accepted: "
                f"{', '.join(known)}, or a path to a .yaml file"
            )
    try:
        data = read_yaml(path)
    except FileError as error:
        raise RobotProfileError(f"robot profile {error}") from error
    return parse_profile(path.stem, data)


def parse_profile(name: str, data: Any) -> RobotProfile:
    """Build a profile from parsed YAML.

    Raises:
        RobotProfileError: a missing, unknown or wrong entry, named with what is accepted.

    """
    where = f"robot profile {name!r}"
    top = mapping(where, data, _TOP, required=("control_hz", "cameras", "state", "actions"))
    prompt = mapping(f"{where}: prompt", top.get("prompt", {}), _PROMPT)
    cameras = tuple(
        _camera(f"{where}: cameras[{i}]", item)
        for i, item in enumerate(listed(where, top, "cameras"))
    )
    states = read_columns(where, "state", listed(where, top, "state"))
    actions = read_columns(where, "actions", listed(where, top, "actions"))
    grippers = listed(where, top, "grippers", default=())
    state_maps, action_maps = apply_grippers(where, grippers, states, actions)
    deltas = [a.delta for a in actions]
    while deltas and not deltas[-1]:
        deltas.pop()
    horizon = top.get("horizon")
    return RobotProfile(
        name=name,
        description=text(f"{where}: description", top.get("description", "")),
        source=text(f"{where}: source", top.get("source", "")),
        cameras=tuple(sorted(cameras, key=lambda camera: SLOTS.index(camera.slot))),
        state_names=tuple(s.name for s in states),
        state_maps=state_maps,
        action_names=tuple(a.name for a in actions),
        action_meanings=tuple(a.meaning for a in actions),
        action_maps=action_maps,
        delta_mask=tuple(deltas),
        control_hz=number(f"{where}: control_hz", top["control_hz"]),
        horizon=None if horizon is None else integer(f"{where}: horizon", horizon),
        discrete_state=boolean(
            f"{where}: prompt.discrete_state", prompt.get("discrete_state", True)
        ),
        default_prompt=optional_text(f"{where}: prompt.default", prompt.get("default")),
        normalization=text(f"{where}: normalization", top.get("normalization", "quantile")),
        asset_id=optional_text(f"{where}: asset_id", top.get("asset_id")),
        adapt=text(f"{where}: adapt", top.get("adapt", "none")),
        ranges=_ranges(where, states, actions),
        pose_groups=tuple(
            _pose_group(f"{where}: poses[{i}]", item)
            for i, item in enumerate(listed(where, top, "poses", default=()))
        ),
    )


def _pose_group(where: str, data: Any) -> PoseGroup:
    item = mapping(where, data, _POSE, required=_POSE[:-1])
    columns = listed(where, item, "columns")
    return PoseGroup(
        name=text(f"{where}.name", item["name"]),
        frame=text(f"{where}.frame", item["frame"]),
        tool=text(f"{where}.tool", item["tool"]),
        columns=tuple(text(f"{where}.columns", name) for name in columns),
        rotation=text(f"{where}.rotation", item["rotation"]),
        axes=text(f"{where}.axes", item.get("axes", "")),
    )


def _camera(where: str, data: Any) -> Camera:
    item = mapping(where, data, _CAMERA, required=("role", "slot"))
    slot = text(f"{where}.slot", item["slot"])
    if slot not in SLOTS:
        raise RobotProfileError(
            f"{where}.slot is {slot!r}{closest(slot, SLOTS)}; accepted: {', '.join(SLOTS)}"
        )
    role = text(f"{where}.role", item["role"])
    if role not in ROLES:
        raise RobotProfileError(
            f"{where}.role is {role!r}{closest(role, ROLES)}; accepted: {', '.join(ROLES)}"
        )
    return Camera(
        role=role,
        slot=slot,
        required=boolean(f"{where}.required", item.get("required", False)),
        rotate_180=boolean(f"{where}.rotate_180", item.get("rotate_180", False)),
    )


def _ranges(where: str, states: Sequence[Column], actions: Sequence[Column]) -> Ranges | None:
    pairs = [column.range for column in (*states, *actions)]
    if not any(pairs):
        return None
    given = [pair for pair in pairs if pair is not None]
    if len(given) < len(pairs):
        raise RobotProfileError(f"{where}: give range for every state and action, or for none")
    n = len(states)
    low, high = tuple(p[0] for p in given), tuple(p[1] for p in given)
    return Ranges(low[:n], high[:n], low[n:], high[n:])
