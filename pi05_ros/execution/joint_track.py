"""Measured joint positions over time; continuous joints without the step at their seam."""

from __future__ import annotations

from collections import deque

import numpy as np

from pi05_ros.execution.limit_sources.joint_limits import JointLimits

_STATES_KEPT = 4096


class JointTrack:
    """Newest measured positions and those before them.

    A driver reports a continuous joint within one turn. Here every state is put onto the turn of
    the state before it, so that differences and interpolation go by the shortest angle. A driver
    that has reported more than a turn counts turns itself; if it starts again (`gap_s` without
    states) and counts anew, its number is taken as it is: commands on the old turn would have the
    joint go round.

    Args:
        limits: names the joints and says which are continuous.
        kept_s: how long states are kept.
        gap_s: longest silence of a driver that is not started again.

    Attributes:
        recounted: a joint's turns were counted anew; what starts commands sets it back.

    """

    def __init__(self, limits: JointLimits, kept_s: float, gap_s: float = np.inf) -> None:
        self._limits = limits
        self._kept_ns = int(kept_s * 1e9)
        self._gap_s = gap_s
        self._least = np.full(len(limits.names), np.inf)  # of what was reported
        self._most = -self._least
        self.recounted = False
        self.states: deque[tuple[int, np.ndarray]] = deque(maxlen=_STATES_KEPT)

    @property
    def newest(self) -> np.ndarray | None:
        """Last measured positions ``[n]``; None before the first."""
        return self.states[-1][1] if self.states else None

    def age_s(self, now_ns: int) -> float:
        """Age of the newest state in seconds; infinite before the first."""
        return (now_ns - self.states[-1][0]) / 1e9 if self.states else np.inf

    def add(self, positions: np.ndarray, taken_ns: int) -> None:
        """Positions ``[n]`` and their time; not finite and older ones are ignored."""
        values = np.asarray(positions, dtype=np.float64)
        if values.shape != (len(self._limits.names),) or not np.isfinite(values).all():
            return
        if self.states:
            if taken_ns < self.states[-1][0]:
                return
            turn = self._limits.nearest_turn(values, self.states[-1][1])
            if self.age_s(taken_ns) > self._gap_s:
                counts = self._most - self._least > 2 * np.pi + 0.1
                self.recounted |= bool((counts & (turn != 0)).any())
                turn = np.where(counts, 0.0, turn)
            values, reported = values + turn, values
        else:
            reported = values
        self._least = np.minimum(self._least, reported)
        self._most = np.maximum(self._most, reported)
        self.states.append((taken_ns, values))
        while self.states[0][0] < taken_ns - self._kept_ns:
            self.states.popleft()

    def at(self, time_ns: int) -> np.ndarray | None:
        """Positions ``[n]`` at a time, linear between states; the ends are held."""
        later: tuple[int, np.ndarray] | None = None
        for state in reversed(self.states):
            if state[0] <= time_ns:
                if later is None:
                    found: np.ndarray = state[1]
                    return found
                share = (time_ns - state[0]) / (later[0] - state[0])
                found = (1 - share) * state[1] + share * later[1]
                return found
            later = state
        return None if later is None else later[1]

    def clear(self) -> None:
        """Forget all states."""
        self.states.clear()
