"""Every state of the executor against every stop and hand-over: largest v, a, j of the commands.

python -m pi05_ros.bench.stop_matrix [--jerk-limiting path|ruckig|off]
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from pi05_ros.execution.executor import Executor, ExecutorSettings
from pi05_ros.execution.interlocks import InterlockSettings
from pi05_ros.execution.limits import JointLimits
from pi05_ros.execution.strategies import make_strategy
from pi05_ros.execution.timed_chunk import ChunkRefusedError, TimedChunk
from pi05_ros.tables import markdown_table

DT, STEP_NS = 0.02, 50_000_000
JERK_TIME_S = 0.1
BEFORE, AFTER = 60, 80
PHASES = (0, 5, 12)
"""Control periods by which the stop comes later, so that it meets the motion everywhere."""
SETTLING = {"joining a chunk": 0, "holding": 70}
"""Control periods in a state before the stop, where not 20."""
NAMES = ("a", "b", "c")


@dataclass
class Rig:
    """An executor, a policy that goes to and fro, and an arm that does as it is told."""

    core: Executor
    place: np.ndarray = field(default_factory=lambda: np.array([0.3, 0.0, 0.1]))
    k: int = 0
    shift: float = 0.0
    chunks: bool = True
    seen: bool = True
    beating: bool = True
    stuck: bool = False
    person: np.ndarray | None = None
    path: list[np.ndarray] = field(default_factory=list)

    @property
    def now_ns(self) -> int:
        """Time of this period."""
        return round(self.k * DT * 1e9)

    def wish(self, s: np.ndarray) -> np.ndarray:
        """Where the policy wants the arm to be ``[k, 3]`` at times ``[k]``."""
        s = s + self.shift
        rows = [0.8 * np.sin(2 * s) + 0.3, 0.9 * np.cos(3 * s) - 0.9, 0.4 * np.sin(s) + 0.1]
        return np.stack(rows, axis=-1)

    def run(self, periods: int) -> None:
        """Some control periods."""
        for _ in range(periods):
            core, now = self.core, self.now_ns
            if self.seen and not self.stuck:
                core.measure(self.place, now)
            elif self.seen and core.measured is not None:
                core.measure(core.measured, now)
            if self.beating:
                core.interlocks.beat(now)
            if self.person is not None:
                core.teleop.offer(NAMES, self.person.tolist(), now)
            if self.chunks and self.k % 5 == 0:
                s = now / 1e9 + np.arange(20) * 0.05
                with contextlib.suppress(ChunkRefusedError):
                    core.offer(TimedChunk(now, STEP_NS, self.wish(s), "p", self.k), now)
            command = core.tick(now)
            if command.positions is not None:
                self.place = command.positions
            self.path.append(self.place)
            self.k += 1


def _no(rig: Rig) -> None:
    """Nothing."""


def _set(**values: object) -> Callable[[Rig], None]:
    """Set attributes of the rig."""

    def change(rig: Rig) -> None:
        for name, value in values.items():
            setattr(rig, name, value)

    return change


def _lock(**values: object) -> Callable[[Rig], None]:
    """Set attributes of the interlocks."""

    def change(rig: Rig) -> None:
        for name, value in values.items():
            setattr(rig.core.interlocks, name, value)

    return change


def _speed(value: float) -> Callable[[Rig], None]:
    def change(rig: Rig) -> None:
        rig.core.speed_scale = value

    return change


def _hold(value: bool) -> Callable[[Rig], None]:
    def change(rig: Rig) -> None:
        rig.core.hold_chunks = value

    return change


def _held(value: bool) -> Callable[[Rig], None]:
    def change(rig: Rig) -> None:
        rig.core.teleop.held = value

    return change


def _back(rig: Rig) -> None:
    """End every stop, and give the arm back to the chunks."""
    rig.core.resume()
    rig.core.interlocks.halted, rig.core.interlocks.enabled = False, True
    rig.core.teleop.held, rig.person, rig.chunks = False, None, True
    rig.core.hold_chunks = False


STATES: dict[str, Callable[[Rig], None]] = {
    "waiting": _set(chunks=False),
    "following": _no,
    "following slowly": _speed(0.3),
    "joining a chunk": _set(shift=0.9),
    "holding": _set(chunks=False),
    "stopped": lambda rig: rig.core.stop("operator"),
    "halted": _lock(halted=True),
    "fault": _lock(fault="made up"),
    "teleoperated": _set(person=np.array([1.2, -1.0, 0.4])),
    "taken over": _held(True),
}
EVENTS: dict[str, Callable[[Rig], None]] = {
    "stop": lambda rig: rig.core.stop("operator"),
    "halt": _lock(halted=True),
    "disable": _lock(enabled=False),
    "heartbeat": _set(beating=False),
    "stale joints": _set(seen=False),
    "doubt": lambda rig: rig.core.distrust("two publishers"),
    "tracking": _set(stuck=True),
    "chunks end": _set(chunks=False),
    "speed 0": _speed(0.0),
    "chunks held": _hold(True),
    "new wish": _set(shift=2.1),
    "teleop": _set(person=np.array([-0.8, -1.5, -0.5])),
    "take over": _held(True),
    "resume, hand back": _back,
}


def limits_of(jerk_limiting: str) -> JointLimits:
    """Limits of the three joints."""
    acceleration = np.array([6.0, 20.0, 4.0])
    jerk = None if jerk_limiting == "off" else acceleration / JERK_TIME_S
    return JointLimits(
        NAMES, np.array([-1.0, -2.0, -1.0]), np.array([2.0, 2.0, 1.0]),
        np.array([1.5, 3.0, 0.8]), acceleration, jerk,
    )  # fmt: skip


def shares(state: str, event: str, jerk_limiting: str, phase: int) -> np.ndarray:
    """Largest v, a, j ``[3]`` as shares of the limits since the stop; j 0 without a limit."""
    limits = limits_of(jerk_limiting)
    settings = ExecutorSettings(
        period_s=DT,
        jerk_limiting=jerk_limiting,
        tracking_error_time_s=0.3,
        interlocks=InterlockSettings(heartbeat_timeout_s=0.2),
    )
    rig = Rig(Executor(limits, make_strategy("rtc"), settings))
    start = rig.place
    if state == "waiting":
        STATES[state](rig)
        rig.run(BEFORE + phase)
    else:
        rig.run(BEFORE)
        STATES[state](rig)
        # A chunk is joined within some periods; others settle, holding once the last chunk ends.
        rig.run(SETTLING.get(state, 20) + phase)
    begin = len(rig.path)
    EVENTS[event](rig)
    rig.run(AFTER)
    rest = np.zeros((1, 3))
    velocity = np.diff(np.vstack([start, *rig.path]), axis=0) / DT
    acceleration = np.diff(np.vstack([rest, velocity]), axis=0) / DT
    jerk = np.diff(np.vstack([rest, acceleration]), axis=0) / DT
    return np.array(
        [
            float((np.abs(values[begin:]) / most).max())
            for values, most in (
                (velocity, limits.velocity),
                (acceleration, limits.acceleration),
                (jerk, limits.jerk_limits),
            )
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the matrix; exit code 1 if a command exceeded a limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--jerk-limiting", choices=("off", "path", "ruckig"), default="off", help="default off"
    )
    way = parser.parse_args(arguments).jerk_limiting
    rows: list[list[str]] = []
    most = np.zeros(3)
    for state in STATES:
        row = [state]
        for event in EVENTS:
            found = np.max([shares(state, event, way, phase) for phase in PHASES], axis=0)
            most = np.maximum(most, found)
            shown = found[: 2 if way == "off" else 3]
            row.append(" / ".join(f"{value:.2f}" for value in shown))
        rows.append(row)
    print(markdown_table(["state", *EVENTS], rows))
    v, a, j = most
    print(f"\nlargest: v {v:.6f}, a {a:.6f}, j {j:.6f} of the limit")
    return int(bool((most > 1 + 1e-6).any()))


if __name__ == "__main__":
    sys.exit(main())
