"""Delay between a known motion and what a sensor says of it, by correlation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pi05_ros.errors import Pi05Error

COARSE_S = 0.01
FINE_S = 0.0005
AMBIGUOUS = 0.02
"""Another peak within this of the best correlation leaves open which one is right."""
MAX_ERROR_S = 0.005
"""Results that noise makes less certain than this (one standard deviation) are refused."""
FEWEST = 20
Flat = Callable[[np.ndarray], np.ndarray]


class DelayError(Pi05Error, ValueError):
    """A delay that cannot be told from the signals."""


@dataclass(frozen=True)
class SensorSignal:
    """Samples of one value over time.

    Attributes:
        times: seconds ``[N]``, increasing.
        values: ``[N]``.

    """

    times: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class DelayEstimate:
    """A delay and how far to trust it.

    Attributes:
        delay_s: the response at t belongs to the motion at t - delay_s.
        correlation: of both at this delay, up to 1; its sign is left out where it means nothing.
        error_s: standard deviation that the noise of the samples explains.
        samples: that were compared.

    """

    delay_s: float
    correlation: float
    error_s: float
    samples: int


def estimate_delay(
    motion: SensorSignal,
    response: SensorSignal,
    *,
    range_s: tuple[float, float],
    least: float,
    signed: bool = True,
) -> DelayEstimate:
    """Delay of a response behind a motion.

    For each delay the motion is read at the response's times minus the delay and correlated with
    the response, both without their mean and trend. The samples stay where they are: neither their
    rates nor gaps matter, and the peak is found between grid points.

    Args:
        motion: dense, its ends are held.
        response: samples at any times.
        range_s: delays that are tried.
        least: correlation below which the result is refused.
        signed: whether response and motion must have the same sign; an image's has no meaning.

    Raises:
        DelayError: too few samples, a weak correlation, a peak at the end of the range, two peaks,
            too much noise.

    """
    low_s, high_s = range_s
    # The same samples for all delays, and only those at which there is a motion.
    used = (response.times >= motion.times[0] + low_s) & (
        response.times <= motion.times[-1] + high_s
    )
    times, values = response.times[used], response.values[used]
    if len(times) < FEWEST:
        raise DelayError(f"only {len(times)} samples during the motion; {FEWEST} are needed")
    flat = _without_trend(times)
    values = flat(values)
    norm = np.linalg.norm(values)
    if norm < 1e-12 * max(1.0, np.abs(response.values).max()) * len(times):
        raise DelayError("the signal does not change during the motion")

    def correlation(delay_s: float) -> float:
        moved = flat(np.interp(times - delay_s, motion.times, motion.values))
        size = np.linalg.norm(moved)
        found = float(moved @ values / (size * norm)) if size > 0 else 0.0
        return found if signed else abs(found)

    near = _nearest(correlation, range_s, least)
    delay_s, r = _between(correlation, near)
    error_s = _error(motion, times - delay_s, flat, r)
    if error_s > MAX_ERROR_S:
        raise DelayError(
            f"the delay is {delay_s:.3f} s, uncertain by {error_s:.3f} s: move longer or farther"
        )
    return DelayEstimate(delay_s, r, error_s, len(times))


def _nearest(
    correlation: Callable[[float], float], range_s: tuple[float, float], least: float
) -> float:
    """The delay of the coarse grid that fits best; DelayError if it is not the only one."""
    low_s, high_s = range_s
    coarse = np.arange(low_s, high_s + COARSE_S / 2, COARSE_S)
    heights = np.array([correlation(d) for d in coarse])
    best = int(np.argmax(heights))
    if heights[best] < least:
        raise DelayError(
            f"correlation is {heights[best]:.2f} at best, {least:.2f} is needed: the motion is "
            "not seen in this signal, or something else moves as well"
        )
    if best in (0, len(coarse) - 1):
        raise DelayError(
            f"the best delay is at the end of the range tried ({low_s:g} to {high_s:g} s)"
        )
    inner = heights[1:-1]
    peaks = np.flatnonzero((inner >= heights[:-2]) & (inner > heights[2:])) + 1
    rivals = [i for i in peaks if i != best and heights[best] - heights[i] < AMBIGUOUS]
    if rivals:
        raise DelayError(
            f"delays of {coarse[best]:.2f} s and {coarse[rivals[0]]:.2f} s fit alike; move "
            "slower, or shorten the range"
        )
    return float(coarse[best])


def _between(correlation: Callable[[float], float], near_s: float) -> tuple[float, float]:
    """Delay and correlation at the peak, by a parabola over the fine grid around a delay."""
    fine = np.arange(near_s - COARSE_S, near_s + COARSE_S + FINE_S / 2, FINE_S)
    tops = np.array([correlation(d) for d in fine])
    k = min(max(int(np.argmax(tops)), 1), len(fine) - 2)
    left, middle, right = tops[k - 1 : k + 2]
    curve = left - 2 * middle + right
    shift = 0.5 * (left - right) / curve if curve < 0 else 0.0
    return float(fine[k] + FINE_S * np.clip(shift, -1.0, 1.0)), float(middle)


def _without_trend(times: np.ndarray) -> Flat:
    """A function that takes mean and linear trend out of values at these times."""
    base = np.stack([np.ones_like(times), times - times.mean()])
    base /= np.linalg.norm(base, axis=1, keepdims=True)

    def flat(values: np.ndarray) -> np.ndarray:
        found: np.ndarray = values - base.T @ (base @ values)
        return found

    return flat


def _error(motion: SensorSignal, at: np.ndarray, flat: Flat, r: float) -> float:
    """Standard deviation of the delay: noise over slope of the motion at the samples."""
    step = 1e-3
    x = flat(np.interp(at, motion.times, motion.values))
    later = np.interp(at + step, motion.times, motion.values)
    earlier = np.interp(at - step, motion.times, motion.values)
    slope = flat((later - earlier) / (2 * step))
    noise = max(0.0, 1.0 - r**2) / max(r**2, 1e-9) * float(x @ x) / len(at)
    return float(np.sqrt(noise / max(float(slope @ slope), 1e-300)))
