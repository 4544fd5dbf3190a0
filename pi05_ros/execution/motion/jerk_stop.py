"""Stopping one coordinate with a limited change of acceleration, counted in control periods.

A state is a move per period and the change of that move; `limit` bounds the change and `jerk` the
change of the change. All are numbers of one unit, such as seconds of a path or radians.
"""

from __future__ import annotations

import math
from collections.abc import Callable

MAX_STEPS = 4000
EARLY = 6
"""Moves after which `stop_moves` asks whether to go on."""
_NOTHING = 1e-15


def eased(change: float, jerk: float) -> float:
    """How much a move still changes while its change fades to 0 by ``jerk`` per period."""
    size = abs(change)
    if size <= jerk:
        return 0.0
    n = math.ceil(size / jerk - 1e-12) - 1
    return math.copysign(n * size - jerk * n * (n + 1) / 2, change)


def brake(move: float, change: float, limit: float, jerk: float) -> float:
    """Next change of the hardest stop from a state, which ends with move and change 0 together.

    A state whose change is too strong for its small move passes 0 and comes back.
    """
    if move < 0 or (move == 0 and change < 0):
        return -brake(-move, -change, limit, jerk)
    lowest = max(change - jerk, -limit)
    if lowest >= 0 or move + lowest >= -eased(lowest, jerk):
        return lowest
    n = math.floor((math.sqrt(1 + 8 * move / jerk) - 1) / 2)
    size = (move + jerk * n * (n + 1) / 2) / (n + 1)
    return min(max(-size, lowest), change + jerk, limit)


def stop_moves(
    move: float,
    change: float,
    limit: float,
    jerk: float,
    early: Callable[[list[float]], bool] | None = None,
) -> list[float]:
    """Moves of the hardest stop after a state; the last one is 0.

    ``early`` is asked once, with the first moves of a longer stop; if it says no, they are all.
    """
    moves: list[float] = []
    known, ease = 0.0, 0.0  # what is left to ease off after a change, for the last one
    for _ in range(MAX_STEPS):
        # `brake`, written out for a motion that goes forward: this is where the time goes
        lowest = change - jerk
        if lowest < -limit:
            lowest = -limit
        if move < 0.0 or (move == 0.0 and change < 0.0):
            change = brake(move, change, limit, jerk)
        elif lowest >= 0.0:
            change = lowest
        else:
            if lowest != known:
                known, ease = lowest, abs(eased(lowest, jerk))
            change = lowest if move + lowest >= ease else brake(move, change, limit, jerk)
        move += change
        if -_NOTHING <= move <= _NOTHING:
            move = 0.0
        moves.append(move)
        if move == 0.0 and abs(change) <= jerk:
            return moves
        if early is not None and len(moves) == EARLY and not early(moves):
            return moves
    return moves


def stop_distance(move: float, change: float, limit: float, jerk: float) -> float:
    """How far the hardest stop goes after a state."""
    return sum(stop_moves(move, change, limit, jerk))
