"""Joint-wise motion with jerk limits, for moves that are on no path."""

from __future__ import annotations

import copy

import numpy as np

from pi05_ros.execution.limit_sources.joint_limits import JointLimits
from pi05_ros.execution.motion.jerk_stop import brake, eased, stop_distance

_ROUNDING = 1 - 1e-9
_TRIALS = 10


class JerkMotion:
    """Every joint goes to its own target within velocity, acceleration and jerk limits.

    A joint takes the largest change from which its hardest stop does not pass the target; one
    that moves away from its target stops first.

    Args:
        limits: of all joints, complete.
        period_s: control period.

    """

    def __init__(self, limits: JointLimits, period_s: float) -> None:
        n = len(limits.names)
        self.limits = limits
        self.speed_scale = 1.0
        self.position, self.move, self.change = np.zeros((3, n))
        self._velocity = (limits.velocity * period_s * _ROUNDING).tolist()
        self._acceleration = (limits.acceleration * period_s**2 * _ROUNDING).tolist()
        jerk = limits.jerk_limits * period_s**3 * _ROUNDING
        self._jerk = np.minimum(jerk, 2 * np.array(self._acceleration)).tolist()

    def take_over(self, position: np.ndarray, move: np.ndarray, change: np.ndarray) -> None:
        """Go on from a command ``[n]``, its move and the change of the move per period."""
        self.position, self.move, self.change = position.copy(), move.copy(), change.copy()

    def planning_copy(self) -> JerkMotion:
        """An independent copy to try out what comes next."""
        return copy.copy(self)

    @property
    def resting(self) -> bool:
        """Whether nothing moves."""
        return not (self.move.any() or self.change.any())

    def step(self, target: np.ndarray | None) -> np.ndarray:
        """Next command ``[n]`` on the way to a target ``[n]``; None brakes to a stop."""
        goals = (
            [None] * len(self.move)
            if target is None
            else np.clip(target, self.limits.lower, self.limits.upper).tolist()
        )
        states = zip(self.position.tolist(), self.move.tolist(), self.change.tolist(), strict=True)
        changes = [
            self._change(i, goal, *state)
            for i, (goal, state) in enumerate(zip(goals, states, strict=True))
        ]
        self.change = np.array(changes)
        self.move = self.move + self.change
        self.move[np.abs(self.move) <= 1e-15] = 0.0
        self.position = self.position + self.move
        return self.position.copy()

    def _change(
        self, i: int, goal: float | None, position: float, move: float, change: float
    ) -> float:
        """Next change of the move of joint ``i``."""
        limit, jerk = self._acceleration[i], self._jerk[i]
        hardest = brake(move, change, limit, jerk)
        if goal is None:
            return hardest
        ahead = move if move else change if change else goal - position
        sign = -1.0 if ahead < 0 else 1.0
        room = sign * (goal - position)
        if room <= 0 or sign * ahead <= 0:
            return hardest
        # From here on everything counts along the motion.
        top = self._velocity[i] * min(max(self.speed_scale, 0.0), 1.0)
        low, high = sign * hardest, min(sign * change + jerk, limit)
        if high <= low or not self._allowed(i, low, sign * move, top, room):
            return hardest
        for trial in range(_TRIALS):
            middle = high if trial == 0 else (low + high) / 2
            if self._allowed(i, middle, sign * move, top, room):
                low = middle
                if trial == 0:
                    break
            else:
                high = middle
        return sign * low

    def _allowed(self, i: int, change: float, move: float, top: float, room: float) -> bool:
        """Whether a change keeps the top speed and can be followed by a stop within the room."""
        limit, jerk = self._acceleration[i], self._jerk[i]
        after = move + change
        if after < 0 or after + (eased(change, jerk) if change > 0 else 0.0) > top:
            return False
        if change < 0 and after < -eased(change, jerk):
            return False
        return after + stop_distance(after, change, limit, jerk) <= room
