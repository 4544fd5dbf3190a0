"""What `pi05 calibrate-delay` is asked to measure: its options; this imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pi05_ros.request_options import option

if TYPE_CHECKING:
    from pi05_ros.execution.calibration.sine_motion import SineMotion

EARLIEST_S = -0.1
"""Delays below 0 are looked for as well: clocks may disagree, and that has to show."""


@dataclass(frozen=True)
class DelayRequest:
    """What to measure."""

    joint: str = option("", "joint that makes a small sine", required=True)
    enable: bool = option(False, "it may move; without this nothing is moved")
    dry_run: bool = option(False, "say what would be done, and move nothing")
    amplitude: float = option(0.05, "rad or m")
    frequency_hz: float = option(0.5, "Hz", "--frequency")
    cycles: int = option(6, "periods of the sine")
    max_delay_s: float = option(0.6, "longest delay, s", "--max-delay")
    cameras: tuple[str, ...] = option(
        (),
        "topic of images that show the motion (.../compressed too); may be repeated",
        "--camera",
        action="append",
        metavar="TOPIC",
    )
    executor: str = option("pi05_executor", "name of the executor node")
    namespace: str = option("", "of the robot's nodes")
    use_sim_time: bool = option(False, "follow /clock")
    out: Path | None = option(None, "parameter file to write; default: print it")

    def check(self) -> SineMotion:
        """The motion; SineRefusedError for what cannot be told from it."""
        from pi05_ros.execution.calibration.sine_motion import SineMotion, SineRefusedError

        motion = SineMotion(self.amplitude, self.frequency_hz, self.cycles)
        span_s = self.max_delay_s - EARLIEST_S
        most_hz = 0.45 / span_s  # half a period of an image, whose sign means nothing
        if not 0.05 <= self.max_delay_s <= 2.0 or self.frequency_hz > most_hz:
            raise SineRefusedError(
                f"max-delay is {self.max_delay_s:g} s and frequency {self.frequency_hz:g} Hz; "
                f"accepted: up to {most_hz:.2f} Hz, delays of 0.05 to 2 s"
            )
        return motion
