"""A small sine of one joint that starts and ends at rest, within a share of its limits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pi05_ros.errors import Pi05Error

SHARE = 0.5
"""Share of the velocity and acceleration limits that the sine may need."""
MARGIN = 0.02
"""Share of the joint's range that it keeps from both ends."""
LOWEST_HZ, HIGHEST_HZ = 0.1, 2.0
SAMPLES_HZ = 1000.0


class SineRefusedError(Pi05Error, ValueError):
    """A sine that the joint's limits or the search for the delay do not allow."""


@dataclass(frozen=True)
class SineMotion:
    """Offset of one joint over time.

    Attributes:
        amplitude: rad or m.
        frequency_hz: of the sine.
        cycles: periods in all; the first and the last one swell and fade.

    """

    amplitude: float
    frequency_hz: float
    cycles: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.amplitude) and self.amplitude > 0):
            raise SineRefusedError(f"amplitude is {self.amplitude}; accepted: above 0")
        if not LOWEST_HZ <= self.frequency_hz <= HIGHEST_HZ:
            raise SineRefusedError(
                f"frequency is {self.frequency_hz} Hz; accepted: {LOWEST_HZ} to {HIGHEST_HZ}"
            )
        if not 3 <= self.cycles <= 100:
            raise SineRefusedError(f"cycles is {self.cycles}; accepted: 3 to 100")

    @property
    def duration_s(self) -> float:
        """Time from rest to rest."""
        return self.cycles / self.frequency_hz

    def at(self, times_s: np.ndarray) -> np.ndarray:
        """Offset at times since the start ``[k]``; 0 before and after."""
        period = 1.0 / self.frequency_hz
        t = np.clip(times_s, 0.0, self.duration_s)
        edge = np.clip(np.minimum(t, self.duration_s - t) / period, 0.0, 1.0)
        swell = 0.5 - 0.5 * np.cos(math.pi * edge)
        found: np.ndarray = self.amplitude * swell * np.sin(2 * math.pi * self.frequency_hz * t)
        return found

    @property
    def peak_velocity(self) -> float:
        """Largest velocity, per second."""
        return float(np.abs(np.gradient(self._dense(), 1 / SAMPLES_HZ)).max())

    @property
    def peak_acceleration(self) -> float:
        """Largest acceleration, per second squared."""
        velocity = np.gradient(self._dense(), 1 / SAMPLES_HZ)
        return float(np.abs(np.gradient(velocity, 1 / SAMPLES_HZ)).max())

    def _dense(self) -> np.ndarray:
        return self.at(np.arange(0.0, self.duration_s, 1 / SAMPLES_HZ))

    def check(
        self, start: float, lower: float, upper: float, velocity: float, acceleration: float
    ) -> None:
        """Refuse a sine that comes near a limit.

        Args:
            start: position about which it goes.
            lower, upper, velocity, acceleration: limits of the joint.

        Raises:
            SineRefusedError: names the limit and the amplitude that would be accepted.

        """
        edge = MARGIN * (upper - lower)
        room = min(start - lower, upper - start) - edge
        fastest = SHARE * velocity * self.amplitude / self.peak_velocity
        strongest = SHARE * acceleration * self.amplitude / self.peak_acceleration
        most = min(room, fastest, strongest)
        if self.amplitude <= most:
            return
        if room <= 0:
            raise SineRefusedError(
                f"the joint is at {start:.3f}, too near an end of its range ({lower:.3f} to "
                f"{upper:.3f}); move it away first"
            )
        cause = {room: "position", fastest: "velocity", strongest: "acceleration"}[most]
        raise SineRefusedError(
            f"amplitude is {self.amplitude:g} at {self.frequency_hz:g} Hz; accepted: up to "
            f"{most:.4f}, for the {cause} limit of the joint"
        )
