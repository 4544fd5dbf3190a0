"""When the next frame of a camera is expected."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pi05_ros.runtime.inputs.frame_clock import (
    LEAST_MARGIN_NS,
    LOOK_AGAIN_NS,
    LOOK_FOR_LATE_NS,
    MOST_MARGIN_NS,
    FrameClock,
    wake_ns,
)

MS = 1_000_000


def test_period_and_phase_from_two_messages_with_gaps_between():
    clock = FrameClock()
    assert clock.next_after(0) is None
    assert clock.observe(1000 * MS, 10) == 1
    assert clock.next_after(1001 * MS) is None
    assert clock.observe(1100 * MS, 13) == 3
    assert clock.next_after(1101 * MS) == pytest.approx(1133.3 * MS, abs=MS)
    assert clock.next_after(1140 * MS) == pytest.approx(1166.7 * MS, abs=MS)


def test_without_sequence_numbers_nothing_is_predicted():
    clock = FrameClock()
    for number in range(5):
        assert clock.observe(number * 33 * MS + 1, 0) == 1
    assert clock.next_after(200 * MS) is None


def test_a_publisher_that_stopped_or_started_again_is_not_waited_for():
    clock = FrameClock()
    clock.observe(0, 1)
    clock.observe(10 * MS, 2)
    assert clock.next_after(11 * MS) == 20 * MS
    assert clock.next_after(1000 * MS) is None
    assert clock.observe(2000 * MS, 1) == 1  # a new process counts from the start


@given(
    st.integers(1, 500),
    st.integers(0, 10**12),
    st.lists(st.integers(1, 9), min_size=1, max_size=9),
)
def test_the_prediction_is_the_next_multiple_of_the_period(period_ms, start, steps):
    clock = FrameClock()
    sequence = 0
    clock.observe(start, 1)
    for step in steps:
        sequence += step
        assert clock.observe(start + sequence * period_ms * MS, 1 + sequence) == step
    last = start + sequence * period_ms * MS
    now = last + period_ms * MS // 3
    assert clock.next_after(now) == pytest.approx(last + period_ms * MS, abs=1000)


def test_margin_follows_the_lateness_of_messages():
    clock = FrameClock()
    for number in range(1, 20):
        clock.observe(number * 10 * MS, number)
    assert clock.margin_ns == LEAST_MARGIN_NS
    margins = []
    for number in range(20, 60):  # every other one is 2 ms late
        clock.observe(number * 10 * MS + number % 2 * 2 * MS, number)
        margins.append(clock.margin_ns)
    assert LEAST_MARGIN_NS + MS // 4 < margins[-1] < LEAST_MARGIN_NS + 2 * MS
    for number in range(60, 100):
        clock.observe(number * 10 * MS, number)
    assert clock.margin_ns < LEAST_MARGIN_NS + MS // 4
    assert clock.margin_ns <= LEAST_MARGIN_NS + MOST_MARGIN_NS


def test_a_late_frame_hardly_moves_the_next_prediction():
    clock = FrameClock()
    for number in range(1, 20):
        clock.observe(number * 10 * MS, number)
    clock.observe(203 * MS, 20)
    assert clock.next_after(203 * MS) == pytest.approx(210 * MS, abs=1.5 * MS)


def test_a_frame_that_did_not_come_is_given_up_after_half_a_period():
    clock = FrameClock()
    clock.observe(10 * MS, 1)
    clock.observe(20 * MS, 2)
    assert clock.next_after(21 * MS, 34 * MS) == 30 * MS
    assert clock.next_after(21 * MS, 36 * MS) == 40 * MS


def test_looks_come_when_frames_should_be_there():
    now, over = 100 * MS, 108 * MS
    assert wake_ns([105 * MS, 103 * MS], now, over) == 103 * MS
    assert wake_ns([None, 105 * MS], now, over) == now + LOOK_AGAIN_NS
    assert wake_ns([99 * MS], now, over) == now + LOOK_FOR_LATE_NS
    assert wake_ns([None], over - 1, over) == over


def test_what_comes_after_the_wait_is_not_waited_for():
    now, over = 100 * MS, 108 * MS
    assert wake_ns([], now, over) is None
    assert wake_ns([109 * MS], now, over) is None
    assert wake_ns([109 * MS, 104 * MS], now, over) == 104 * MS
    assert wake_ns([None, 104 * MS], over, over) is None


@given(
    st.lists(st.none() | st.integers(0, 300 * MS), max_size=4), st.integers(0, 200 * MS),
    st.integers(0, 40 * MS),
)  # fmt: skip
def test_the_wait_ends_and_every_look_is_later(expected, now, wait):
    over = now + wait
    looks = 0
    while (again := wake_ns(expected, now, over)) is not None:
        assert now < again <= over
        now, looks = again, looks + 1
    assert looks <= wait // min(LOOK_AGAIN_NS, LOOK_FOR_LATE_NS) + len(expected) + 1
