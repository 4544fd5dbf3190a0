"""Statistics of a checkpoint against what the robot profile says of the columns.

Statistics in another unit than the profile's load without an error and drive joints into their
stops. They show: in radians nothing of an arm lies beyond two turns, no joint beyond its limits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from pi05_ros.policy.interface import ActionMeaning, ActionUnit
from pi05_ros.policy.robots.profile import RobotProfile
from pi05_ros.policy.robots.units import Unit, UnitMap
from pi05_ros.policy.transforms.normalize import NEEDED, Normalization, Normalizer

_EVEN = math.sqrt(3)  # deviations from the mean to the ends of evenly spread values
_STEEP = 4.0  # deviations from the mean that count as the range of angles and lengths
_BOUNDS = {  # of plausible values on the robot's side: bound, deviations, what else it may be
    ActionUnit.RADIAN: (4 * math.pi, _STEEP, "degrees"),
    ActionUnit.RADIAN_PER_SECOND: (4 * math.pi, _STEEP, "degrees per second"),
    ActionUnit.METRE: (10.0, _STEEP, "millimeters"),
    ActionUnit.METRE_PER_SECOND: (10.0, _STEEP, "millimeters per second"),
    ActionUnit.GRIPPER_OPEN_0_CLOSED_1: (2.0, 2.0, "percent, degrees or millimeters"),
    ActionUnit.GRIPPER_CLOSED_0_OPEN_1: (2.0, 2.0, "percent, degrees or millimeters"),
    ActionUnit.NORMALIZED: (10.0, 2.0, "percent or degrees"),
}
# Shares of a joint's range that statistics may lie outside of it; four deviations of a joint that
# uses all of its range reach 0.65 of it beyond.
_SLACK = {"zscore": 1.0}
_QUANTILE_SLACK = 0.1


def statistics_doubts(
    profile: RobotProfile,
    normalization: Normalization,
    limits: Mapping[str, tuple[float, float]] | None = None,
) -> tuple[str, ...]:
    """Sentences about columns whose statistics do not look like their unit.

    Args:
        profile: the robot.
        normalization: with the statistics; nothing is said of identity.
        limits: joint -> (low, high) in rad or m, as of a URDF; they replace the profile's.

    """
    states = [
        (name, m, False) for name, m in zip(profile.state_names, profile.state_maps, strict=True)
    ]
    deltas = profile.delta_mask + (False,) * len(profile.action_names)
    actions = [
        (name, m, delta or meaning is not ActionMeaning.ABSOLUTE)
        for name, m, meaning, delta in zip(
            profile.action_names,
            profile.action_maps,
            profile.action_meanings,
            deltas[: len(profile.action_names)],
            strict=True,
        )
    ]
    doubts: list[str] = []
    for what, columns, normalizer in (
        ("state", states, normalization.state),
        ("action", actions, normalization.actions),
    ):
        found: list[str] = []
        for i, (name, unit_map, change) in enumerate(columns):
            ends = _ends(normalizer, i, unit_map, change)
            if ends is None:
                continue
            known = _limits(unit_map, (limits or {}).get(name))
            if profile.adapt != "none":  # statistics count joints the other way round
                known = None
            slack = _SLACK.get(normalizer.kind, _QUANTILE_SLACK)
            found += _column(f"{what} {name!r}", unit_map, change, ends, known, slack)
        doubts += found[:3]
        if len(found) > 3:
            doubts.append(f"the same of {len(found) - 3} more of the {what} columns")
        doubts += _too_small(what, columns, normalizer)
    return tuple(doubts)


def _ends(
    normalizer: Normalizer, i: int, unit_map: UnitMap, change: bool, deviations: float = 0.0
) -> tuple[float, float] | None:
    """Range of a column on the robot's side, or None without statistics.

    Means and deviations count with as many deviations as told, or as the unit has them.
    """
    if normalizer.kind == "identity" or i >= (normalizer.size or 0):
        return None
    a, b = (float(normalizer.stats[name][i]) for name in NEEDED[normalizer.kind])
    if normalizer.kind == "zscore":
        reach = (deviations or _BOUNDS.get(unit_map.wire, (0.0, _STEEP, ""))[1]) * b
        a, b = a - reach, a + reach
    values = np.array([a, b])
    with np.errstate(over="ignore", invalid="ignore"):
        out = values * unit_map.scale * unit_map.factor if change else unit_map.to_robot(values)
    return float(np.min(out)), float(np.max(out))


def _limits(unit_map: UnitMap, known: tuple[float, float] | None) -> tuple[float, float] | None:
    """Limits of a joint on the robot's side."""
    if known is not None or unit_map.limits is None:
        return known
    return unit_map.limits[0] * unit_map.factor, unit_map.limits[1] * unit_map.factor


def _column(
    which: str,
    unit_map: UnitMap,
    change: bool,
    ends: tuple[float, float],
    limits: tuple[float, float] | None,
    slack: float,
) -> Iterator[str]:
    unit = unit_map.wire.name.lower()
    low, high = ends
    shown = f"statistics of {which} reach from {low:.4g} to {high:.4g} {unit}"
    declared = f"unit {unit_map.unit.name.lower()} of the robot profile"
    if limits is not None:
        span = limits[1] - limits[0]
        more = span * slack
        outside = (
            max(abs(low), abs(high)) > span + more
            if change
            else low < limits[0] - more or high > limits[1] + more
        )
        if outside:
            yield (
                f"{shown}, outside of its limits {limits[0]:.4g} to {limits[1]:.4g}: is the "
                f"{declared} right, and is it this robot?"
            )
        return
    bound = _BOUNDS.get(unit_map.wire)
    if bound is not None and max(abs(low), abs(high)) > bound[0]:
        yield f"{shown}: is the {declared} right, or are they in {bound[2]}?"


def _too_small(
    what: str, columns: list[tuple[str, UnitMap, bool]], normalizer: Normalizer
) -> Iterator[str]:
    """Degrees and percents that all lie where radians and shares would."""
    for unit, bound, other in (
        (Unit.DEGREE, 2 * math.pi, "radians"),
        (Unit.PERCENT, 1.0, "shares of 1"),
    ):
        found = [
            (name, normalizer, i, m)
            for i, (name, m, change) in enumerate(columns)
            if m.model_unit is unit and not change
        ]
        ends = [
            e
            for _, n, i, _ in found
            if (e := _ends(n, i, UnitMap(Unit.DIMENSIONLESS), False, _EVEN)) is not None
        ]
        flat = all(low == high for low, high in ends)
        if ends and not flat and all(max(abs(e[0]), abs(e[1])) <= bound for e in ends):
            yield (
                f"statistics of all {what} columns in {unit.name.lower()} lie within {bound:.4g} "
                f"({', '.join(name for name, *_ in found[:3])}): are they in {other}?"
            )
