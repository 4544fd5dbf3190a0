"""What the samples of a small motion say about delays, and the parameters for both nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pi05_ros.execution.calibration.delay_estimate import (
    DelayError,
    DelayEstimate,
    SensorSignal,
    estimate_delay,
)
from pi05_ros.execution.calibration.image_motion import motion_patterns
from pi05_ros.execution.calibration.sine_motion import SineMotion
from pi05_ros.strict_yaml import dump_yaml

LEAST_JOINT, LEAST_CAMERA = 0.95, 0.8
CAMERAS_AGREE_S = 0.02


@dataclass
class Samples:
    """Values of one source with two times each, both in seconds on the node's clock."""

    stamped: list[float] = field(default_factory=list)
    arrived: list[float] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)

    def add(self, stamp_s: float, now_s: float, value: Any) -> None:
        """Take a sample; a stamp that does not rise is not used."""
        if not self.stamped or stamp_s > self.stamped[-1]:
            self.stamped.append(stamp_s)
            self.arrived.append(now_s)
            self.values.append(value)


@dataclass(frozen=True)
class MeasuredDelays:
    """Results: by header stamps and by arrival; cameras behind the joint states, by topic."""

    command: DelayEstimate
    command_arrival: DelayEstimate
    cameras: dict[str, tuple[DelayEstimate, DelayEstimate]]
    already_s: float

    @property
    def command_delay_s(self) -> float:
        """What the executor has to be told: what it makes up for already counts as well."""
        return self.command.delay_s + self.already_s


def compare(
    motion: SineMotion,
    start_s: float,
    joint: str,
    states: Samples,
    images: Mapping[str, Samples],
    reach: tuple[float, float],
    already_s: float = 0.0,
) -> MeasuredDelays:
    """Delays of the joint states behind the motion, and of the images behind the joint states.

    Args:
        motion: that chunks said, from ``start_s`` on.
        start_s: time on the node's clock.
        joint: its name, for errors.
        states: positions of the joint.
        images: of each topic, small gray images.
        reach: delays that are looked for.
        already_s: command delay that the executor makes up for.

    Raises:
        DelayError: names the joint or topic and says why there is no result.

    """
    steps = np.arange(-0.5, motion.duration_s + 1.0, 0.002)
    moved = SensorSignal(start_s + steps, motion.at(steps))
    command = [
        _estimate(moved, times, states.values, reach, LEAST_JOINT, joint)
        for times in (states.stamped, states.arrived)
    ]
    joints = SensorSignal(np.array(states.stamped), np.array(states.values))
    window = (start_s, start_s + motion.duration_s)
    cameras = {
        topic: _camera(joints, samples, window, reach, topic) for topic, samples in images.items()
    }
    return MeasuredDelays(command[0], command[1], cameras, already_s)


def _estimate(
    motion: SensorSignal, times: list[float], values: list[float],
    reach: tuple[float, float], least: float, what: str,
) -> DelayEstimate:  # fmt: skip
    try:
        response = SensorSignal(np.array(times), np.array(values, dtype=np.float64))
        return estimate_delay(motion, response, range_s=reach, least=least)
    except DelayError as error:
        raise DelayError(f"{what}: {error}") from error


def _camera(
    joints: SensorSignal, samples: Samples, window: tuple[float, float],
    reach: tuple[float, float], topic: str,
) -> tuple[DelayEstimate, DelayEstimate]:  # fmt: skip
    """Delay of the images by stamp and by arrival, by the pattern that moves as the joint does."""
    if not samples.values:
        raise DelayError(f"{topic}: no image came")
    inside = (joints.times >= window[0] - 0.5) & (joints.times <= window[1] + 0.5)
    moved = SensorSignal(joints.times[inside], joints.values[inside])
    stamped = np.array(samples.stamped)
    used = (stamped >= moved.times[0]) & (stamped <= moved.times[-1] + reach[1])
    images = np.array(samples.values)[used]
    patterns = motion_patterns(images) if used.sum() > 1 else []
    best: tuple[DelayEstimate, np.ndarray] | None = None
    problem = "nothing changes in the images"
    for pattern in patterns:
        try:
            found = estimate_delay(
                moved, SensorSignal(stamped[used], pattern),
                range_s=reach, least=LEAST_CAMERA, signed=False,
            )  # fmt: skip
        except DelayError as error:
            problem = str(error) if best is None and problem[0] == "n" else problem
            continue
        if best is None or found.correlation > best[0].correlation:
            best = found, pattern
    if best is None:
        raise DelayError(f"{topic}: {problem}")
    arrived = np.array(samples.arrived)[used]
    try:
        late = estimate_delay(
            moved, SensorSignal(arrived, best[1]), range_s=reach, least=LEAST_CAMERA, signed=False
        )
    except DelayError as error:
        raise DelayError(f"{topic}, by arrival: {error}") from error
    return best[0], late


def parameters_yaml(result: MeasuredDelays) -> str:
    """The result as a parameter file for both nodes, in any namespace.

    Raises:
        DelayError: cameras that disagree, or a delay below 0.

    """
    delays = {topic: found[0].delay_s for topic, found in result.cameras.items()}
    if delays and max(delays.values()) - min(delays.values()) > CAMERAS_AGREE_S:
        shown = ", ".join(f"{topic} {delay:.3f} s" for topic, delay in delays.items())
        raise DelayError(
            f"the cameras' delays differ by more than {CAMERAS_AGREE_S:g} s ({shown}), and one "
            "parameter holds for all: measure them one by one and set it yourself"
        )
    for name, value in {**delays, "command": result.command_delay_s}.items():
        if value < -0.005:
            raise DelayError(f"{name}: the delay is {value:.3f} s, below 0: do the clocks agree?")
    command = {"command_delay_s": round(max(0.0, result.command_delay_s), 4)}
    policy: dict[str, float] = dict(command)
    if delays:
        policy["camera_delay_s"] = round(max(0.0, float(np.mean(list(delays.values())))), 4)
    return dump_yaml(
        {
            "/**/pi05_executor": {"ros__parameters": command},
            "/**/pi05_policy": {"ros__parameters": policy},
        }
    )
