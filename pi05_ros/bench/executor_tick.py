"""CPU time of one control period of the executor, chunks that do not fit together included.

pi05 bench executor, or python -m pi05_ros.bench.executor_tick
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import numpy as np

from pi05_ros.bench.space_arms import SphereArms
from pi05_ros.execution.executor import Executor, ExecutorSettings
from pi05_ros.execution.limits import JointLimits
from pi05_ros.execution.strategies import STRATEGIES, make_strategy
from pi05_ros.execution.timed_chunk import TimedChunk
from pi05_ros.tables import markdown_table

if TYPE_CHECKING:
    from pi05_ros.execution.space.space_guard import SpaceGuard

JOINTS = 7
JERK_TIME_S = 0.1
RATES_HZ = (20, 125, 500)
CHUNK_EVERY_S, STEP_NS, HORIZON = 0.1, 50_000_000, 50
LATE_NS = 50_000_000
SECONDS = 8
NOISE_RAD = 0.01


def tick_times_ms(
    strategy: str, rate_hz: int, seed: int = 0, space: bool = False, jerk_limiting: str = "off"
) -> np.ndarray:
    """Milliseconds of CPU time of every tick ``[n]``; sines with noise that exceed the limits.

    With ``space`` the arm is one of spheres beside a wall and a box, see `space_arms`, and keeps
    clear of them and of itself.
    """
    acceleration = np.full(JOINTS, 8.0)
    limits = JointLimits(
        SphereArms(JOINTS).names,
        np.full(JOINTS, -3.0),
        np.full(JOINTS, 3.0),
        np.full(JOINTS, 2.0),
        acceleration,
        None if jerk_limiting == "off" else acceleration / JERK_TIME_S,
    )
    settings = ExecutorSettings(period_s=1 / rate_hz, jerk_limiting=jerk_limiting)
    guard = _guard(rate_hz) if space else None
    executor = Executor(limits, make_strategy(strategy), settings, guard)
    rng = np.random.default_rng(seed)
    phase = rng.uniform(0, 6, JOINTS)
    place = 1.5 * np.sin(phase)
    times, sent = [], 0
    for k in range(rate_hz * SECONDS):
        now = round(k / rate_hz * 1e9)
        executor.measure(place, now)
        if now >= sent * CHUNK_EVERY_S * 1e9:
            sent += 1
            s = (now - LATE_NS + np.arange(HORIZON)[:, None] * STEP_NS) / 1e9
            rows = 1.5 * np.sin(1.5 * s + phase) + rng.normal(0, NOISE_RAD, JOINTS)
            executor.offer(TimedChunk(now - LATE_NS, STEP_NS, rows, "bench", sent), now)
        began = time.thread_time()
        command = executor.tick(now)
        times.append((time.thread_time() - began) * 1e3)
        if command.positions is not None:
            place = command.positions
    return np.array(times)


def _guard(rate_hz: int) -> SpaceGuard:
    from pi05_ros.execution.space.scene import Scene
    from pi05_ros.execution.space.space_file import space_from_mapping
    from pi05_ros.execution.space.space_guard import SpaceGuard

    arm = SphereArms(JOINTS)
    spec = space_from_mapping(arm.space())
    scene = Scene(arm.urdf(), arm.names, spec)
    return SpaceGuard(scene, spec, range(JOINTS), 1 / rate_hz)


def main() -> int:
    """Print a table of all strategies and rates."""
    rows = []
    ways = [("velocity and acceleration", "off", False), ("the same, and space", "off", True)]
    ways += [("ruckig", "ruckig", False), ("jerk on the path", "path", False)]
    for text, jerk_limiting, space in ways:
        for strategy in STRATEGIES if jerk_limiting == "off" else STRATEGIES[:1]:
            for rate in RATES_HZ:
                times = tick_times_ms(strategy, rate, space=space, jerk_limiting=jerk_limiting)
                half, most = np.percentile(times, [50, 99])
                row = [text, strategy, rate, f"{half:.2f}", f"{most:.2f}", f"{times.max():.2f}"]
                rows.append(row)
    print(markdown_table(["limits", "strategy", "Hz", "p50 ms", "p99 ms", "max ms"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
