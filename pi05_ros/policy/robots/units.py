"""Units of state and action columns, and the map from a model's number to the robot's.

A model answers in the numbers of its training data: degrees, 0..100, fractions of a top speed. On
the robot's side, in observations and chunks, joints are in SI units: rad, m, rad/s, m/s (REP 103).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from pi05_ros.policy.interface import ActionMeaning, ActionUnit


class Unit(IntEnum):
    """Unit of one column of the training data; those below 100 are also units of a chunk."""

    RADIAN = ActionUnit.RADIAN.value
    METRE = ActionUnit.METRE.value
    RADIAN_PER_SECOND = ActionUnit.RADIAN_PER_SECOND.value
    METRE_PER_SECOND = ActionUnit.METRE_PER_SECOND.value
    GRIPPER_OPEN_0_CLOSED_1 = ActionUnit.GRIPPER_OPEN_0_CLOSED_1.value
    GRIPPER_CLOSED_0_OPEN_1 = ActionUnit.GRIPPER_CLOSED_0_OPEN_1.value
    DIMENSIONLESS = ActionUnit.DIMENSIONLESS.value
    PERCENT = ActionUnit.PERCENT.value
    NORMALIZED = ActionUnit.NORMALIZED.value
    DEGREE = 100
    DEGREE_PER_SECOND = 101
    CENTIMETRE = 102
    MILLIMETRE = 103
    CENTIMETRE_PER_SECOND = 104
    MILLIMETRE_PER_SECOND = 105


ANGLE, LENGTH, GRIPPER, RATIO = "angle", "length", "gripper", "ratio"
ANGULAR_VELOCITY, LINEAR_VELOCITY = "angular_velocity", "linear_velocity"
QUANTITIES = (ANGLE, LENGTH, ANGULAR_VELOCITY, LINEAR_VELOCITY, GRIPPER, RATIO)
VELOCITIES = (ANGULAR_VELOCITY, LINEAR_VELOCITY)

# unit -> quantity, unit on the robot's side, how many of those one of it is
_FACTS = {
    Unit.RADIAN: (ANGLE, ActionUnit.RADIAN, 1.0),
    Unit.DEGREE: (ANGLE, ActionUnit.RADIAN, math.pi / 180),
    Unit.METRE: (LENGTH, ActionUnit.METRE, 1.0),
    Unit.CENTIMETRE: (LENGTH, ActionUnit.METRE, 1e-2),
    Unit.MILLIMETRE: (LENGTH, ActionUnit.METRE, 1e-3),
    Unit.RADIAN_PER_SECOND: (ANGULAR_VELOCITY, ActionUnit.RADIAN_PER_SECOND, 1.0),
    Unit.DEGREE_PER_SECOND: (ANGULAR_VELOCITY, ActionUnit.RADIAN_PER_SECOND, math.pi / 180),
    Unit.METRE_PER_SECOND: (LINEAR_VELOCITY, ActionUnit.METRE_PER_SECOND, 1.0),
    Unit.CENTIMETRE_PER_SECOND: (LINEAR_VELOCITY, ActionUnit.METRE_PER_SECOND, 1e-2),
    Unit.MILLIMETRE_PER_SECOND: (LINEAR_VELOCITY, ActionUnit.METRE_PER_SECOND, 1e-3),
    Unit.GRIPPER_OPEN_0_CLOSED_1: (GRIPPER, ActionUnit.GRIPPER_OPEN_0_CLOSED_1, 1.0),
    Unit.GRIPPER_CLOSED_0_OPEN_1: (GRIPPER, ActionUnit.GRIPPER_CLOSED_0_OPEN_1, 1.0),
    Unit.PERCENT: (RATIO, ActionUnit.PERCENT, 1.0),
    Unit.NORMALIZED: (RATIO, ActionUnit.NORMALIZED, 1.0),
    Unit.DIMENSIONLESS: (RATIO, ActionUnit.DIMENSIONLESS, 1.0),
}
UNIT_NAMES: dict[str, Unit] = {unit.name.lower(): unit for unit in Unit} | {
    "rad": Unit.RADIAN,
    "deg": Unit.DEGREE,
    "m": Unit.METRE,
    "meter": Unit.METRE,
    "cm": Unit.CENTIMETRE,
    "centimeter": Unit.CENTIMETRE,
    "mm": Unit.MILLIMETRE,
    "millimeter": Unit.MILLIMETRE,
    "rad/s": Unit.RADIAN_PER_SECOND,
    "deg/s": Unit.DEGREE_PER_SECOND,
    "m/s": Unit.METRE_PER_SECOND,
    "meter_per_second": Unit.METRE_PER_SECOND,
    "cm/s": Unit.CENTIMETRE_PER_SECOND,
    "centimeter_per_second": Unit.CENTIMETRE_PER_SECOND,
    "mm/s": Unit.MILLIMETRE_PER_SECOND,
    "millimeter_per_second": Unit.MILLIMETRE_PER_SECOND,
}
"""Names accepted in profile files, short and American spellings included."""


def quantity_of(unit: Unit) -> str:
    """Return what a unit measures, one of QUANTITIES."""
    return _FACTS[unit][0]


@dataclass(frozen=True)
class UnitMap:
    """The map of one column: model's number, robot's number, SI.

    ``robot = robot_at + (model - model_at) / model_span * robot_span`` in ``unit``, then times
    `factor` to the unit on the robot's side.

    Attributes:
        unit: of the robot's number, as declared.
        quantity: what the column is, one of QUANTITIES.
        model_at, robot_at: one point of the map.
        model_span, robot_span: from it to another point; neither is 0.
        clip: commands only: limits of the model's number before it is mapped, or None.
        threshold: commands only: a model's number above it becomes the higher of
            ``model_at`` and ``model_at + model_span``, any other the lower; or None.
        limits: range of the joint in ``unit``, or None where it is not known.

    """

    unit: Unit
    quantity: str = ""
    model_at: float = 0.0
    robot_at: float = 0.0
    model_span: float = 1.0
    robot_span: float = 1.0
    clip: tuple[float, float] | None = None
    threshold: float | None = None
    limits: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not self.quantity:
            object.__setattr__(self, "quantity", quantity_of(self.unit))

    @property
    def factor(self) -> float:
        """Robot-side units per declared unit."""
        return _FACTS[self.unit][2]

    @property
    def wire(self) -> ActionUnit:
        """Unit on the robot's side: of observations and chunks."""
        return _FACTS[self.unit][1]

    @property
    def scale(self) -> float:
        """Declared units per model's unit."""
        return self.robot_span / self.model_span

    @property
    def offset(self) -> float:
        """Declared value where the model's number is 0."""
        return self.robot_at - self.model_at * self.scale

    @property
    def model_unit(self) -> Unit:
        """Unit of the model's number: the declared one unless it is scaled."""
        if abs(self.scale) == 1.0:
            return self.unit
        ends = {self.model_at, self.model_at + self.model_span}
        return {(0.0, 100.0): Unit.PERCENT, (-1.0, 1.0): Unit.NORMALIZED}.get(
            (min(ends), max(ends)), Unit.DIMENSIONLESS
        )

    @property
    def identity(self) -> bool:
        """Whether numbers pass as they are."""
        linear = (self.scale, self.offset, self.factor) == (1.0, 0.0, 1.0)
        return linear and self.clip is None and self.threshold is None

    def to_robot(self, values: np.ndarray) -> np.ndarray:
        """Model's numbers (any shape) in robot-side units, neither clipped nor thresholded."""
        share = (values - self.model_at) / self.model_span
        return np.asarray((self.robot_at + share * self.robot_span) * self.factor)

    def to_model(self, values: np.ndarray) -> np.ndarray:
        """Inverse of `to_robot`."""
        share = (values / self.factor - self.robot_at) / self.robot_span
        return np.asarray(self.model_at + share * self.model_span)

    def command(self, values: np.ndarray) -> np.ndarray:
        """Model's actions as commands in robot-side units: clip, threshold, map."""
        if self.clip is not None:
            values = np.clip(values, *self.clip)
        if self.threshold is not None:
            ends = sorted((self.model_at, self.model_at + self.model_span))
            values = np.where(values > self.threshold, ends[1], ends[0])
        return self.to_robot(values)


