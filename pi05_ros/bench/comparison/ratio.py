"""ABAB: two sides in turn, and the ratio of their times with a confidence interval.

What differs between processes (clocks, where memory lies, what else runs) is larger than what
differs between the replays of one process, so a pair of processes is one observation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from pi05_ros.errors import InvalidValueError


@dataclass(frozen=True)
class Ratio:
    """Time of B over time of A.

    Attributes:
        value: geometric mean over the pairs.
        low, high: ends of the interval, Student's t on the logarithms.
        level: confidence, 0 to 1.
        pairs: observations.

    """

    value: float
    low: float
    high: float
    level: float
    pairs: int

    def __str__(self) -> str:
        return (
            f"{self.value:.4f} ({self.low:.4f} to {self.high:.4f}, "
            f"{100 * self.level:g} %, {self.pairs} pairs)"
        )

    def within(self, most: float) -> bool:
        """Whether the whole interval is at or below `most`."""
        return self.high <= most


def ratio_of(a: Sequence[float], b: Sequence[float], level: float = 0.95) -> Ratio:
    """Ratio of paired times.

    Args:
        a, b: milliseconds, in pairs.
        level: confidence.

    Raises:
        InvalidValueError: fewer than two pairs, or times that are not above 0.

    """
    if len(a) != len(b) or len(a) < 2:
        raise InvalidValueError("a ratio with a confidence interval takes two pairs or more")
    if not all(math.isfinite(t) and t > 0 for t in (*a, *b)):
        raise InvalidValueError("times above 0 are accepted only")
    if not 0 < level < 1:
        raise InvalidValueError(f"confidence {level}; accepted: between 0 and 1")
    from scipy.stats import t as student

    logs = [math.log(y / x) for x, y in zip(a, b, strict=True)]
    mean, count = fmean(logs), len(logs)
    half = float(student.ppf(0.5 + level / 2, count - 1)) * stdev(logs) / math.sqrt(count)
    return Ratio(_exp(mean), _exp(mean - half), _exp(mean + half), level, count)


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def alternate(
    pairs: int, run_a: Callable[[int], float], run_b: Callable[[int], float]
) -> tuple[list[float], list[float]]:
    """Times of both sides, run in the order A, B, A, B, ..."""
    times: tuple[list[float], list[float]] = ([], [])
    for pair in range(pairs):
        times[0].append(run_a(pair))
        times[1].append(run_b(pair))
    return times
