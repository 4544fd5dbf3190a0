"""How long inferences take, and from when on one that is under way takes too long."""

from __future__ import annotations

from collections import deque

import numpy as np

WINDOW = 200
LEAST_EXCESS_S = 0.25
EXCESS_SHARE = 0.5
LEAST_HANG_S = 2.0
HANG_FACTOR = 20.0
FIRST_FACTOR = 10.0


class InferenceTimes:
    """Durations of the newest inferences, in seconds.

    Limits follow from the 99th percentile, not from the slowest inference ever: one that met a
    busy machine must not hide a hang for the rest of the day.
    """

    def __init__(self) -> None:
        self._newest: deque[float] = deque(maxlen=WINDOW)
        self._p99_s = 0.0

    def add(self, seconds: float) -> None:
        """Note an inference that has ended."""
        self._newest.append(seconds)
        self._p99_s = float(np.percentile(self._newest, 99, method="higher"))

    @property
    def late_s(self) -> float:
        """Time after which an inference is called late; it may still end."""
        return self._p99_s + max(LEAST_EXCESS_S, EXCESS_SHARE * self._p99_s)

    @property
    def hang_s(self) -> float:
        """Time after which an inference is given up and its process ended."""
        return max(LEAST_HANG_S, HANG_FACTOR * self._p99_s)

    @property
    def first_hang_s(self) -> float:
        """The same for the first inference of a kind, for which kernels may be made."""
        return FIRST_FACTOR * self.hang_s
