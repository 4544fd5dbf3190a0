"""Path limiting: commands stay within the limits and on the path, progress only goes on."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pi05_ros.execution.limits import JointLimits
from pi05_ros.execution.motion.path_filter import PathFilter
from pi05_ros.execution.strategies import make_strategy
from pi05_ros.execution.timed_chunk import TimedChunk

LIMITS = JointLimits(("a", "b", "c"), [-1, 0, -2], [2, 1, 2], [1.5, 4, 0.5], [6, 80, 2])
STEP = 50_000_000
PERIODS = [0.002, 0.01, 0.05, 0.1]
INSIDE = st.tuples(st.floats(-1, 2), st.floats(0, 1), st.floats(-2, 2))
WILD = st.tuples(*[st.floats(-1e6, 1e6)] * 3)


def distance(points: np.ndarray, path: np.ndarray) -> np.ndarray:
    """Largest joint distance of each point to the nearest place of straight pieces."""
    best = np.full(len(points), np.inf)
    for begin, end in pairwise(path):
        along = end - begin
        length = float(along @ along)
        share = (
            np.clip((points - begin) @ along / length, 0, 1) if length else np.zeros(len(points))
        )
        best = np.minimum(best, np.abs(begin + share[:, None] * along - points).max(axis=1))
    return best


def assert_within(path: np.ndarray, dt: float, rounding: float = 0.0) -> None:
    """Velocity and acceleration of recorded commands that start at rest at the first.

    `rounding`: of a command, rad, where targets are so large that it shows in accelerations.
    """
    velocity = np.diff(path, axis=0) / dt
    change = np.diff(np.vstack([np.zeros(path.shape[1]), velocity]), axis=0) / dt
    assert (np.abs(velocity) <= LIMITS.velocity * (1 + 1e-6) + 1e-7).all()
    most = LIMITS.acceleration * (1 + 1e-6) + 1e-5 + rounding / dt**2
    assert (np.abs(change) <= most).all()


def drive(filter_, strategy, offers, ticks, dt, brakes=frozenset()):
    """Commands per tick and progress; ``offers``: tick -> chunk."""
    path, progress = [filter_.position.copy()], []
    for k in range(ticks):
        now = round(k * dt * 1e9)
        if k in offers:
            strategy.add(offers[k])
        command = None if k in brakes else filter_.follow(strategy, now)
        path.append(filter_.brake() if command is None else command)
        place = filter_._place
        progress.append(None if place is None else place.s)
    return np.array(path), progress


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(INSIDE, min_size=2, max_size=20),
    dt=st.sampled_from(PERIODS),
    step=st.sampled_from([STEP // 5, STEP, 4 * STEP]),
    repeat=st.integers(1, 4),
    seed=st.integers(0, 2**16),
)
def test_one_chunk_is_followed_on_its_path_within_the_limits(rows, dt, step, repeat, seed):
    points = np.repeat(np.array(rows), repeat, axis=0)
    chunk = TimedChunk(0, step, points)
    motion = PathFilter(LIMITS, dt, 1.25)
    motion.reset(points[0])
    ticks = min(int(chunk.end_ns / 1e9 / dt) + 20, 400)
    brakes = frozenset(np.random.default_rng(seed).integers(0, ticks, seed % 3).tolist())
    path, progress = drive(motion, make_strategy("rtc"), {0: chunk}, ticks, dt, brakes)
    assert_within(path, dt)
    assert distance(path, points).max() <= 1e-6
    steps = np.diff([s for s in progress if s is not None])
    assert (steps >= 0).all()
    assert (steps <= 1.25 * dt + 1e-9).all()


@settings(max_examples=60, deadline=None)
@given(
    start=INSIDE,
    chunks=st.lists(
        st.tuples(st.integers(0, 60), st.lists(st.one_of(INSIDE, WILD), min_size=1, max_size=12)),
        min_size=1,
        max_size=6,
    ),
    dt=st.sampled_from(PERIODS),
    name=st.sampled_from(["rtc", "replace", "ensemble"]),
    brakes=st.frozensets(st.integers(0, 90), max_size=10),
)
@example(
    start=(0, 0, 1),
    chunks=[(0, [(0, 0, 0), (0, 0, 0)]), (27, [(0, 0, -1e6), (0, 0, 0)])],
    dt=0.002,
    name="rtc",
    brakes=frozenset(),
)
def test_no_chunks_make_the_filter_leave_its_limits(start, chunks, dt, name, brakes):
    offers = {
        k: TimedChunk(round(k * dt * 1e9), max(STEP, int(dt * 1e9)), np.array(rows), "p", n)
        for n, (k, rows) in enumerate(sorted(chunks, key=lambda item: item[0]))
    }
    motion = PathFilter(LIMITS, dt, 1.25)
    motion.reset(np.array(start))
    path, _ = drive(motion, make_strategy(name, 2), offers, 100, dt, brakes)
    rounding = 2 * float(np.spacing(1e6))
    assert_within(path, dt, rounding)
    assert (path >= LIMITS.lower - 1e-9).all()
    assert (path <= LIMITS.upper + 1e-9).all()
    while not motion.resting:  # braking always comes to rest
        path = np.vstack([path, motion.brake()])
    assert_within(path, dt, rounding)


def test_it_slows_down_on_the_path_where_joints_alone_would_cut_the_corner():
    rows = np.array([[0, 0, 0], [0.3, 0, 0.5], [0.6, 0, 0], [0.9, 0, 0.5], [0.9, 0, 0.5]])
    chunk = TimedChunk(0, 10 * STEP, rows)
    motion = PathFilter(LIMITS, 0.01)
    motion.reset(rows[0])
    path, progress = drive(motion, make_strategy("rtc"), {0: chunk}, 250, 0.01)
    assert distance(path, rows).max() <= 1e-9
    assert progress[40] < 0.35  # joint c would need 1 rad/s and may do 0.5
    assert_within(path, 0.01)


def test_it_catches_up_with_the_clock():
    s = np.arange(80)[:, None] * 0.05
    rows = np.hstack([0.3 * s, 0 * s, 0 * s])
    rows[10:16, 2] = np.linspace(0, 0.2, 6)  # asks for 0.8 rad/s of a joint that does 0.5
    rows[16:, 2] = 0.2
    motion = PathFilter(LIMITS, 0.02, 1.25)
    motion.reset(rows[0])
    _, progress = drive(motion, make_strategy("rtc"), {0: TimedChunk(0, STEP, rows)}, 190, 0.02)
    lag = np.arange(190) * 0.02 - np.array(progress)
    assert lag[40:60].max() > 0.1
    assert lag[-1] == pytest.approx(0, abs=0.005)


@pytest.mark.parametrize("name", ["rtc", "ensemble"])
def test_a_chunk_that_continues_the_path_is_joined_without_a_change(name):
    s = np.arange(60)[:, None] * 0.05
    rows = np.hstack([0.5 * s, 0.1 * s, 0.2 * np.sin(s)])
    motion, strategy = PathFilter(LIMITS, 0.05), make_strategy(name)
    motion.reset(rows[0])
    offers = {0: TimedChunk(0, STEP, rows[:20], "p", 0)}
    for k in range(7, 40, 7):  # made a little before, as an observation is
        offers[k] = TimedChunk((k - 4) * STEP, STEP, rows[k - 4 : k + 20], "p", k)
    path, _ = drive(motion, strategy, offers, 45, 0.05)
    assert distance(path, rows).max() <= 1e-6
    assert path[30] == pytest.approx(rows[29], abs=2e-3)


def test_a_seam_at_speed_is_smooth_and_ends_on_the_new_path():
    s = np.arange(60)[:, None] * 0.05
    old = np.hstack([0.5 * s, 0 * s, 0 * s])
    new = np.hstack([0.5 * s + 0.05, 0 * s + 0.1, 0.1 - 0.05 * s])
    motion, strategy = PathFilter(LIMITS, 0.02), make_strategy("rtc")
    motion.reset(old[0])
    chunk = TimedChunk(0, STEP, new, "p", 2)
    path, _ = drive(motion, strategy, {0: TimedChunk(0, STEP, old), 40: chunk}, 140, 0.02)
    assert_within(path, 0.02)
    assert distance(path[100:], new).max() <= 1e-6
    assert np.diff(path[:, 0]).min() >= -1e-9
    assert path[120] == pytest.approx(chunk.at(int(119 * 2e7)), abs=0.01)


def test_position_limits_alone_bend_the_path():
    rows = np.array([[0, 0.5, 0], [3, 0.7, 0.4], [0, 0.9, 0.0]])
    motion = PathFilter(LIMITS, 0.02)
    motion.reset(rows[0])
    chunk = TimedChunk(0, 40 * STEP, rows)
    path, _ = drive(motion, make_strategy("rtc"), {0: chunk}, 280, 0.02)
    assert path[:, 0].max() == pytest.approx(2)
    inside = path[:, 0] < 2 - 1e-6
    assert distance(path[inside], rows).max() <= 1e-6
    assert_within(path, 0.02)


@pytest.mark.parametrize("scale", [0.0, 0.25, 1.0])
def test_speed_scale_slows_progress(scale):
    s = np.arange(60)[:, None] * 0.05
    motion = PathFilter(LIMITS, 0.02)
    motion.reset(np.zeros(3))
    motion.speed_scale = scale
    chunk = TimedChunk(0, STEP, np.hstack([0.2 * s, 0 * s, 0 * s]))
    _, progress = drive(motion, make_strategy("rtc"), {0: chunk}, 100, 0.02)
    assert progress[-1] == pytest.approx(scale * 99 * 0.02, abs=0.05)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(INSIDE, min_size=3, max_size=20),
    dt=st.sampled_from(PERIODS),
    step=st.sampled_from([STEP // 5, STEP, 4 * STEP]),
    scale=st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.8, 0.99]),
    seed=st.integers(0, 2**16),
)
@example([(0, 0, 0), (0.5, 0, 0), (0.52, 0, 0), (1, 0, 0)], 0.01, 4 * STEP, 0.5, 0)
def test_the_pace_never_passes_speed_scale(rows, dt, step, scale, seed):
    """Also behind a corner where the path goes on more slowly than the joints can."""
    points = np.array(rows)
    chunk = TimedChunk(0, step, points)
    motion = PathFilter(LIMITS, dt, 1.25)
    motion.reset(points[0])
    motion.speed_scale = scale
    ticks = min(int(chunk.end_ns / 1e9 / dt / max(scale, 0.1)) + 20, 400)
    brakes = frozenset(np.random.default_rng(seed).integers(0, ticks, seed % 3).tolist())
    path, progress = drive(motion, make_strategy("rtc"), {0: chunk}, ticks, dt, brakes)
    assert_within(path, dt)
    assert distance(path, points).max() <= 1e-6
    steps = np.diff([s for s in progress if s is not None])
    assert (steps >= 0).all()
    assert (steps <= scale * dt + 1e-9).all()


@pytest.mark.parametrize("scale", [0.2, 0.6])
def test_a_speed_scale_that_is_lowered_on_the_way_holds_after_braking(scale):
    rng = np.random.default_rng(3)
    rows = np.cumsum(rng.uniform(-0.05, 0.1, (80, 3)), axis=0) % 1.0
    motion = PathFilter(LIMITS, 0.01)
    motion.reset(rows[0])
    strategy = make_strategy("rtc")
    before, _ = drive(motion, strategy, {0: TimedChunk(0, STEP, rows)}, 50, 0.01)
    motion.speed_scale = scale
    commands, progress = [motion.position.copy()], [motion._place.s]
    for k in range(50, 400):
        commands.append(motion.follow(strategy, round(k * 0.01e9)))
        progress.append(motion._place.s)
    assert_within(np.vstack([before, commands[1:]]), 0.01)
    slow = np.diff(progress) <= scale * 0.01 + 1e-9
    assert slow.any()
    assert slow[int(np.argmax(slow)) :].all()


@settings(max_examples=25, deadline=None)
@given(out=st.one_of(st.floats(-1.1, -1.001), st.floats(2.001, 2.1)), place=INSIDE, row=INSIDE)
def test_it_starts_where_the_arm_is_also_outside_the_limits(out, place, row):
    start = (out, *place[1:])
    motion = PathFilter(LIMITS, 0.05)
    motion.reset(np.array(start))
    chunk = TimedChunk(0, STEP, np.tile(row, (60, 1)))
    path, _ = drive(motion, make_strategy("rtc"), {0: chunk}, 60, 0.05)
    assert_within(path, 0.05)
    out = np.maximum(0, np.abs(path[:, 0] - 0.5) - 1.5)
    assert (np.diff(out) <= 1e-9).all()


def test_nothing_is_accepted_that_makes_no_sense():
    with pytest.raises(ValueError, match=r"speed_scale_max is 0\.5; accepted: 1 or more"):
        PathFilter(LIMITS, 0.05, 0.5)
