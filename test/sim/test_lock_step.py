"""Simulated time that waits: what it waits for, and what it does not wait for."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from pi05_ros.sim.arm.lock_step import CAMERA_WAIT_NS, LockStep

MS = 1_000_000
STEP = 10 * MS


def lock(rate_hz: float = 4.0, wait_s: float = 5.0) -> LockStep:
    return LockStep(round(1e9 / rate_hz) if rate_hz else 0, STEP, wait_s)


def run(held: LockStep, now_ns: int, mono_s: float = 0.0, most: int = 1000) -> int:
    """Step until it holds; the time reached."""
    for _ in range(most):
        if not held.may_step(now_ns, mono_s):
            return now_ns
        now_ns += STEP
    return now_ns


def test_nothing_is_waited_for_before_it_has_come_once() -> None:
    assert run(lock(), 0) == 1000 * STEP


def test_time_holds_for_the_next_command_and_goes_on_with_it() -> None:
    held = lock()
    held.command(100 * MS, 50 * MS)
    assert run(held, 100 * MS) == 150 * MS
    held.command(150 * MS, 50 * MS)
    assert run(held, 150 * MS) == 200 * MS


def test_time_holds_for_the_next_chunk_a_camera_wait_after_it_is_due() -> None:
    held = lock()
    held.chunk(1000 * MS, 1000 * MS)
    due = 1250 * MS + CAMERA_WAIT_NS + 2 * STEP
    assert due <= run(held, 1000 * MS) < due + STEP
    held.chunk(1250 * MS, due)
    assert run(held, due) >= due + 250 * MS


def test_a_late_chunk_lets_time_go_on_to_the_next_inference() -> None:
    held = lock()
    held.chunk(1000 * MS, 1900 * MS)  # those of 1250, 1500 and 1750 were missed
    due = 2000 * MS + CAMERA_WAIT_NS + 2 * STEP
    assert due <= run(held, 1900 * MS) < due + STEP


def test_who_stays_away_is_waited_for_once() -> None:
    held = lock(wait_s=5.0)
    held.command(0, 50 * MS)
    assert run(held, 0) == 50 * MS
    assert not held.may_step(50 * MS, 4.9)
    assert held.may_step(50 * MS, 5.0)
    assert held.given_up == 1
    assert run(held, 60 * MS, 5.0) == 60 * MS + 1000 * STEP
    held.command(500 * MS, 50 * MS)  # back again
    assert run(held, 500 * MS, 6.0) == 550 * MS


def test_an_executor_that_waits_itself_and_a_new_episode_are_not_waited_for() -> None:
    held = lock()
    held.command(0, 50 * MS)
    held.following(False)
    held.command(0, 50 * MS)  # on its way while the executor stopped
    assert run(held, 0) == 1000 * STEP
    held.following(True)
    held.command(0, 50 * MS)
    held.chunk(0, 0)
    held.restart()
    assert run(held, 0) == 1000 * STEP


def test_without_a_chunk_rate_chunks_are_not_waited_for() -> None:
    held = lock(rate_hz=0)
    held.chunk(0, 0)
    assert run(held, 0) == 1000 * STEP


@given(
    delays=st.lists(st.integers(0, 30), min_size=5, max_size=40),
    rate_hz=st.sampled_from([1.0, 4.0, 7.3, 10.0]),
)
def test_however_slow_the_policy_it_misses_no_inference(delays: list[int], rate_hz: float) -> None:
    """The policy begins within the camera wait of its tick and takes any real time."""
    held, period = lock(rate_hz, wait_s=1e9), round(1e9 / rate_hz)
    now, mono, begun, ready_at = 0, 0.0, [], None
    waits = iter([0, *delays])  # nothing waits for the first
    while len(begun) < len(delays):
        tick = len(begun) * period
        if ready_at is None and now >= tick + CAMERA_WAIT_NS // 2:
            ready_at, stamp = mono + next(waits), now
        if ready_at is not None and mono >= ready_at:
            begun.append(stamp)
            held.chunk(stamp, now)
            ready_at = None
        going = held.may_step(now, mono)
        mono += 0.01 if going else 0.5
        now += STEP if going else 0
    gaps = [b - a for a, b in itertools.pairwise(begun)]
    assert held.given_up == 0
    assert max(gaps) <= period + 2 * STEP


@given(
    first=st.floats(0.0, 20.0),
    delays=st.lists(st.integers(0, 30), min_size=3, max_size=10),
    rate_hz=st.sampled_from([1.0, 4.0, 7.3, 10.0]),
)
def test_however_long_the_first_inference_takes_the_next_is_waited_for(
    first: float, delays: list[int], rate_hz: float
) -> None:
    """Time runs during the first; ticks in which the policy is busy begin nothing."""
    held, period = lock(rate_hz, wait_s=1e9), round(1e9 / rate_hz)
    now, mono, stamp, ready_at, tick = 0, 0.0, 0, first, 0
    begun: list[int] = []
    while len(begun) <= len(delays):
        if mono >= ready_at and stamp not in begun:
            begun.append(stamp)
            held.chunk(stamp, now)
        if now // period > tick:
            tick = now // period
            if stamp in begun:
                stamp, ready_at = now, mono + delays[(len(begun) - 1) % len(delays)]
        going = held.may_step(now, mono)
        mono += 0.01 if going else 0.5
        now += STEP if going else 0
        assert mono < 2000.0, "it stands still"
    gaps = [b - a for a, b in itertools.pairwise(begun[1:])]
    # A chunk that comes just as another inference begins may cost one.
    assert sum(gap > period + 2 * STEP for gap in gaps) <= 1
    assert all(gap <= 2 * period + 2 * STEP for gap in gaps)
