"""Joint limits of a URDF; a joint that is not asked for may lack them or be malformed."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pi05_ros.execution.limit_sources.joint_limits import ENDLESS_RAD, JointLimits, LimitsError

MAX_URDF_CHARACTERS = 50_000_000
_MOVABLE = ("revolute", "prismatic", "continuous")
_NAN = float("nan")


@dataclass(frozen=True)
class UrdfJoints:
    """Movable joints of a robot description.

    Attributes:
        limits: of all movable joints, NaN where a number is missing or malformed.
        mimic: joints that follow another one, with its name; they are never commanded.
        mimic_map: multiplier and offset of each of them.
        problems: malformed numbers by joint, in words.

    """

    limits: JointLimits
    mimic: dict[str, str] = field(default_factory=dict)
    mimic_map: dict[str, tuple[float, float]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    @property
    def commandable(self) -> tuple[str, ...]:
        """Joints that follow no other."""
        return tuple(name for name in self.limits.names if name not in self.mimic)

    def check(self, joints: Sequence[str]) -> None:
        """Refuse joints that cannot be commanded or whose numbers are malformed."""
        for name in joints:
            if name in self.mimic:
                raise LimitsError(
                    f"joint {name!r} of the URDF mimics {self.mimic[name]!r} and follows it; "
                    f"command {self.mimic[name]!r} instead"
                )
            if name in self.problems:
                raise LimitsError(f"joint {name!r} of the URDF: {self.problems[name]}")


def read_urdf(text: str) -> UrdfJoints:
    """Movable joints of a URDF: revolute, prismatic and continuous ones.

    ``lower`` and ``upper`` of a continuous joint do not count; for the others one that is missing
    beside the other is 0, as the format says. Acceleration is not given by a URDF. Soft limits
    (``safety_controller``) are not read.

    Raises:
        LimitsError: not XML, a document type declaration, no movable joint, a name twice.

    """
    if len(text) > MAX_URDF_CHARACTERS:
        raise LimitsError(f"the URDF has {len(text)} characters; accepted: {MAX_URDF_CHARACTERS}")
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise LimitsError("the URDF has a document type declaration, which is refused")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, UnicodeError) as error:
        raise LimitsError(f"the URDF is not XML: {error}") from error
    names: list[str] = []
    rows: list[tuple[float, float, float]] = []
    kinds: list[str] = []
    mimic: dict[str, str] = {}
    mimic_map: dict[str, tuple[float, float]] = {}
    problems: dict[str, str] = {}
    # Direct children only: transmissions and ros2_control hold elements of the same name.
    for joint in root.findall("joint"):
        kind, name = joint.get("type", ""), joint.get("name", "")
        if kind not in _MOVABLE:
            continue
        if name in names:
            raise LimitsError(f"the URDF has two joints {name!r}")
        follows = joint.find("mimic")
        if follows is not None:
            mimic[name] = follows.get("joint", "")
        try:
            if follows is not None:
                mimic_map[name] = (
                    _number(follows.attrib, "multiplier", 1.0),
                    _number(follows.attrib, "offset", 0.0),
                )
            row = _row(joint.find("limit"), kind)
        except ValueError as error:
            problems[name] = str(error)
            row = (_NAN, _NAN, _NAN)
        names.append(name)
        rows.append(row)
        kinds.append(kind)
    if not rows:
        raise LimitsError("the URDF has no movable joint")
    lower, upper, velocity = np.array(rows).T
    limits = JointLimits(
        tuple(names),
        lower,
        upper,
        velocity,
        np.full(len(names), _NAN),
        continuous=tuple(kind == "continuous" for kind in kinds),
        units=tuple("metre" if kind == "prismatic" else "radian" for kind in kinds),
    )
    return UrdfJoints(limits, mimic, mimic_map, problems)


def _row(limit: ElementTree.Element | None, kind: str) -> tuple[float, float, float]:
    """Lower, upper, velocity; NaN where not given, ValueError where they make no sense."""
    given = {} if limit is None else limit.attrib
    velocity = _number(given, "velocity")
    if kind == "continuous":
        lower, upper = -ENDLESS_RAD, ENDLESS_RAD
    elif "lower" in given or "upper" in given:
        lower = _number(given, "lower", 0.0)
        upper = _number(given, "upper", 0.0)
        if lower >= upper:
            raise ValueError(f"lower limit {lower:g} >= upper {upper:g}: it is locked")
    else:
        lower = upper = _NAN
    if velocity <= 0:
        raise ValueError(f"velocity limit is {velocity:g}; accepted: above 0")
    return lower, upper, velocity


def _number(given: dict[str, str], key: str, default: float = _NAN) -> float:
    if key not in given:
        return default
    try:
        value = float(given[key])
    except ValueError:
        value = math.inf
    if not math.isfinite(value):
        raise ValueError(f"{key} is {given[key][:50]!r}; accepted: a finite number")
    return value
