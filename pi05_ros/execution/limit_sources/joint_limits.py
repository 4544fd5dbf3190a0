"""Limits of named joints: ranges, rates, units, and which joints turn without end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pi05_ros.errors import Pi05Error

ENDLESS_RAD = 1e3
"""Position limit, both ways, of a continuous joint."""
_ARRAYS = ("lower", "upper", "velocity", "acceleration", "jerk")
_NEEDED = {
    "lower": "min_position",
    "upper": "max_position",
    "velocity": "max_velocity",
    "acceleration": "max_acceleration",
}


class LimitsError(Pi05Error, ValueError):
    """Limits that are missing, malformed or contradictory."""


@dataclass(frozen=True)
class JointLimits:
    """Limits of named joints; arrays ``[n]`` in rad or m, per second, per second squared.

    Attributes:
        names: joints, the order of all arrays.
        lower, upper, velocity, acceleration: NaN where a source does not give them, which
            `require_complete` refuses.
        jerk: ``[n]`` per second cubed; infinite where none is set. Default: infinite.
        continuous: joints that turn without end, compared by the shortest angle. Default: none.
        units: name of the `ActionUnit` of each joint's positions in lower case ("radian",
            "metre", "gripper_open_0_closed_1"); empty: an SI unit, it is not known which.

    """

    names: tuple[str, ...]
    lower: np.ndarray
    upper: np.ndarray
    velocity: np.ndarray
    acceleration: np.ndarray
    jerk: np.ndarray | None = None
    continuous: tuple[bool, ...] = ()
    units: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.names)
        if self.jerk is None:
            object.__setattr__(self, "jerk", np.full(n, np.inf))
        if not self.continuous:
            object.__setattr__(self, "continuous", (False,) * n)
        if not self.units:
            object.__setattr__(self, "units", ("",) * n)
        for key in _ARRAYS:
            values = np.asarray(getattr(self, key), dtype=np.float64)
            infinite = np.isinf(values).any() and key != "jerk"
            if values.shape != (n,) or infinite:
                raise LimitsError(f"{key} limits must be {n} finite numbers, got {values}")
            object.__setattr__(self, key, values)
        if len(self.continuous) != n or len(self.units) != n:
            raise LimitsError(f"continuous and units must have one entry for each of {n} joints")
        if len(set(self.names)) != n:
            raise LimitsError(f"joint names repeat: {', '.join(self.names)}")
        for i, name in enumerate(self.names):
            if self.lower[i] >= self.upper[i]:
                raise LimitsError(f"{name}: lower limit {self.lower[i]} >= upper {self.upper[i]}")
            if self.velocity[i] <= 0 or self.acceleration[i] <= 0 or self.jerk_limits[i] <= 0:
                raise LimitsError(
                    f"{name}: velocity, acceleration and jerk limits must be above 0"
                )

    @property
    def jerk_limits(self) -> np.ndarray:
        """`jerk`, which is always set after construction."""
        assert self.jerk is not None
        return self.jerk

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
            self.jerk_limits[rows],
            tuple(self.continuous[row] for row in rows),
            tuple(self.units[row] for row in rows),
        )

    def missing(self) -> dict[str, list[str]]:
        """Numbers that are not given, by joint, named as in a limits file."""
        lacking: dict[str, list[str]] = {}
        for key, word in _NEEDED.items():
            for i in np.flatnonzero(np.isnan(getattr(self, key))):
                lacking.setdefault(self.names[i], []).append(word)
        return lacking

    def require_complete(self) -> JointLimits:
        """Return self, or raise LimitsError naming every number that is missing."""
        lacking = self.missing()
        if lacking:
            shown = "; ".join(f"{name}: {', '.join(words)}" for name, words in lacking.items())
            raise LimitsError(
                f"limits are missing for {shown}. Give them in limits_file, or by a "
                "robot_description whose joints have <limit>"
            )
        return self

    def nearest_turn(self, values: np.ndarray, near: np.ndarray) -> np.ndarray:
        """Whole turns ``[n]`` in rad to add to continuous joints so that they are near others.

        Args:
            values, near: positions ``[n]``.

        """
        turns = np.round((near - values) / (2 * np.pi)) * 2 * np.pi
        return np.where(self.continuous, turns, 0.0)

    def difference(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """``a - b`` ``[n]``, of continuous joints by the shortest angle."""
        found: np.ndarray = a - b + self.nearest_turn(a, b)
        return found
