"""The executor with `limiting: joint` commands what release 0.1.0 (commit 45242c3) commanded.

The golden file was recorded with that commit by `stream` below, every fifth period: 600 periods
of chunks at uneven times, some late, some refused, targets beyond the limits, gaps, stops, and a
policy that replaces another. 0.1.0 had no other way of limiting; `path` is meant to differ. So do,
on purpose, starts outside the limits, a clock that jumps and joint states that jump: no such thing
is in the stream.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest

from pi05_ros.execution.executor import Executor
from pi05_ros.execution.executor_settings import ExecutorSettings
from pi05_ros.execution.limits import JointLimits
from pi05_ros.execution.strategies import STRATEGIES, make_strategy
from pi05_ros.execution.timed_chunk import ChunkRefusedError, TimedChunk

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "executor_release_0_1_0.npz"
PERIOD_NS, TICKS, KEPT = 50_000_000, 600, 5
LIMITS = JointLimits(
    ("a", "b", "c"), np.full(3, -1.5), np.full(3, 1.5), np.array([1.0, 2.0, 0.5]),
    np.array([5.0, 8.0, 2.0]),
)  # fmt: skip
EVENTS = {200: "stop", 260: "resume", 420: "stop", 440: "resume"}


def stream(core: Executor) -> tuple[np.ndarray, list[str]]:
    """Commands [TICKS, 3] (NaN: none) and modes."""
    rng = np.random.default_rng(11)
    measured = np.array([0.2, -0.4, 0.5])
    found, modes = np.full((TICKS, 3), np.nan), []
    goal, number, due = np.array([0.2, -0.4, 0.5]), 0, 5
    for tick in range(TICKS):
        now_ns = 10**12 + tick * PERIOD_NS
        core.measure(measured, now_ns)
        if EVENTS.get(tick) == "stop":
            core.stop("asked")
        elif EVENTS.get(tick) == "resume":
            core.resume()
        if tick >= due:
            number += 1
            due = tick + int(rng.integers(2, 9)) + (30 if number % 20 == 0 else 0)
            start, goal = goal, goal + rng.normal(0, 0.5, 3)
            goal = np.clip(goal, -1.6, 1.6)
            rows = np.linspace(start, goal, 16) + rng.normal(0, 0.01, (16, 3))
            late = 2 * 10**9 if number % 17 == 0 else int(rng.integers(0, 120)) * 10**6
            policy = "a" if number < 45 else "b"
            with contextlib.suppress(ChunkRefusedError):
                core.offer(TimedChunk(now_ns - late, PERIOD_NS, rows, policy, number), now_ns)
        command = core.tick(now_ns)
        modes.append(command.mode)
        if command.positions is not None:
            found[tick] = command.positions
            measured = np.array(command.positions)
    return found, modes


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_commands_are_those_of_release_0_1_0(strategy: str) -> None:
    golden = np.load(GOLDEN)
    settings = ExecutorSettings(period_s=0.05, limiting="joint")
    found, modes = stream(Executor(LIMITS, make_strategy(strategy, 8, 0.1), settings))
    np.testing.assert_allclose(found[::KEPT], golden[strategy], rtol=0, atol=1e-12)
    assert modes[::KEPT] == list(golden[f"{strategy}_modes"])


def test_the_golden_file_sees_a_difference() -> None:
    golden = np.load(GOLDEN)
    settings = ExecutorSettings(period_s=0.05, limiting="path")
    found, _ = stream(Executor(LIMITS, make_strategy("rtc", 8, 0.1), settings))
    assert np.nanmax(np.abs(found[::KEPT] - golden["rtc"])) > 0.01
