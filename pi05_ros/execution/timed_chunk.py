"""A chunk on its way to the joints: checked on arrival, then read at any time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pi05_ros.errors import Pi05Error
from pi05_ros.execution.limit_sources.joint_limits import JointLimits
from pi05_ros.policy.interface import ActionMeaning, ActionUnit

MAX_HORIZON = 10_000
MIN_STEP_NS = 1_000_000
"""The fastest control rate; a shorter step makes millions of steps of a chunk's time."""
MAX_STEP_NS = 10_000_000_000
"""Longer steps are an error of units: such a chunk would be followed for minutes."""


_POSITION_UNITS = (ActionUnit.RADIAN, ActionUnit.METRE)
_VELOCITY_UNITS = (ActionUnit.RADIAN_PER_SECOND, ActionUnit.METRE_PER_SECOND)


class ChunkRefusedError(Pi05Error, ValueError):
    """A chunk that must not be executed; ``reason`` is a short fixed word for counters."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True)
class TimedChunk:
    """Actions with the time of each, already in the executor's joint order.

    Attributes:
        start_ns: time of step 0 on the robot's clock.
        step_ns: duration of a step.
        positions: absolute targets ``[H, n]``, finite.
        policy_id, chunk_id: identity; newer chunks of one policy have larger ids.
        published_ns: when it was published, 0 if that is not known.
        summed: per joint whether its positions were added up from deltas or velocities, so that
            a large step is meant; empty: none was.
        pace: per step ``[H]`` the part of the speed at which it may be passed; None: all of it.
        cut: why it has fewer steps than it had on the wire, else empty.

    """

    start_ns: int
    step_ns: int
    positions: np.ndarray
    policy_id: str = ""
    chunk_id: int = 0
    published_ns: int = 0
    summed: tuple[bool, ...] = ()
    pace: np.ndarray | None = None
    cut: str = ""

    @property
    def horizon(self) -> int:
        """Number of steps."""
        return int(self.positions.shape[0])

    @property
    def end_ns(self) -> int:
        """Time at which the last step is over."""
        return self.start_ns + self.horizon * self.step_ns

    def index(self, now_ns: int) -> float:
        """Step that belongs to a time, with fraction; may lie outside 0..H-1."""
        return (now_ns - self.start_ns) / self.step_ns

    def at(self, now_ns: int) -> np.ndarray:
        """Target ``[n]`` at a time, linear between steps; the ends are held."""
        place = min(max(self.index(now_ns), 0.0), self.horizon - 1.0)
        low = int(place)
        high = min(low + 1, self.horizon - 1)
        part = place - low
        found: np.ndarray = (1 - part) * self.positions[low] + part * self.positions[high]
        return found

    def earlier(self, seconds: float) -> TimedChunk:
        """The same steps, each so much earlier."""
        if not seconds:
            return self
        return replace(self, start_ns=self.start_ns - round(seconds * 1e9))

    def pace_at(self, progress_s: float) -> float:
        """Part of the speed at a time since step 0: the least of the two steps around it."""
        if self.pace is None:
            return 1.0
        place = min(max(progress_s * 1e9 / self.step_ns, 0.0), self.horizon - 1.0)
        low = int(place)
        return float(self.pace[low : low + 2].min())

    def shifted(self, offset: np.ndarray) -> TimedChunk:
        """Copy with an offset ``[n]`` added to all steps."""
        return replace(self, positions=self.positions + offset)

    def on_turn_of(self, limits: JointLimits, near: np.ndarray, now_ns: int) -> TimedChunk:
        """Continuous joints without steps at their seam, on the turn of positions ``[n]`` now."""
        if not any(limits.continuous):
            return self
        summed = self.summed or (False,) * len(limits.names)
        positions = self.positions.copy()
        for column, endless in enumerate(limits.continuous):
            if endless and not summed[column]:
                positions[:, column] = np.unwrap(positions[:, column])
        chunk = replace(self, positions=positions)
        return chunk.shifted(limits.nearest_turn(chunk.at(now_ns), near))


def timed_chunk(
    *,
    joints: Sequence[str],
    names: Sequence[str],
    data: Sequence[float] | np.ndarray,
    horizon: int,
    step_ns: int,
    start_ns: int,
    meaning: Sequence[int],
    reference: np.ndarray | None,
    policy_id: str = "",
    chunk_id: int = 0,
    published_ns: int = 0,
    unit: Sequence[int] | None = None,
    joint_units: Sequence[str] = (),
) -> TimedChunk:
    """Check a chunk as it comes from the wire and put it into the order of ``joints``.

    Args:
        joints: the executor's joints; the chunk must name all of them, once, and no other.
        names: columns of the chunk.
        data: row-major ``[horizon * len(names)]``.
        horizon: steps.
        step_ns: duration of a step, MIN_STEP_NS to MAX_STEP_NS.
        start_ns: time of step 0.
        meaning: per column an `ActionMeaning`; absolute positions, deltas to the step before
            and velocities are understood, deltas and velocities only with a reference.
        reference: joint positions ``[n]`` (order of ``joints``) at ``start_ns``, from which
            deltas and velocities start, or None.
        policy_id: who made it.
        chunk_id: its number.
        published_ns: when it was published; 0 if that is not known.
        unit: per column an `ActionUnit`; None if the values are known to be in SI units.
        joint_units: per joint of ``joints`` the unit of its limits, see `JointLimits.units`.

    Raises:
        ChunkRefusedError: with reason "names", "length", "step", "not finite", "meaning", "unit".

    """
    columns = list(names)
    if sorted(columns) != sorted(joints):
        missing = sorted(set(joints) - set(columns))
        extra = sorted(set(columns) - set(joints))
        raise ChunkRefusedError(
            "names",
            f"chunk names {columns} are not the executor's joints {list(joints)}"
            f" (missing {missing}, unknown {extra})",
        )
    n = len(columns)
    size = data.size if isinstance(data, np.ndarray) else len(data)
    units = [None] * n if unit is None else list(unit)
    check_sizes(size, meaning, units, horizon, n)
    values = np.asarray(data, dtype=np.float64).reshape(-1)
    if not MIN_STEP_NS <= step_ns <= MAX_STEP_NS:
        raise ChunkRefusedError(
            "step", f"step duration is {step_ns} ns; accepted: {MIN_STEP_NS} to {MAX_STEP_NS}"
        )
    if not np.isfinite(values).all():
        raise ChunkRefusedError("not finite", "chunk holds NaN or infinite values")
    order = [columns.index(name) for name in joints]
    table = values.reshape(horizon, n)[:, order]
    kinds = [meaning[i] for i in order]
    for column, kind in enumerate(kinds):
        declared = joint_units[column] if joint_units else ""
        _check_unit(joints[column], kind, units[order[column]], declared)
        if kind == ActionMeaning.ABSOLUTE:
            continue
        if kind not in (ActionMeaning.DELTA, ActionMeaning.VELOCITY) or reference is None:
            raise ChunkRefusedError(
                "meaning",
                f"action meaning {kind} of {joints[column]} cannot be executed"
                + ("" if reference is not None else " before joint states are known"),
            )
        scale = 1.0 if kind == ActionMeaning.DELTA else step_ns / 1e9
        table[:, column] = reference[column] + np.cumsum(table[:, column] * scale)
    summed = tuple(kind != ActionMeaning.ABSOLUTE for kind in kinds)
    return TimedChunk(start_ns, step_ns, table, policy_id, chunk_id, published_ns, summed)


def check_sizes(
    size: int, meaning: Sequence[int], unit: Sequence[int | None], horizon: int, columns: int
) -> None:
    """Refuse a chunk ("length") whose sizes contradict each other, or that is too long."""
    fits = size == horizon * columns and len(meaning) == columns and len(unit) == columns
    if not 1 <= horizon <= MAX_HORIZON or not fits:
        raise ChunkRefusedError(
            "length",
            f"chunk has {size} values, {len(meaning)} meanings and {len(unit)} units for "
            f"{horizon} steps of {columns} columns; accepted are up to {MAX_HORIZON} steps",
        )


def _check_unit(joint: str, meaning: int, unit: int | None, declared: str) -> None:
    """Refuse a unit in which this joint cannot be commanded.

    Positions and deltas are in rad or m, as the joint's limits say, or in the unit that the
    limits declare for it. Velocities are in rad/s or m/s. 0 (radian), which is also what an unset
    field holds, is taken for a declared unit that is not an SI unit.
    """
    if unit is None:
        return
    if meaning == ActionMeaning.VELOCITY:
        accepted = {
            "radian": _VELOCITY_UNITS[:1], "metre": _VELOCITY_UNITS[1:], "": _VELOCITY_UNITS
        }.get(declared, ())  # fmt: skip
    elif declared in ("radian", "metre"):
        accepted = (ActionUnit[declared.upper()],)
    elif declared:
        accepted = (ActionUnit[declared.upper()], ActionUnit.RADIAN)
    else:
        accepted = _POSITION_UNITS
    if unit not in accepted:
        shown = ActionUnit(unit).name if unit in list(ActionUnit) else f"unit {unit}"
        words = " or ".join(item.name for item in accepted) or "none for a velocity"
        raise ChunkRefusedError(
            "unit",
            f"{joint} is in {shown}; accepted: {words}"
            + ("" if declared else ", or a unit that its limits declare (unit: ...)"),
        )