def map_fault(unit_map: UnitMap, meaning: ActionMeaning | None) -> str | None:
    """Return why a map cannot be one of a state (meaning None) or of such an action, or None."""
    unit, declared = unit_map.unit.name.lower(), quantity_of(unit_map.unit)
    if unit_map.quantity not in QUANTITIES:
        return f"quantity is {unit_map.quantity!r}; accepted: {', '.join(QUANTITIES)}"
    if declared != RATIO and declared != unit_map.quantity and unit_map.quantity != GRIPPER:
        return f"quantity {unit_map.quantity} cannot be in {unit}"
    spans = (unit_map.model_span, unit_map.robot_span, unit_map.scale)
    if not all(math.isfinite(v) and v != 0 for v in spans) or not math.isfinite(unit_map.offset):
        return "its map has no inverse: two ends are equal or too far apart"
    for name, pair in (("clip", unit_map.clip), ("limits", unit_map.limits)):
        if pair is not None and not pair[0] < pair[1]:
            return f"{name} is {list(pair)}; the low end must be below the high end"
    ends = sorted((unit_map.model_at, unit_map.model_at + unit_map.model_span))
    if unit_map.threshold is not None and not ends[0] <= unit_map.threshold < ends[1]:
        return f"threshold is {unit_map.threshold:g}; accepted: from {ends[0]:g} to {ends[1]:g}"
    if meaning is None:
        return None
    word, fast = meaning.name.lower(), declared in VELOCITIES
    if fast != (meaning is ActionMeaning.VELOCITY) and declared not in (RATIO, GRIPPER):
        kind = "a velocity" if fast else "no velocity"
        return f"meaning {word} does not fit the unit {unit}, which is {kind}"
    absolute = meaning in (ActionMeaning.ABSOLUTE, ActionMeaning.TASK_POSE)
    if not absolute and abs(unit_map.offset) > 1e-9 * abs(unit_map.scale):
        return f"meaning {word} with an offset would move while the model says 0; give scale only"
    return None
