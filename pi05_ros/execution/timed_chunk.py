"""A chunk on its way to the joints: checked on arrival, then read at any time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pi05_ros.errors import Pi05Error
from pi05_ros.policy.interface import ActionMeaning

MAX_HORIZON = 10_000
MAX_STEP_NS = 10_000_000_000
"""Longer steps are an error of units: such a chunk would be followed for minutes."""


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

    """

    start_ns: int
    step_ns: int
    positions: np.ndarray
    policy_id: str = ""
    chunk_id: int = 0

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
        return (1 - part) * self.positions[low] + part * self.positions[high]


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
) -> TimedChunk:
    """Check a chunk as it comes from the wire and put it into the order of ``joints``.

    Args:
        joints: the executor's joints; the chunk must name all of them, once, and no other.
        names: columns of the chunk.
        data: row-major ``[horizon * len(names)]``.
        horizon: steps.
        step_ns: duration of a step, above 0, at most MAX_STEP_NS.
        start_ns: time of step 0.
        meaning: per column an `ActionMeaning`; absolute positions, deltas to the step before
            and velocities are understood, deltas and velocities only with a reference.
        reference: joint positions ``[n]`` (order of ``joints``) at ``start_ns``, from which
            deltas and velocities start, or None.
        policy_id: who made it.
        chunk_id: its number.

    Raises:
        ChunkRefusedError: with reason "names", "length", "step", "not finite", "meaning".

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
    if not 1 <= horizon <= MAX_HORIZON or size != horizon * n or len(meaning) != n:
        raise ChunkRefusedError(
            "length",
            f"chunk has {size} values and {len(meaning)} meanings for {horizon} steps of {n} "
            f"joints; accepted are up to {MAX_HORIZON} steps",
        )
    values = np.asarray(data, dtype=np.float64).reshape(-1)
    if not 0 < step_ns <= MAX_STEP_NS:
        raise ChunkRefusedError(
            "step", f"step duration is {step_ns} ns; accepted: 1 to {MAX_STEP_NS}"
        )
    if not np.isfinite(values).all():
        raise ChunkRefusedError("not finite", "chunk holds NaN or infinite values")
    order = [columns.index(name) for name in joints]
    table = values.reshape(horizon, n)[:, order]
    kinds = [meaning[i] for i in order]
    for column, kind in enumerate(kinds):
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
    return TimedChunk(start_ns, step_ns, table, policy_id, chunk_id)
