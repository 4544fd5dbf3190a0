"""What will be commanded if nothing new comes: the rest of the chunk, ending at rest."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Protocol

import numpy as np

from pi05_ros.execution.motion.make_filter import Filter
from pi05_ros.execution.strategies import Strategy

MAX_POINTS = 400


class Planner(Protocol):
    """What moves, and can be copied to try out what comes next."""

    @property
    def position(self) -> np.ndarray | None:
        """Present command ``[n]``."""

    def planning_copy(self) -> Filter:
        """An independent copy."""


def preview(
    planner: Planner,
    strategy: Strategy | None,
    now_ns: int,
    period_s: float,
    ahead_s: float,
    clear: Callable[[np.ndarray], bool] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Commands of the next periods and their velocities, both ``[k, n]``.

    The first row is the present command. After ``ahead_s``, or where the chunks end, it brakes;
    the last row is at rest.

    Args:
        planner: what keeps the limits; it is not changed.
        strategy: whose chunks are followed; None brakes at once. It is not changed.
        now_ns: time of the present command.
        period_s: control period.
        ahead_s: how long chunks are followed.
        clear: whether commands ``[k, n]`` may be sent; if not, it brakes at once.

    """
    assert planner.position is not None
    motion, follows = planner.planning_copy(), strategy is not None
    strategy = copy.copy(strategy)
    rows = [planner.position]
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
    if follows and clear is not None and not clear(positions):
        return preview(planner, None, now_ns, period_s, ahead_s)
    velocities = np.zeros_like(positions)
    velocities[1:-1] = (positions[2:] - positions[:-2]) / (2 * period_s)
    if len(positions) > 1:
        velocities[0] = (positions[1] - positions[0]) / period_s
    return positions, velocities
