"""Read a robot profile from YAML: strict keys, values named in every error.

The keys are documented in docs/robots.md; unknown ones are refused with the closest accepted one.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any, TypeVar

import yaml

from pi05_ros.policy.errors import RobotProfileError
from pi05_ros.policy.interface import ActionMeaning, ActionUnit
from pi05_ros.policy.robots.profile import ROLES, SLOTS, Camera, Gripper, Ranges, RobotProfile
from pi05_ros.resources import robots_dir

_E = TypeVar("_E", bound=IntEnum)
# PyYAML raises its own type for its grammar, and whatever comes for values of a type's tag or
# form: a thirteenth month, `!!int x`, `!!bool maybe`.
YAML_ERRORS = (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError)

_TOP = (
    "description", "control_hz", "horizon", "prompt", "cameras", "state", "actions",
    "normalization", "asset_id", "adapt", "grippers",
)  # fmt: skip
_PROMPT = ("discrete_state", "default")
_CAMERA = ("role", "slot", "required", "rotate_180")
_STATE = ("name", "unit", "range")
_ACTION = ("name", "meaning", "unit", "delta", "range")
_GRIPPER = ("state", "action", "open", "closed", "model_open", "model_closed")


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
                f"robot {robot!r} is not known{_closest(robot, known)}; accepted: "
                f"{', '.join(known)}, or a path to a .yaml file"
            )
    if not os.path.isfile(path):
        raise RobotProfileError(f"robot profile {path} does not exist or is not a file")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RobotProfileError(
            f"robot profile {path} cannot be read: {error.strerror or error}"
        ) from error
    except YAML_ERRORS as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RobotProfileError(f"robot profile {path} is not valid YAML: {first}") from error
    return parse_profile(path.stem, data)


def parse_profile(name: str, data: Any) -> RobotProfile:
    """Build a profile from parsed YAML.

    Raises:
        RobotProfileError: a missing, unknown or wrong entry, named with what is accepted.

    """
    where = f"robot profile {name!r}"
    top = _mapping(where, data, _TOP, required=("control_hz", "cameras", "state", "actions"))
    prompt = _mapping(f"{where}: prompt", top.get("prompt", {}), _PROMPT)
    cameras = tuple(
        _camera(f"{where}: cameras[{i}]", item)
        for i, item in enumerate(_list(where, top, "cameras"))
    )
    states = [
        _mapping(f"{where}: state[{i}]", item, _STATE, required=("name", "unit"))
        for i, item in enumerate(_list(where, top, "state"))
    ]
    actions = [
        _mapping(f"{where}: actions[{i}]", item, _ACTION, required=("name", "meaning", "unit"))
        for i, item in enumerate(_list(where, top, "actions"))
    ]
    deltas = [
        _bool(f"{where}: actions[{i}].delta", a.get("delta", False)) for i, a in enumerate(actions)
    ]
    while deltas and not deltas[-1]:
        deltas.pop()
    horizon = top.get("horizon")
    return RobotProfile(
        name=name,
        description=_text(f"{where}: description", top.get("description", "")),
        cameras=tuple(sorted(cameras, key=lambda camera: SLOTS.index(camera.slot))),
        state_names=_names(where, "state", states),
        state_units=tuple(
            _enum(f"{where}: state[{i}].unit", s["unit"], ActionUnit) for i, s in enumerate(states)
        ),
        action_names=_names(where, "actions", actions),
        action_meanings=tuple(
            _enum(f"{where}: actions[{i}].meaning", a["meaning"], ActionMeaning)
            for i, a in enumerate(actions)
        ),
        action_units=tuple(
            _enum(f"{where}: actions[{i}].unit", a["unit"], ActionUnit)
            for i, a in enumerate(actions)
        ),
        delta_mask=tuple(deltas),
        control_hz=_number(f"{where}: control_hz", top["control_hz"]),
        horizon=None if horizon is None else _integer(f"{where}: horizon", horizon),
        discrete_state=_bool(
            f"{where}: prompt.discrete_state", prompt.get("discrete_state", True)
        ),
        default_prompt=_optional_text(f"{where}: prompt.default", prompt.get("default")),
        normalization=_text(f"{where}: normalization", top.get("normalization", "quantile")),
        asset_id=_optional_text(f"{where}: asset_id", top.get("asset_id")),
        adapt=_text(f"{where}: adapt", top.get("adapt", "none")),
        grippers=tuple(
            _gripper(f"{where}: grippers[{i}]", item)
            for i, item in enumerate(_list(where, top, "grippers", default=()))
        ),
        ranges=_ranges(where, states, actions),
    )


def _camera(where: str, data: Any) -> Camera:
    item = _mapping(where, data, _CAMERA, required=("role", "slot"))
    slot = _text(f"{where}.slot", item["slot"])
    if slot not in SLOTS:
        raise RobotProfileError(
            f"{where}.slot is {slot!r}{_closest(slot, SLOTS)}; accepted: {', '.join(SLOTS)}"
        )
    role = _text(f"{where}.role", item["role"])
    if role not in ROLES:
        raise RobotProfileError(
            f"{where}.role is {role!r}{_closest(role, ROLES)}; accepted: {', '.join(ROLES)}"
        )
    return Camera(
        role=role,
        slot=slot,
        required=_bool(f"{where}.required", item.get("required", False)),
        rotate_180=_bool(f"{where}.rotate_180", item.get("rotate_180", False)),
    )


def _gripper(where: str, data: Any) -> Gripper:
    item = _mapping(where, data, _GRIPPER, required=("open", "closed"))
    return Gripper(
        state=_optional_text(f"{where}.state", item.get("state")),
        action=_optional_text(f"{where}.action", item.get("action")),
        robot_open=_number(f"{where}.open", item["open"]),
        robot_closed=_number(f"{where}.closed", item["closed"]),
        model_open=_number(f"{where}.model_open", item.get("model_open", 0.0)),
        model_closed=_number(f"{where}.model_closed", item.get("model_closed", 1.0)),
    )


def _ranges(
    where: str, states: list[dict[str, Any]], actions: list[dict[str, Any]]
) -> Ranges | None:
    given = ["range" in item for item in (*states, *actions)]
    if not any(given):
        return None
    if not all(given):
        raise RobotProfileError(f"{where}: give range for every state and action, or for none")
    pairs = []
    for what, items in (("state", states), ("actions", actions)):
        for i, item in enumerate(items):
            value = item["range"]
            label = f"{where}: {what}[{i}].range"
            if not isinstance(value, list) or len(value) != 2:
                raise RobotProfileError(f"{label} is {value!r}; accepted: [low, high]")
            pairs.append((_number(label, value[0]), _number(label, value[1])))
    n = len(states)
    low, high = tuple(p[0] for p in pairs), tuple(p[1] for p in pairs)
    return Ranges(low[:n], high[:n], low[n:], high[n:])


def _closest(word: str, accepted: Sequence[str]) -> str:
    match = difflib.get_close_matches(str(word), list(accepted), n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""


def _mapping(
    where: str, data: Any, accepted: Sequence[str], required: Sequence[str] = ()
) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise RobotProfileError(
            f"{where} is {type(data).__name__}; accepted: a mapping with {', '.join(accepted)}"
        )
    for key in data:
        if key not in accepted:
            raise RobotProfileError(
                f"{where} has the unknown key {key!r}{_closest(key, accepted)}; "
                f"accepted: {', '.join(accepted)}"
            )
    for key in required:
        if key not in data:
            raise RobotProfileError(f"{where} lacks the key {key!r}")
    return dict(data)


def _list(
    where: str, data: Mapping[str, Any], key: str, default: Sequence[Any] | None = None
) -> Sequence[Any]:
    value = data.get(key, default)
    if not isinstance(value, list | tuple):
        raise RobotProfileError(f"{where}: {key} is {value!r}; accepted: a list")
    return value


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise RobotProfileError(f"{where} is {value!r}; accepted: text")
    return value


def _optional_text(where: str, value: Any) -> str | None:
    return None if value is None else _text(where, value)


def _bool(where: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise RobotProfileError(f"{where} is {value!r}; accepted: true, false")
    return value


def _number(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
        raise RobotProfileError(f"{where} is {value!s:.50}; accepted: a finite number")
    return float(value)


def _integer(where: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise RobotProfileError(f"{where} is {value!r}; accepted: a whole number")
    return value


def _names(where: str, what: str, items: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    return tuple(_text(f"{where}: {what}[{i}].name", item["name"]) for i, item in enumerate(items))


def _enum(where: str, value: Any, kind: type[_E]) -> _E:
    accepted = [member.name.lower() for member in kind]
    if not isinstance(value, str) or value not in accepted:
        raise RobotProfileError(
            f"{where} is {value!r}{_closest(str(value), accepted)}; "
            f"accepted: {', '.join(accepted)}"
        )
    return kind[value.upper()]
