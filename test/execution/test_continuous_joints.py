"""Continuous joints: shortest angle in states, chunks and comparisons, also across the seam."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pi05_ros.execution.executor import Executor, ExecutorSettings
from pi05_ros.execution.limits import JointLimits, limits_from_urdf
from pi05_ros.execution.strategies import make_strategy
from pi05_ros.execution.timed_chunk import TimedChunk, timed_chunk
from pi05_ros.policy.interface import ActionMeaning

STEP = 50_000_000
URDF = """<robot name="r"><joint name="wrist" type="continuous"><limit velocity="1"/></joint>
<joint name="elbow" type="revolute"><limit lower="-3" upper="3" velocity="1"/></joint></robot>"""
LIMITS = limits_from_urdf(URDF)


def make(strategy="rtc"):
    return Executor(LIMITS, make_strategy(strategy, 8, 0.01), ExecutorSettings())


def wrapped(value):
    return (value + np.pi) % (2 * np.pi) - np.pi


def chunk(start, wrist, number=1):
    rows = np.stack([np.asarray(wrist, float), np.zeros(len(wrist))], axis=1)
    return TimedChunk(start, STEP, rows, "p", number)


def test_states_are_interpolated_across_the_seam():
    executor = make()
    executor.measure(np.array([3.13, 0.0]), 0)
    executor.measure(np.array([-3.13, 0.0]), 2 * STEP)
    assert abs(executor.measured_at(STEP)[0]) == pytest.approx(np.pi, abs=1e-9)
    executor.measure(np.array([3.13, 0.0]), 4 * STEP)
    assert executor.measured[0] == pytest.approx(3.13)


@pytest.mark.parametrize("strategy", ["replace", "ensemble", "rtc"])
@pytest.mark.parametrize("turn", [-2, 0, 1])
def test_a_chunk_is_put_onto_the_commanded_turn(strategy, turn):
    executor = make(strategy)
    path = []
    for k in range(60):
        now = k * STEP
        executor.measure(np.array([wrapped(3.0 + 0.02 * k), 0.0]), now)
        if k % 5 == 0:
            target = wrapped(3.0 + 0.02 * (k + np.arange(10))) + turn * 2 * np.pi
            executor.offer(chunk(now, target, k + 1), now)
        path.append(executor.tick(now).positions[0])
    assert path == pytest.approx(3.0 + 0.02 * np.arange(60), abs=0.1)
    assert np.abs(np.diff(path)).max() < 0.06


def test_an_arm_past_the_seam_was_not_moved_and_is_started_on_its_turn():
    executor = make()
    executor.measure(np.array([3.1, 0.0]), 0)
    executor.offer(chunk(0, np.linspace(3.1, 3.4, 20)), 0)
    place = 3.1
    for k in range(60):
        now = k * STEP
        command = executor.tick(now)
        place = place if command.positions is None else command.positions[0]
        executor.measure(np.array([wrapped(place), 0.0]), now)
    assert command.reason == "no fresh chunk"
    executor.stop("operator")
    executor.tick(60 * STEP)
    executor.resume()
    now = 61 * STEP
    executor.measure(np.array([wrapped(place), 0.0]), now)
    executor.offer(chunk(now, np.full(20, wrapped(place)), 2), now)
    assert executor.tick(now).positions[0] == pytest.approx(place)


@pytest.mark.parametrize(("counts", "first"), [(True, 0.5), (False, 6.7)])
def test_a_driver_that_counts_turns_anew_is_taken_at_its_word(counts, first):
    """One that reports within a turn never says on which turn the joint is: the commands' one."""
    executor = make()
    shown = (lambda x: x) if counts else wrapped
    at = 0.0
    for k in range(140):
        now = k * STEP
        executor.measure(np.array([shown(at), 0.0]), now)
        if k % 5 == 0:
            executor.offer(chunk(now, np.minimum(0.05 * (k + np.arange(10)), 6.7), k + 1), now)
        command = executor.tick(now)
        at = command.positions[0]
    assert at == pytest.approx(6.7, abs=1e-6)
    for k in range(140, 200):  # the driver is silent
        command = executor.tick(k * STEP)
    assert command.positions is None
    new = 0.5 if counts else wrapped(6.7)
    for k in range(200, 230):
        now = k * STEP
        executor.measure(np.array([new, 0.0]), now)
        executor.offer(chunk(now, np.full(10, new), k + 1), now)
        command = executor.tick(now)
        assert command.positions is None or command.positions[0] == pytest.approx(first, abs=1e-6)
    assert command.positions is not None


def test_large_steps_of_deltas_are_meant():
    options = {
        "joints": LIMITS.names, "names": LIMITS.names, "horizon": 2, "step_ns": STEP,
        "start_ns": 0, "meaning": [ActionMeaning.DELTA, ActionMeaning.ABSOLUTE],
        "reference": np.array([3.0, 0.0]), "data": [4.0, 0.0, 4.0, 0.0],
    }  # fmt: skip
    got = timed_chunk(**options).on_turn_of(LIMITS, np.array([3.0, 0.0]), 0)
    assert np.diff(got.positions[:, 0]) == pytest.approx([4.0])


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(-3.1, 3.1), min_size=2, max_size=12),
    st.floats(-20, 20),
    st.integers(-3, 3),
)
def test_unwrapping_changes_whole_turns_only_and_takes_the_short_way(steps, near, turn):
    angles = np.cumsum([near, *steps])
    sent = wrapped(angles) + turn * 2 * np.pi
    got = chunk(0, sent).on_turn_of(LIMITS, np.array([near, 0.0]), 0).positions[:, 0]
    assert got == pytest.approx(angles, abs=1e-6)


def test_bounded_joints_are_left_as_they_are():
    limits = JointLimits(("a",), [-7], [7], [1], [10])
    rows = np.array([[3.1], [-3.1]])
    assert TimedChunk(0, STEP, rows).on_turn_of(limits, np.zeros(1), 0).positions is rows
    assert limits.difference(np.array([3.1]), np.array([-3.1])) == pytest.approx(6.2)
