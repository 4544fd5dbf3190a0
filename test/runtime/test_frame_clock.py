"""When the next frame of a camera is expected."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pi05_ros.runtime.inputs.frame_clock import FrameClock

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
