"""What will be commanded if nothing new comes: the rest of the chunk, ending at rest."""

from __future__ import annotations

import copy

import numpy as np

from pi05_ros.execution.motion.make_filter import Filter
from pi05_ros.execution.strategies import Strategy

MAX_POINTS = 400


def preview(
    motion: Filter,
    strategy: Strategy | None,
    now_ns: int,
    period_s: float,
    ahead_s: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Commands of the next periods and their velocities, both ``[k, n]``.

    The first row is the present command. After ``ahead_s``, or where the chunks end, it brakes;
    the last row is at rest.

    Args:
        motion: what keeps the limits; it is not changed.
        strategy: whose chunks are followed; None brakes at once. It is not changed.
        now_ns: time of the present command.
        period_s: control period.
        ahead_s: how long chunks are followed.

    """
    assert motion.position is not None
    motion = motion.planning_copy()
    strategy = copy.copy(strategy)
    rows = [motion.position]
    for k in range(1, MAX_POINTS):
        command = None
        if strategy is not None and k * period_s <= ahead_s:
            command = motion.follow(strategy, now_ns + round(k * period_s * 1e9))
        if command is None:
            strategy = None
            command = motion.brake()
        rows.append(command)
        if motion.resting and k * period_s > ahead_s:
            break
        if motion.resting and strategy is None:
            break
    positions = np.array(rows)
    velocities = np.zeros_like(positions)
    velocities[1:-1] = (positions[2:] - positions[:-2]) / (2 * period_s)
    if len(positions) > 1:
        velocities[0] = (positions[1] - positions[0]) / period_s
    return positions, velocities
