"""Joint limits and the filter that keeps every command within them."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pi05_ros.errors import Pi05Error
from pi05_ros.small_files import FileError
from pi05_ros.strict_yaml import read_yaml

_KEYS = ("min_position", "max_position", "max_velocity", "max_acceleration")
DEFAULT_ACCELERATION_TIME_S = 0.1
"""A URDF has no acceleration limits: reach the velocity limit in this time by default."""

ENDLESS_RAD = 1e3
"""Position limit, both ways, of a continuous joint of a URDF."""


class LimitsError(Pi05Error, ValueError):
    """Limits that are missing, malformed or contradictory."""


@dataclass(frozen=True)
class JointLimits:
    """Limits of named joints; arrays ``[n]`` in rad or m, per second, per second squared."""

    names: tuple[str, ...]
    lower: np.ndarray
    upper: np.ndarray
    velocity: np.ndarray
    acceleration: np.ndarray

    def __post_init__(self) -> None:
        n = len(self.names)
        for key in ("lower", "upper", "velocity", "acceleration"):
            values = np.asarray(getattr(self, key), dtype=np.float64)
            if values.shape != (n,) or not np.isfinite(values).all():
                raise LimitsError(f"{key} limits must be {n} finite numbers, got {values}")
            object.__setattr__(self, key, values)
        if len(set(self.names)) != n:
            raise LimitsError(f"joint names repeat: {', '.join(self.names)}")
        for i, name in enumerate(self.names):
            if self.lower[i] >= self.upper[i]:
                raise LimitsError(f"{name}: lower limit {self.lower[i]} >= upper {self.upper[i]}")
            if self.velocity[i] <= 0 or self.acceleration[i] <= 0:
                raise LimitsError(f"{name}: velocity and acceleration limits must be above 0")

    def of(self, names: Sequence[str]) -> JointLimits:
        """Limits of these joints in this order; LimitsError names the missing ones."""
        missing = [name for name in names if name not in self.names]
        if missing:
            raise LimitsError(
                f"no limits for {', '.join(missing)}; there are limits for {', '.join(self.names)}"
            )
        rows = [self.names.index(name) for name in names]
        return JointLimits(
            tuple(names),
            self.lower[rows],
            self.upper[rows],
            self.velocity[rows],
            self.acceleration[rows],
        )


def limits_from_mapping(data: Any, source: str = "limits") -> JointLimits:
    """Read MoveIt's joint_limits layout.

    ``{joint_limits: {<joint>: {min_position, max_position, max_velocity, max_acceleration}}}``;
    the ``has_...`` switches of that format are ignored, all four numbers are needed.
    """
    joints = data.get("joint_limits") if isinstance(data, Mapping) else None
    if not isinstance(joints, Mapping) or not joints:
        raise LimitsError(f"{source}: needs a section joint_limits with one entry per joint")
    rows = []
    for name, entry in joints.items():
        if not isinstance(entry, Mapping):
            raise LimitsError(f"{source}: joint_limits.{name} is not a mapping")
        for key in _KEYS:
            value = entry.get(key)
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float)
                or not abs(value) < 1e300
            ):
                raise LimitsError(
                    f"{source}: joint_limits.{name}.{key} is {value!s:.50}; accepted: a finite "
                    "number"
                )
        rows.append([float(entry[key]) for key in _KEYS])
    lower, upper, velocity, acceleration = np.array(rows).T
    return JointLimits(tuple(str(n) for n in joints), lower, upper, velocity, acceleration)


def limits_from_yaml(path: Path) -> JointLimits:
    """Read a YAML file, see `limits_from_mapping`."""
    try:
        data = read_yaml(path)
    except FileError as error:
        raise LimitsError(f"cannot read {error}") from error
    return limits_from_mapping(data, str(path))


def limits_from_urdf(
    text: str, acceleration_time_s: float = DEFAULT_ACCELERATION_TIME_S
) -> JointLimits:
    """Limits of the revolute, prismatic and continuous joints of a URDF.

    Args:
        text: the robot description. Document type declarations are refused.
        acceleration_time_s: seconds to reach the velocity limit, which gives the acceleration
            limit that URDF lacks.

    """
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise LimitsError("the URDF has a document type declaration, which is refused")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise LimitsError(f"the URDF is not XML: {error}") from error
    names, rows = [], []
    for joint in root.iter("joint"):
        kind, limit = joint.get("type"), joint.find("limit")
        if kind not in ("revolute", "prismatic", "continuous"):
            continue
        name = joint.get("name", "")
        if limit is None or limit.get("velocity") is None:
            raise LimitsError(f"joint {name!r} of the URDF has no velocity limit")
        try:
            velocity = float(limit.get("velocity", ""))
            endless = kind == "continuous"
            lower = -ENDLESS_RAD if endless else float(limit.get("lower", "0"))
            upper = ENDLESS_RAD if endless else float(limit.get("upper", "0"))
        except ValueError as error:
            raise LimitsError(f"joint {name!r} of the URDF: {error}") from error
        names.append(name)
        rows.append((lower, upper, velocity, velocity / acceleration_time_s))
    if not rows:
        raise LimitsError("the URDF has no movable joint")
    lower_, upper_, velocity_, acceleration_ = np.array(rows).T
    return JointLimits(tuple(names), lower_, upper_, velocity_, acceleration_)


class MotionFilter:
    """Follows a target without ever leaving the limits.

    Per joint and step, with v the last velocity: the new one stays within v +- a dt and +-v_max,
    and is small enough to stop before the position limit by braking with a, i.e.
    ``v^2 / 2a + v dt <= distance``, hence ``v <= -a dt + sqrt((a dt)^2 + 2 a distance)``. That
    bound can always be kept: braking with a from a state that keeps it leads to one that does.
    The same law brings the joint to a resting target without overshoot; a moving target's own
    velocity is added, so that it is followed without lag.

    Args:
        limits: of all joints.
        period_s: control period; every call of `step` stands for one.

    """

    def __init__(self, limits: JointLimits, period_s: float) -> None:
        self.limits = limits
        self.period_s = period_s
        self.position: np.ndarray | None = None
        self.velocity = np.zeros(len(limits.names))
        self._target: np.ndarray | None = None

    def reset(self, position: np.ndarray) -> None:
        """Start at rest at a measured position (clipped into the limits)."""
        self.position = np.clip(
            np.asarray(position, dtype=np.float64), self.limits.lower, self.limits.upper
        )
        self.velocity = np.zeros_like(self.position)
        self._target = None

    def step(self, target: np.ndarray | None) -> np.ndarray:
        """Next command ``[n]`` on the way to ``target`` ``[n]``; None brakes to a stop.

        Raises:
            RuntimeError: `reset` has not been called.

        """
        if self.position is None:
            raise RuntimeError("the filter has no start position yet")
        dt, a = self.period_s, self.limits.acceleration
        position = self.position
        if target is None:
            wanted = np.zeros_like(position)
            self._target = None
        else:
            goal = np.clip(target, self.limits.lower, self.limits.upper)
            known = goal if self._target is None else self._target
            drift = np.clip((goal - known) / dt, -self.limits.velocity, self.limits.velocity)
            error = goal - drift * dt - position
            pace = np.minimum(np.abs(error) / dt, self._braking(np.abs(error)))
            wanted = drift + np.sign(error) * pace
            self._target = goal
        wanted = np.clip(wanted, self.velocity - a * dt, self.velocity + a * dt)
        wanted = np.clip(wanted, -self.limits.velocity, self.limits.velocity)
        up = self._braking(np.maximum(0.0, self.limits.upper - position))
        down = self._braking(np.maximum(0.0, position - self.limits.lower))
        self.velocity = np.clip(wanted, -down, up)
        self.position = np.clip(
            position + self.velocity * dt, self.limits.lower, self.limits.upper
        )
        return self.position.copy()

    @property
    def resting(self) -> bool:
        """Whether the last command did not move any joint."""
        return not self.velocity.any()

    def _braking(self, distance: np.ndarray) -> np.ndarray:
        """Highest velocity for the next period from which a stop within ``distance`` is sure."""
        a, dt = self.limits.acceleration, self.period_s
        return -a * dt + np.sqrt((a * dt) ** 2 + 2 * a * distance)
