"""State and action columns of a profile file: name, unit, map to the model's numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pi05_ros.policy.errors import RobotProfileError
from pi05_ros.policy.interface import ActionMeaning
from pi05_ros.policy.robots.units import UNIT_NAMES, UnitMap
from pi05_ros.policy.robots.yaml_values import (
    boolean,
    closest,
    enumerated,
    mapping,
    number,
    optional_text,
    text,
)

_STATE = ("name", "unit", "quantity", "scale", "offset", "linear", "limits", "range")
_ACTION = (*_STATE, "meaning", "delta", "clip", "threshold")
_LINEAR = ("model", "robot")
_GRIPPER = ("state", "action", "open", "closed", "model_open", "model_closed")


@dataclass(frozen=True)
class Column:
    """One column as the file has it.

    Attributes:
        name: of the joint or action.
        map: its unit and map.
        meaning: of an action.
        delta: training subtracted the state.
        range: stands in for statistics, in the model's numbers, or None.

    """

    name: str
    map: UnitMap
    meaning: ActionMeaning = ActionMeaning.ABSOLUTE
    delta: bool = False
    range: tuple[float, float] | None = None


def read_columns(where: str, what: str, items: Sequence[Any]) -> list[Column]:
    """Columns of the list "state" or "actions".

    Raises:
        RobotProfileError: a missing, unknown or wrong entry.

    """
    accepted, required = (
        (_STATE, ("name", "unit")) if what == "state" else (_ACTION, ("name", "meaning", "unit"))
    )
    columns = []
    for i, entry in enumerate(items):
        place = f"{where}: {what}[{i}]"
        item = mapping(place, entry, accepted, required=required)
        meaning = item.get("meaning", ActionMeaning.ABSOLUTE.name.lower())
        columns.append(
            Column(
                name=text(f"{place}.name", item["name"]),
                map=_map(place, item),
                meaning=enumerated(f"{place}.meaning", meaning, ActionMeaning),
                delta=boolean(f"{place}.delta", item.get("delta", False)),
                range=_pair(f"{place}.range", item.get("range")),
            )
        )
    return columns


def _map(place: str, item: Mapping[str, Any]) -> UnitMap:
    name = item["unit"]
    if not isinstance(name, str) or name not in UNIT_NAMES:
        raise RobotProfileError(
            f"{place}.unit is {name!r:.80}{closest(str(name)[:80], tuple(UNIT_NAMES))}; "
            f"accepted: {', '.join(UNIT_NAMES)}"
        )
    unit_map = UnitMap(
        unit=UNIT_NAMES[name],
        quantity=text(f"{place}.quantity", item.get("quantity", "")),
        robot_at=number(f"{place}.offset", item.get("offset", 0.0)),
        robot_span=number(f"{place}.scale", item.get("scale", 1.0)),
        clip=_pair(f"{place}.clip", item.get("clip")),
        threshold=None
        if item.get("threshold") is None
        else number(f"{place}.threshold", item["threshold"]),
        limits=_pair(f"{place}.limits", item.get("limits")),
    )
    if "linear" not in item:
        return unit_map
    if "scale" in item or "offset" in item:
        raise RobotProfileError(f"{place} has linear and scale or offset; accepted: one of them")
    ends = mapping(f"{place}.linear", item["linear"], _LINEAR, required=_LINEAR)
    model = _pair(f"{place}.linear.model", ends["model"])
    robot = _pair(f"{place}.linear.robot", ends["robot"])
    if model is None or robot is None or model[0] == model[1] or robot[0] == robot[1]:
        raise RobotProfileError(
            f"{place}.linear is {ends!s:.120}; accepted: {{model: [low, high], "
            "robot: [low, high]} with different ends"
        )
    return _through(unit_map, model, robot)


def _through(unit_map: UnitMap, model: tuple[float, float], robot: tuple[float, float]) -> UnitMap:
    """Return the map through two points."""
    return dataclasses.replace(
        unit_map,
        model_at=model[0],
        robot_at=robot[0],
        model_span=model[1] - model[0],
        robot_span=robot[1] - robot[0],
    )


def _pair(place: str, value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2:
        raise RobotProfileError(f"{place} is {value!r:.80}; accepted: [low, high]")
    return number(place, value[0]), number(place, value[1])


def apply_grippers(
    where: str, entries: Sequence[Any], states: Sequence[Column], actions: Sequence[Column]
) -> tuple[tuple[UnitMap, ...], tuple[UnitMap, ...]]:
    """Maps of states and actions, those of the list "grippers" put in.

    A gripper is the map of ``open`` and ``closed``, in the column's unit, to the model's numbers
    ``model_open`` and ``model_closed`` (pi's 0 and 1).

    Raises:
        RobotProfileError: a gripper without a column of that name, or a column with two maps.

    """
    maps = {
        "state": {column.name: column.map for column in states},
        "action": {column.name: column.map for column in actions},
    }
    taken: dict[str, list[str]] = {"state": [], "action": []}
    for i, entry in enumerate(entries):
        place = f"{where}: grippers[{i}]"
        item = mapping(place, entry, _GRIPPER, required=("open", "closed"))
        robot = number(f"{place}.open", item["open"]), number(f"{place}.closed", item["closed"])
        model = (
            number(f"{place}.model_open", item.get("model_open", 0.0)),
            number(f"{place}.model_closed", item.get("model_closed", 1.0)),
        )
        if robot[0] == robot[1] or model[0] == model[1]:
            raise RobotProfileError(f"{place}: a gripper's open and closed values are equal")
        named = {key: optional_text(f"{place}.{key}", item.get(key)) for key in maps}
        if not any(name is not None for name in named.values()):
            raise RobotProfileError(f"{place} names neither a state nor an action dimension")
        for key, name in named.items():
            if name is None:
                continue
            if name not in maps[key]:
                raise RobotProfileError(
                    f"{where}: gripper {key} {name!r} is not in "
                    f"{'state' if key == 'state' else 'actions'}: {', '.join(maps[key])}"
                )
            taken[key].append(name)
            if len(set(taken[key])) < len(taken[key]):
                raise RobotProfileError(
                    f"{where}: two grippers map the same {key}: {', '.join(taken[key])}"
                )
            if (maps[key][name].scale, maps[key][name].offset) != (1.0, 0.0):
                raise RobotProfileError(
                    f"{where}: {key} {name!r} has a map of its own and one in grippers; "
                    "accepted: one of them"
                )
            maps[key][name] = _through(maps[key][name], model, robot)
    return (
        tuple(maps["state"][column.name] for column in states),
        tuple(maps["action"][column.name] for column in actions),
    )
