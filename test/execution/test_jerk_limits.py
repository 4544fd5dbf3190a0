"""Jerk limits: no recorded command exceeds them, along the path or with Ruckig."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pi05_ros.errors import InvalidValueError
from pi05_ros.execution.executor import Executor, ExecutorSettings
from pi05_ros.execution.limits import JointLimits, limits_from_mapping, merge_limits
from pi05_ros.execution.motion.jerk_stop import brake, stop_moves
from pi05_ros.execution.motion.make_filter import make_filter
from pi05_ros.execution.motion.preview import preview
from pi05_ros.execution.strategies import make_strategy
from pi05_ros.execution.timed_chunk import TimedChunk

LIMITS = JointLimits(
    ("a", "b", "c"), [-1, 0, -2], [2, 1, 2], [1.5, 4, 0.5], [6, 80, 2], [60, 1600, np.inf]
)
STEP = 50_000_000
PERIODS = [0.01, 0.05]
INSIDE = st.tuples(st.floats(-1, 2), st.floats(0, 1), st.floats(-2, 2))
WILD = st.tuples(*[st.floats(-1e6, 1e6)] * 3)


def a_filter(jerk_limiting, dt, limits=LIMITS, **options):
    return make_filter(
        limits, ExecutorSettings(period_s=dt, jerk_limiting=jerk_limiting, **options)
    )


def assert_within(path, dt, limits=LIMITS):
    """Differences of recorded commands that start at rest at the first one."""
    rest = np.zeros((1, path.shape[1]))
    velocity = np.diff(path, axis=0) / dt
    acceleration = np.diff(np.vstack([rest, velocity]), axis=0) / dt
    jerk = np.diff(np.vstack([rest, acceleration]), axis=0) / dt
    for values, most in (
        (velocity, limits.velocity),
        (acceleration, limits.acceleration),
        (jerk, limits.jerk_limits),
    ):
        assert (np.abs(values) <= most * (1 + 1e-6) + 1e-5).all()
    assert (path >= np.minimum(limits.lower, path[0]) - 1e-9).all()
    assert (path <= np.maximum(limits.upper, path[0]) + 1e-9).all()


def drive(motion, strategy, offers, ticks, dt, brakes=frozenset()):
    path, progress = [motion.position.copy()], []
    for k in range(ticks):
        now = round(k * dt * 1e9)
        if k in offers:
            strategy.add(offers[k])
        command = None if k in brakes else motion.follow(strategy, now)
        path.append(motion.brake() if command is None else command)
        progress.append(now / 1e9 - motion.lag_s(now))
    return np.array(path), progress


def distance(points, path):
    best = np.full(len(points), np.inf)
    for begin, end in pairwise(path):
        along = end - begin
        length = float(along @ along)
        share = (
            np.clip((points - begin) @ along / length, 0, 1) if length else np.zeros(len(points))
        )
        best = np.minimum(best, np.abs(begin + share[:, None] * along - points).max(axis=1))
    return best


@settings(max_examples=100, deadline=None)
@given(
    move=st.floats(0, 1), change=st.floats(-0.1, 0.1), limit=st.floats(0.02, 1),
    jerk=st.floats(0.005, 1),
)  # fmt: skip
def test_a_stop_ends_at_rest_and_its_changes_are_limited(move, change, limit, jerk):
    change = min(max(change, -limit), limit)
    moves = [move, *stop_moves(move, change, limit, jerk), 0.0]
    changes = [change, *np.diff(moves)]
    assert moves[-2] == 0.0
    assert np.abs(changes).max() <= limit + 1e-12
    assert np.abs(np.diff(changes)).max() <= jerk + 1e-12
    if move >= 0.3 + 0.1**2 / jerk:  # it never passes 0 where there is room
        assert min(moves) >= -1e-12
    assert brake(0.0, 0.0, limit, jerk) == 0.0


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(INSIDE, min_size=2, max_size=8),
    dt=st.sampled_from(PERIODS),
    step=st.sampled_from([STEP, 4 * STEP]),
    seed=st.integers(0, 2**16),
)
@example([(0.5, 0, 0), (0.5, 0.5, 0)], 0.01, 4 * STEP, 0)  # catches up while it speeds up
def test_the_path_is_kept_within_the_limits(rows, dt, step, seed):
    points = np.array(rows)
    motion = a_filter("path", dt)
    motion.reset(points[0])
    chunk = TimedChunk(0, step, points)
    ticks = min(int(chunk.end_ns / 1e9 / dt) + 20, 150)
    brakes = frozenset(np.random.default_rng(seed).integers(0, ticks, seed % 3).tolist())
    path, progress = drive(motion, make_strategy("rtc"), {0: chunk}, ticks, dt, brakes)
    assert_within(path, dt)
    assert distance(path, points).max() <= 1e-6
    followed = np.diff([s for k, s in enumerate(progress) if k * dt < chunk.end_ns / 1e9])
    assert (followed >= -1e-9).all()
    assert (followed <= 1.25 * dt + 1e-9).all()


@settings(max_examples=25, deadline=None)
@given(
    start=INSIDE,
    chunks=st.lists(
        st.tuples(st.integers(0, 40), st.lists(st.one_of(INSIDE, WILD), min_size=1, max_size=8)),
        min_size=1,
        max_size=5,
    ),
    dt=st.sampled_from(PERIODS),
    name=st.sampled_from(["rtc", "ensemble"]),
    way=st.sampled_from(["path", "ruckig", "ruckig joint"]),
    brakes=st.frozensets(st.integers(0, 60), max_size=10),
)
def test_no_chunks_make_it_leave_the_limits(start, chunks, dt, name, way, brakes):
    way, _, joint = way.partition(" ")
    if way == "ruckig":
        pytest.importorskip("ruckig")
    motion = a_filter(way, dt, limiting=joint or "path")
    motion.reset(np.array(start))
    offers = {
        k: TimedChunk(round(k * dt * 1e9), STEP, np.array(rows), "p", n)
        for n, (k, rows) in enumerate(sorted(chunks, key=lambda item: item[0]))
    }
    path, _ = drive(motion, make_strategy(name, 2), offers, 70, dt, brakes)
    for _ in range(2000):
        if motion.resting:
            break
        path = np.vstack([path, motion.brake()])
    assert motion.resting
    assert_within(path, dt)


@settings(max_examples=25, deadline=None)
@given(
    script=st.lists(
        st.tuples(st.sampled_from("fsb"), st.integers(1, 25), WILD | INSIDE), max_size=8
    ),
    way=st.sampled_from(["path", "ruckig"]),
    dt=st.sampled_from(PERIODS),
)
def test_hand_overs_keep_the_limits(script, way, dt):
    if way == "ruckig":
        pytest.importorskip("ruckig")
    motion, strategy, k = a_filter(way, dt), make_strategy("rtc"), 0
    motion.reset(np.array([0.2, 0.5, 0.1]))
    path = [motion.position.copy()]
    for what, ticks, value in script:
        strategy.add(TimedChunk(round(k * dt * 1e9), STEP, np.linspace(path[-1], value, 30)))
        for _ in range(ticks):
            command = motion.follow(strategy, round(k * dt * 1e9)) if what == "f" else None
            if what == "s":
                command = motion.steer(np.array(value))
            path.append(motion.brake() if command is None else command)
            k += 1
    assert_within(np.array(path), dt)


@pytest.mark.parametrize("way", ["path", "ruckig"])
def test_it_gets_to_the_end_of_the_path_and_steers_to_targets(way):
    if way == "ruckig":
        pytest.importorskip("ruckig")
    motion, strategy = a_filter(way, 0.02), make_strategy("rtc")
    motion.reset(np.array([0.0, 0.2, 0.0]))
    end = np.array([0.8, 0.6, 0.3])
    rows = np.vstack([np.linspace(motion.position, end, 40), np.tile(end, (60, 1))])
    path, _ = drive(motion, strategy, {0: TimedChunk(0, STEP, rows)}, 240, 0.02)
    assert path[-1] == pytest.approx(end, abs=1e-6)
    for _ in range(200):
        path = np.vstack([path, motion.steer(np.array([-5.0, 0.1, 0.5]))])
    assert path[-1] == pytest.approx([-1, 0.1, 0.5], abs=1e-3)
    assert_within(path, 0.02)


def test_ruckig_stays_near_the_path():
    pytest.importorskip("ruckig")
    s = np.arange(80)[:, None] * 0.05
    rows = np.hstack([0.5 * np.sin(s), 0.5 + 0.3 * np.sin(2 * s), 0.2 * np.sin(s)])
    motion = a_filter("ruckig", 0.01, replace(LIMITS, jerk=LIMITS.acceleration / 0.05))
    motion.reset(rows[0])
    path, _ = drive(motion, make_strategy("rtc"), {0: TimedChunk(0, STEP, rows)}, 350, 0.01)
    assert distance(path, rows).max() < 0.01
    assert np.abs(path[101:] - TimedChunk(0, STEP, rows).at(3_490_000_000)).min() < 0.01


@pytest.mark.parametrize("way", ["path", "ruckig"])
def test_a_preview_does_not_change_what_comes(way):
    if way == "ruckig":
        pytest.importorskip("ruckig")
    rows = np.linspace([0, 0.2, 0], [1, 0.8, 0.4], 60)
    made = []
    for previewed in (False, True):
        motion, strategy = a_filter(way, 0.02), make_strategy("rtc")
        motion.reset(rows[0])
        strategy.add(TimedChunk(0, STEP, rows))
        for k in range(40):
            made.append(motion.follow(strategy, k * 20_000_000))
            if previewed:
                points, _ = preview(motion, strategy, k * 20_000_000, 0.02, 0.2)
                assert_within(np.vstack([points[-1], points[-1]]), 0.02)
    assert (np.array(made[:40]) == np.array(made[40:])).all()


def test_without_jerk_limits_nothing_changes_and_contradictions_are_refused(monkeypatch):
    free = replace(LIMITS, jerk=np.full(3, np.inf))
    assert type(a_filter("path", 0.05, free)).__name__ == "PathFilter"
    assert type(a_filter("off", 0.05)).__name__ == "PathFilter"
    with pytest.raises(InvalidValueError, match=r"max_jerk in limits_file, or jerk_time_s"):
        a_filter("ruckig", 0.05, free)
    with pytest.raises(InvalidValueError, match="limiting joint keeps no jerk limits"):
        a_filter("path", 0.05, limiting="joint")
    with pytest.raises(InvalidValueError, match="accepted: path, ruckig, off"):
        a_filter("smooth", 0.05)
    monkeypatch.setitem(sys.modules, "ruckig", None)
    with pytest.raises(InvalidValueError, match="pip install ruckig"):
        a_filter("ruckig", 0.05)
    assert Executor(LIMITS, make_strategy("rtc")).filter is not None


def test_jerk_limits_come_from_the_file_or_from_a_time():
    entry = {"min_position": -1, "max_position": 1, "max_velocity": 2, "max_acceleration": 4}
    file = limits_from_mapping({"joint_limits": {"a": {**entry, "max_jerk": 7}, "b": entry}})
    merged = merge_limits([("f", file)], None, jerk_time_s=0.1)
    assert merged.limits.jerk_limits.tolist() == [7, 40]
    assert merged.sources["b"]["max_jerk"] == "jerk_time_s"
    assert np.isinf(merge_limits([("f", file)], None).limits.jerk_limits[1])
