"""What a robot means to pi0.5: cameras, state, actions, normalization, prompt - one YAML file.

The same dataclass also describes LeRobot checkpoints, which bring these facts themselves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NoReturn

from pi05_ros.policy.errors import RobotProfileError
from pi05_ros.policy.interface import ActionMeaning, ActionUnit
from pi05_ros.policy.pose_groups import PoseGroup, pose_groups_fault
from pi05_ros.policy.robots.units import RATIO, Unit, UnitMap, map_fault, quantity_of

ROLES = ("base", "wrist", "wrist_2")
"""Cameras of a profile file. A LeRobot checkpoint with more cameras names the others itself."""
# The camera inputs of openpi's pi0.5, in the order of the prefix.
SLOTS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
NORMALIZATIONS = ("quantile", "quantile10", "zscore", "minmax", "identity")
ADAPTATIONS = ("none", "aloha")
MIN_HZ, MAX_HZ = 0.1, 1000.0  # of the steps of a chunk: 10 s to 1 ms each
MODEL_DIM = 32


@dataclass(frozen=True)
class Camera:
    """One camera of the robot.

    Attributes:
        role: name in `Observation.images`, one of ROLES unless a LeRobot checkpoint has more.
        slot: model input it fills (openpi's names; LeRobot's feature name for LeRobot files).
        required: an observation without it is an error; otherwise its slot is masked.
        rotate_180: turn the image before the model sees it (a camera mounted upside down).
        source: name of the camera in the data set of a LeRobot checkpoint, else empty.

    """

    role: str
    slot: str
    required: bool = False
    rotate_180: bool = False
    source: str = ""


@dataclass(frozen=True)
class Ranges:
    """Value ranges used as statistics where a checkpoint has none (seeded random weights).

    In the model's numbers: the normalized interval [-1, 1] is mapped onto [low, high]. Values
    outside [-1, 1] are not clamped: limits are the executor's business, and silent clamping would
    hide a bad model.
    """

    state_low: tuple[float, ...]
    state_high: tuple[float, ...]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]


@dataclass(frozen=True)
class RobotProfile:
    """Everything about a robot that the weights do not tell.

    Attributes:
        name: short name; the file name of shipped profiles.
        description: one line for people.
        source: where the units and maps of its columns come from, for people.
        cameras: in the order of the model's inputs.
        state_names: one per state value, in the order of the training data.
        action_names, action_meanings: one per action column; the first ``len(action_names)`` of
            the model's 32 outputs are used.
        state_maps, action_maps: unit of each column and the map to the model's numbers.
        delta_mask: True where training subtracted the current state, so that the state of the
            same observation is added back; shorter than the actions means False for the rest.
        control_hz: rate of the steps of one chunk.
        horizon: steps per chunk; None is the checkpoint's own.
        discrete_state: the state is written into the prompt (all pi0.5 but openpi's pi05_libero).
        default_prompt: used when an observation has none.
        normalization: one of NORMALIZATIONS, of state and actions alike.
        asset_id: directory of norm_stats.json under the checkpoint's ``assets``; may hold ``/``.
        adapt: "aloha" applies openpi's adapt_to_pi joint flips and gripper geometry.
        ranges: statistics for checkpoints without any.
        pose_groups: action columns that are the pose of a link, see `PoseGroup`.

    """

    name: str
    cameras: tuple[Camera, ...]
    state_names: tuple[str, ...]
    state_maps: tuple[UnitMap, ...]
    action_names: tuple[str, ...]
    action_meanings: tuple[ActionMeaning, ...]
    action_maps: tuple[UnitMap, ...]
    control_hz: float
    description: str = ""
    source: str = ""
    delta_mask: tuple[bool, ...] = ()
    horizon: int | None = None
    discrete_state: bool = True
    default_prompt: str | None = None
    normalization: str = "quantile"
    asset_id: str | None = None
    adapt: str = "none"
    ranges: Ranges | None = None
    pose_groups: tuple[PoseGroup, ...] = ()

    def __post_init__(self) -> None:
        _check(self)

    @property
    def camera_roles(self) -> tuple[str, ...]:
        """Roles of all cameras, in the order of the model's inputs."""
        return tuple(camera.role for camera in self.cameras)

    @property
    def required_roles(self) -> tuple[str, ...]:
        """Roles without which there is no observation."""
        return tuple(camera.role for camera in self.cameras if camera.required)

    @property
    def state_units(self) -> tuple[Unit, ...]:
        """Units of the state as the model was trained with it."""
        return tuple(m.model_unit for m in self.state_maps)

    @property
    def action_units(self) -> tuple[Unit, ...]:
        """Units of the actions as the model was trained with them."""
        return tuple(m.model_unit for m in self.action_maps)

    @property
    def observed_units(self) -> tuple[ActionUnit, ...]:
        """Units of `Observation.state`."""
        return tuple(m.wire for m in self.state_maps)

    @property
    def command_units(self) -> tuple[ActionUnit, ...]:
        """Units of `ActionChunk.actions`."""
        return tuple(m.wire for m in self.action_maps)

    @property
    def step_s(self) -> float:
        """Seconds per step of a chunk."""
        return 1.0 / self.control_hz


def _check(p: RobotProfile) -> None:
    """Raise RobotProfileError for what would otherwise go wrong silently at run time."""
    for check in (_check_cameras, _check_columns, _check_deltas, _check_numbers, _check_ranges):
        check(p)


def _fail(p: RobotProfile, text: str) -> NoReturn:
    raise RobotProfileError(f"robot profile {p.name!r}: {text}")


def _check_cameras(p: RobotProfile) -> None:
    if not p.cameras:
        _fail(p, "cameras is empty; at least one is needed")
    for what, values in (("role", p.camera_roles), ("slot", tuple(c.slot for c in p.cameras))):
        if len(set(values)) != len(values):
            _fail(p, f"two cameras have the same {what}: {', '.join(values)}")
    if not p.required_roles:
        _fail(p, "no camera is required; mark at least one with required: true")


def _check_columns(p: RobotProfile) -> None:
    """Names, units and meanings of state and actions, and pose groups."""
    for what, names in (("state", p.state_names), ("actions", p.action_names)):
        if not 1 <= len(names) <= MODEL_DIM:
            _fail(p, f"{what} has {len(names)} names; accepted: 1 to {MODEL_DIM}")
        if len(set(names)) != len(names):
            _fail(p, f"{what} has a name twice: {', '.join(names)}")
    if len(p.state_maps) != len(p.state_names):
        _fail(p, f"{len(p.state_maps)} state units for {len(p.state_names)} state names")
    if len(p.action_meanings) != len(p.action_names) or len(p.action_maps) != len(p.action_names):
        _fail(
            p,
            f"{len(p.action_names)} action names, {len(p.action_meanings)} meanings, "
            f"{len(p.action_maps)} units; they must be as many",
        )
    columns = [("state", n, m, None) for n, m in zip(p.state_names, p.state_maps, strict=True)]
    for what, name, unit_map, meaning in (
        *columns,
        *zip(
            ("action",) * len(p.action_names),
            p.action_names,
            p.action_maps,
            p.action_meanings,
            strict=True,
        ),
    ):
        fault = map_fault(unit_map, meaning)
        if fault is not None:
            _fail(p, f"{what} {name!r}: {fault}")
    groups_fault = pose_groups_fault(
        p.pose_groups, p.action_names, p.action_meanings, p.command_units
    )
    if groups_fault is not None:
        _fail(p, groups_fault)


def _check_deltas(p: RobotProfile) -> None:
    """Actions to which the state is added are in the state's numbers and order."""
    if len(p.delta_mask) > min(len(p.action_names), len(p.state_names)):
        _fail(
            p,
            f"delta_mask has {len(p.delta_mask)} entries for {len(p.action_names)} actions and "
            f"{len(p.state_names)} state values",
        )
    for name, meaning, delta in zip(p.action_names, p.action_meanings, p.delta_mask, strict=False):
        if delta and meaning is not ActionMeaning.ABSOLUTE:
            _fail(
                p,
                f"action {name!r} has delta: true, which adds the state, and meaning "
                f"{meaning.name.lower()}; accepted with delta: absolute",
            )
    for i, delta in enumerate(p.delta_mask):
        state, action, name = p.state_maps[i], p.action_maps[i], p.action_names[i]
        if delta and name in p.state_names and p.state_names[i] != name:
            _fail(
                p,
                f"action {name!r} has delta: true, which adds the state of the same column, and "
                f"that is {p.state_names[i]!r}; put states and actions into one order",
            )
        if delta and not _same_numbers(state, action):
            _fail(
                p,
                f"action {p.action_names[i]!r} has delta: true, which adds state "
                f"{p.state_names[i]!r}, and the two are not in the same numbers "
                f"({_formula(action)} and {_formula(state)}); give both the same unit and map",
            )


def _check_numbers(p: RobotProfile) -> None:
    if not MIN_HZ <= p.control_hz <= MAX_HZ:
        _fail(p, f"control_hz is {p.control_hz:g}; accepted: {MIN_HZ:g} to {MAX_HZ:g}")
    if p.horizon is not None and not 1 <= p.horizon <= 1024:
        _fail(p, f"horizon is {p.horizon}; accepted: 1 to 1024, or null for the checkpoint's own")
    if p.normalization not in NORMALIZATIONS:
        _fail(p, f"normalization is {p.normalization!r}; accepted: {', '.join(NORMALIZATIONS)}")
    if p.adapt not in ADAPTATIONS:
        _fail(p, f"adapt is {p.adapt!r}; accepted: {', '.join(ADAPTATIONS)}")
    if p.adapt == "aloha" and (len(p.state_names), len(p.action_names)) != (14, 14):
        _fail(p, "adapt: aloha needs 14 state values and 14 actions (6 joints, gripper, per arm)")


def _check_ranges(p: RobotProfile) -> None:
    if p.ranges is None:
        return
    for what, low, high, n in (
        ("state", p.ranges.state_low, p.ranges.state_high, len(p.state_names)),
        ("actions", p.ranges.action_low, p.ranges.action_high, len(p.action_names)),
    ):
        if len(low) != n or len(high) != n:
            _fail(p, f"ranges.{what} has {len(low)} entries; {n} are needed")
        if any(a >= b for a, b in zip(low, high, strict=True)):
            _fail(p, f"ranges.{what} has a range whose low end is not below its high end")


def _same_numbers(one: UnitMap, other: UnitMap) -> bool:
    """Whether two maps turn the same model's number into the same robot's number."""
    if one.wire != other.wire and RATIO not in (quantity_of(one.unit), quantity_of(other.unit)):
        return False
    scales = one.scale * one.factor, other.scale * other.factor
    offsets = one.offset * one.factor, other.offset * other.factor
    return math.isclose(*scales) and math.isclose(*offsets, abs_tol=1e-9 * abs(scales[0]))


def _formula(unit_map: UnitMap) -> str:
    return f"{unit_map.scale:g} x + {unit_map.offset:g} {unit_map.unit.name.lower()}"
