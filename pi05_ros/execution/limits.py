"""Joint limits from files and robot descriptions, merged; the entry to everything about limits.

Precedence per joint and number: limits_file, then MoveIt's file, then the robot description.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pi05_ros.execution.limit_sources.joint_limits import ENDLESS_RAD, JointLimits, LimitsError
from pi05_ros.execution.limit_sources.limits_yaml import limits_from_mapping, limits_from_yaml
from pi05_ros.execution.limit_sources.urdf_limits import UrdfJoints, read_urdf
from pi05_ros.execution.motion.motion_filter import MotionFilter

__all__ = [
    "DEFAULT_ACCELERATION_TIME_S",
    "ENDLESS_RAD",
    "JointLimits",
    "LimitsError",
    "MergedLimits",
    "MotionFilter",
    "limits_from_mapping",
    "limits_from_urdf",
    "limits_from_yaml",
    "merge_limits",
]
DEFAULT_ACCELERATION_TIME_S = 0.1
"""Where no source has an acceleration limit: reach the velocity limit in this time."""
URDF = "robot_description"
_ARRAYS = {
    "lower": "min_position",
    "upper": "max_position",
    "velocity": "max_velocity",
    "acceleration": "max_acceleration",
    "jerk": "max_jerk",
}


@dataclass(frozen=True)
class MergedLimits:
    """Limits with where each number is from.

    Attributes:
        limits: of the joints in command order, complete.
        sources: per joint and key of a limits file ("max_velocity"), the source's name.
        notes: remarks for the log, such as joints that are left out.

    """

    limits: JointLimits
    sources: dict[str, dict[str, str]]
    notes: tuple[str, ...]

    def table(self) -> str:
        """The limits as lines of text: a row per joint, with units and sources."""
        head = ("joint", "lower", "upper", "velocity", "acceleration", "jerk", "unit", "from")
        limits = self.limits
        rows: list[tuple[str, ...]] = [head]
        for i, name in enumerate(limits.names):
            endless = limits.continuous[i]
            jerk = limits.jerk_limits[i]
            numbers = (limits.velocity[i], limits.acceleration[i])
            given: dict[str, list[str]] = {}
            for key, source in self.sources[name].items():
                given.setdefault(source, []).append(key.removeprefix("max_"))
            where = "; ".join(
                source if len(given) == 1 else f"{source} ({', '.join(keys)})"
                for source, keys in given.items()
            )
            rows.append(
                (
                    name,
                    "endless" if endless else f"{limits.lower[i]:.4g}",
                    "endless" if endless else f"{limits.upper[i]:.4g}",
                    *(f"{number:.4g}" for number in numbers),
                    "-" if np.isinf(jerk) else f"{jerk:.4g}",
                    limits.units[i] or "rad or m",
                    where,
                )
            )
        widths = [max(len(row[k]) for row in rows) for k in range(len(head) - 1)]
        return "\n".join(
            "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[-1]])
            for row in rows
        )


def limits_from_urdf(
    text: str,
    acceleration_time_s: float = DEFAULT_ACCELERATION_TIME_S,
    joints: Sequence[str] = (),
) -> JointLimits:
    """Limits of the joints asked for, or of all that follow no other, from a URDF alone.

    Args:
        text: the robot description, see `read_urdf`.
        acceleration_time_s: seconds to reach the velocity limit, which gives the acceleration
            limit that URDF lacks.
        joints: only these are checked; empty takes all that are not mimic joints.

    """
    return merge_limits([], read_urdf(text), joints, acceleration_time_s).limits


def merge_limits(
    files: Sequence[tuple[str, JointLimits]],
    urdf: UrdfJoints | None,
    joints: Sequence[str] = (),
    acceleration_time_s: float = DEFAULT_ACCELERATION_TIME_S,
    jerk_time_s: float = 0.0,
) -> MergedLimits:
    """Merge limits number by number; the first source that gives a number decides.

    Args:
        files: name and limits of files, the one that decides first.
        urdf: asked last.
        joints: command order; empty takes those of the first file, else those of the URDF, mimic
            joints left out. Nothing is checked about other joints.
        acceleration_time_s: seconds to full velocity where no source limits acceleration.
        jerk_time_s: seconds to full acceleration where no source limits jerk; 0: no limit.

    Raises:
        LimitsError: names the joints and numbers that are missing or malformed.

    """
    layers = [*files, *([(URDF, urdf.limits)] if urdf is not None else [])]
    if not layers:
        raise LimitsError("no limits: neither a limits file nor a robot description")
    notes: list[str] = []
    wanted = tuple(joints)
    if not wanted:
        mimic = urdf.mimic if urdf is not None else {}
        wanted = tuple(name for name in layers[0][1].names if name not in mimic)
        left = [f"{name} (follows {mimic[name]})" for name in layers[0][1].names if name in mimic]
        if left:
            notes.append(f"not commanded: {', '.join(left)}")
    known = {name for _, limits in layers for name in limits.names}
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise LimitsError(
            f"no limits for {', '.join(unknown)}; there are limits for {', '.join(sorted(known))}"
        )
    if urdf is not None:
        given = {name for _, limits in files for name in limits.names}
        urdf.check([name for name in wanted if name in urdf.mimic or name not in given])
    merged, sources = _merge(layers, wanted, notes, acceleration_time_s, jerk_time_s)
    lacking = merged.missing()
    if lacking:
        shown = "; ".join(f"{name}: {', '.join(words)}" for name, words in lacking.items())
        able = [name for name in wanted if name not in lacking]
        raise LimitsError(
            f"no velocity limit or other numbers missing: {shown} (asked: "
            f"{', '.join(source for source, _ in layers)}). Give them in limits_file"
            + (f", or set joints to those that have limits: {', '.join(able)}" if able else "")
        )
    return MergedLimits(merged, sources, tuple(notes))


def _merge(
    layers: Sequence[tuple[str, JointLimits]],
    wanted: Sequence[str],
    notes: list[str],
    acceleration_time_s: float,
    jerk_time_s: float,
) -> tuple[JointLimits, dict[str, dict[str, str]]]:
    """Merged limits, NaN where no layer has a number, and the source of each number."""
    n = len(wanted)
    values = {key: np.full(n, np.nan) for key in _ARRAYS}
    sources: dict[str, dict[str, str]] = {name: {} for name in wanted}
    continuous, units = [False] * n, [""] * n
    for i, name in enumerate(wanted):
        for source, limits in layers:
            if name not in limits.names:
                continue
            row = limits.names.index(name)
            units[i] = units[i] or limits.units[row]
            if np.isnan(values["lower"][i]) and np.isnan(values["upper"][i]):
                continuous[i] = limits.continuous[row]
            for key, word in _ARRAYS.items():
                number = getattr(limits, key)[row]
                is_given = not np.isnan(number) and not (key == "jerk" and np.isinf(number))
                if is_given and np.isnan(values[key][i]):
                    values[key][i], sources[name][word] = number, source
            if source == URDF:
                notes.extend(_wider(name, i, values, limits, row, continuous[i]))
        if np.isnan(values["acceleration"][i]):
            values["acceleration"][i] = values["velocity"][i] / acceleration_time_s
            sources[name]["max_acceleration"] = "acceleration_time_s"
        if jerk_time_s and np.isnan(values["jerk"][i]):
            values["jerk"][i] = values["acceleration"][i] / jerk_time_s
            sources[name]["max_jerk"] = "jerk_time_s"
    values["jerk"] = np.where(np.isnan(values["jerk"]), np.inf, values["jerk"])
    merged = JointLimits(tuple(wanted), continuous=tuple(continuous), units=tuple(units), **values)
    return merged, sources


def _wider(
    name: str,
    i: int,
    values: dict[str, np.ndarray],
    urdf: JointLimits,
    row: int,
    continuous: bool,
) -> list[str]:
    """Remarks about numbers of a file that allow more than the robot description."""
    wider = [
        f"{word} {values[key][i]:.4g} instead of {getattr(urdf, key)[row]:.4g}"
        for key, sign in (("lower", -1), ("upper", 1), ("velocity", 1))
        for word in [_ARRAYS[key]]
        if sign * (values[key][i] - getattr(urdf, key)[row]) > 1e-9 and not continuous
    ]
    if not wider:
        return []
    return [f"{name}: a limits file allows more than the {URDF}: {', '.join(wider)}"]
