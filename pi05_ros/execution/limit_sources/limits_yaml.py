"""Joint limits of YAML files: MoveIt's joint_limits.yaml as its assistant writes it, and ours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from pi05_ros.execution.limit_sources.joint_limits import ENDLESS_RAD, JointLimits, LimitsError
from pi05_ros.policy.interface import ActionUnit
from pi05_ros.small_files import FileError
from pi05_ros.strict_yaml import read_yaml

UNIT_NAMES = tuple(unit.name.lower() for unit in ActionUnit)
_NAN = float("nan")
_TAGS = {"!degrees": math.radians, "!radians": float}
# Key of a number -> the switch that turns it off.
_SWITCHES = {
    "min_position": "has_position_limits",
    "max_position": "has_position_limits",
    "max_velocity": "has_velocity_limits",
    "max_acceleration": "has_acceleration_limits",
    "max_deceleration": "has_deceleration_limits",
    "max_jerk": "has_jerk_limits",
}
# Part of the formats of MoveIt and ros2_control, without meaning for positions.
_IGNORED = (
    "min_velocity", "max_effort", "has_effort_limits", "has_soft_limits", "soft_lower_limit",
    "soft_upper_limit", "k_position", "k_velocity", "min_acceleration", "min_jerk",
)  # fmt: skip
_KEYS = (*_SWITCHES, *dict.fromkeys(_SWITCHES.values()), "angle_wraparound", "continuous", "unit")


def limits_from_yaml(path: Path) -> JointLimits:
    """Read a YAML file, see `limits_from_mapping`."""
    try:
        data = read_yaml(path, tags=_TAGS)
    except FileError as error:
        raise LimitsError(f"cannot read {error}") from error
    return limits_from_mapping(data, str(path))


def limits_from_mapping(data: Any, source: str = "limits") -> JointLimits:
    """Read the layout of MoveIt's joint_limits, with additions.

    ``{joint_limits: {<joint>: {min_position, max_position, max_velocity, max_acceleration,
    max_deceleration, max_jerk}}}``, also below ``robot_description_planning`` or a node's
    ``ros__parameters``. A number whose switch (``has_velocity_limits: false``) is off and an
    acceleration or jerk of 0 are not given; so is a number that is missing: NaN in the result.
    Our additions: ``continuous: true`` (or ros2_control's ``angle_wraparound: true``) for a joint
    that turns without end, ``unit`` for one that is not in rad or m.

    Raises:
        LimitsError: names the file, the joint and the key.

    """
    joints = _section(data)
    if not isinstance(joints, Mapping) or not joints:
        raise LimitsError(f"{source}: needs a section joint_limits with one entry per joint")
    rows, continuous, units = [], [], []
    for name, entry in joints.items():
        where = f"{source}: joint_limits.{name!s:.80}"
        if not isinstance(name, str) or not name:
            raise LimitsError(f"{where}: a joint's name is text; put it into quotes")
        if not isinstance(entry, Mapping):
            raise LimitsError(f"{where} is not a mapping")
        for key in entry:
            if key not in _KEYS and key not in _IGNORED:
                close = get_close_matches(str(key), _KEYS, 1)
                hint = (
                    f"; did you mean {close[0]}?" if close else f"; accepted: {', '.join(_KEYS)}"
                )
                raise LimitsError(f"{where}.{key!s:.50} is not known{hint}")
        values = {key: _number(entry, key, where) for key in _SWITCHES}
        turns = _flag(entry, "continuous", where) or _flag(entry, "angle_wraparound", where)
        positions = (values["min_position"], values["max_position"])
        endless = bool(turns) and all(math.isnan(value) for value in positions)
        rates = [values["max_acceleration"], values["max_deceleration"]]
        known = [rate for rate in rates if not math.isnan(rate)]
        rows.append(
            (
                *((-ENDLESS_RAD, ENDLESS_RAD) if endless else positions),
                values["max_velocity"],
                min(known, default=_NAN),
                math.inf if math.isnan(values["max_jerk"]) else values["max_jerk"],
            )
        )
        continuous.append(endless)
        units.append(_unit(entry, where))
    lower, upper, velocity, acceleration, jerk = np.array(rows).T
    try:
        return JointLimits(
            tuple(joints),
            lower,
            upper,
            velocity,
            acceleration,
            jerk,
            tuple(continuous),
            tuple(units),
        )
    except LimitsError as error:
        raise LimitsError(f"{source}: {error}") from error


def _section(data: Any) -> Any:
    """Mapping below ``joint_limits``, which MoveIt and parameter files wrap differently."""
    for _ in range(4):
        if not isinstance(data, Mapping):
            return None
        if "joint_limits" in data:
            return data["joint_limits"]
        wrapped = [
            value
            for key, value in data.items()
            if key in ("robot_description_planning", "ros__parameters")
            or (isinstance(value, Mapping) and "ros__parameters" in value)
        ]
        if len(wrapped) != 1:
            return None
        data = wrapped[0]
    return None


def _flag(entry: Mapping[str, Any], key: str, where: str) -> bool | None:
    value = entry.get(key)
    if value is not None and not isinstance(value, bool):
        raise LimitsError(f"{where}.{key} is {value!s:.50}; accepted: true or false")
    return value


def _number(entry: Mapping[str, Any], key: str, where: str) -> float:
    """A number that is given and not switched off, else NaN."""
    switch = _SWITCHES[key]
    on = _flag(entry, switch, where)
    optional = key in ("max_acceleration", "max_deceleration", "max_jerk")
    if on is False or (key not in entry and (optional or not on)):
        return _NAN
    if key not in entry:
        raise LimitsError(f"{where}.{key} is missing, although {switch} is true")
    value = entry[key]
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not abs(value) < 1e300:
        raise LimitsError(f"{where}.{key} is {value!s:.50}; accepted: a finite number")
    if optional and value == 0:
        return _NAN
    return abs(float(value)) if key == "max_deceleration" else float(value)


def _unit(entry: Mapping[str, Any], where: str) -> str:
    unit = entry.get("unit", "")
    if unit == "" and "unit" not in entry:
        return ""
    accepted = [name for name in UNIT_NAMES if not name.endswith("_per_second")]
    name = {"meter": "metre"}.get(str(unit), str(unit))
    if name not in accepted:
        raise LimitsError(f"{where}.unit is {unit!s:.50}; accepted: {', '.join(accepted)}")
    return name
