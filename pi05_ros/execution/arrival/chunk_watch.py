"""Watches accepted chunks for numbers that do not look like targets of these joints."""

from __future__ import annotations

from collections import Counter

import numpy as np

from pi05_ros.execution.limit_sources.joint_limits import JointLimits

END_SHARE = 0.01
"""A value this close to an end, as a share of the range, is at that end."""
STUCK_AFTER_CHUNKS = 100
"""So many chunks in a row at one end are told: a gripper that never closes, a wrong unit."""
OUTSIDE_TOLD_S = 10.0
"""How long a column that lay wholly outside is told."""


class ChunkWatch:
    """Counts, per joint, values outside the limits and columns that stay at one end.

    Attributes:
        clipped: chunks with a value outside the limits, by joint.
        outside: chunks whose whole column was outside, by joint.

    """

    def __init__(self, limits: JointLimits) -> None:
        self._limits = limits
        self.clipped: Counter[str] = Counter()
        self.outside: Counter[str] = Counter()
        self._outside_ns: dict[str, int] = {}
        n = len(limits.names)
        self._at_lower, self._at_upper = np.zeros(n, int), np.zeros(n, int)

    def add(self, positions: np.ndarray, now_ns: int) -> None:
        """Look at a chunk ``[H, n]``."""
        limits = self._limits
        endless = np.array(limits.continuous)
        out = ((positions < limits.lower) | (positions > limits.upper)) & ~endless
        for i in np.flatnonzero(out.any(axis=0)):
            self.clipped[limits.names[i]] += 1
            if out[:, i].all():
                self.outside[limits.names[i]] += 1
                self._outside_ns[limits.names[i]] = now_ns
        near = END_SHARE * (limits.upper - limits.lower)
        low = (positions <= limits.lower + near).all(axis=0) & ~endless
        high = (positions >= limits.upper - near).all(axis=0) & ~endless
        self._at_lower = np.where(low, self._at_lower + 1, 0)
        self._at_upper = np.where(high, self._at_upper + 1, 0)

    def outside_now(self, now_ns: int) -> str:
        """Joints whose targets have lately been wholly outside the limits, in words, or empty."""
        recent = [
            f"{name} ({self.outside[name]} chunks, last {max(0.0, (now_ns - at) / 1e9):.1f} s ago)"
            for name, at in self._outside_ns.items()
            if now_ns - at <= OUTSIDE_TOLD_S * 1e9
        ]
        return ", ".join(recent)

    def stuck(self) -> str:
        """Joints whose targets have not left one end for long, in words, or empty."""
        ends = (("lower", self._at_lower), ("upper", self._at_upper))
        return ", ".join(
            f"{name} at its {word} end for {count[i]} chunks"
            for i, name in enumerate(self._limits.names)
            for word, count in ends
            if count[i] >= STUCK_AFTER_CHUNKS
        )
