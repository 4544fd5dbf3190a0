"""CPU time of one control period of the executor, chunks that do not fit together included.

python -m pi05_ros.bench.executor_tick
"""

from __future__ import annotations

import sys
import time

import numpy as np

from pi05_ros.execution.executor import Executor, ExecutorSettings
from pi05_ros.execution.limits import JointLimits
from pi05_ros.execution.strategies import STRATEGIES, make_strategy
from pi05_ros.execution.timed_chunk import TimedChunk
from pi05_ros.tables import markdown_table

JOINTS = 7
RATES_HZ = (20, 125, 500)
CHUNK_EVERY_S, STEP_NS, HORIZON = 0.1, 50_000_000, 50
LATE_NS = 50_000_000
SECONDS = 8
NOISE_RAD = 0.01


def tick_times_ms(strategy: str, rate_hz: int, seed: int = 0) -> np.ndarray:
    """Milliseconds of CPU time of every tick ``[n]``; sines with noise that exceed the limits."""
    limits = JointLimits(
        tuple(f"joint{i}" for i in range(JOINTS)),
        np.full(JOINTS, -3.0),
        np.full(JOINTS, 3.0),
        np.full(JOINTS, 2.0),
        np.full(JOINTS, 8.0),
    )
    executor = Executor(limits, make_strategy(strategy), ExecutorSettings(period_s=1 / rate_hz))
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


def main() -> int:
    """Print a table of all strategies and rates."""
    rows = []
    for strategy in STRATEGIES:
        for rate in RATES_HZ:
            times = tick_times_ms(strategy, rate)
            half, most = np.percentile(times, [50, 99])
            rows.append([strategy, rate, f"{half:.2f}", f"{most:.2f}", f"{times.max():.2f}"])
    print(markdown_table(["strategy", "Hz", "p50 ms", "p99 ms", "max ms"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
