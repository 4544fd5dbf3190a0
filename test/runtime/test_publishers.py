"""Counting the messages of several publishers of one topic, and telling that they take turns."""

from hypothesis import given
from hypothesis import strategies as st

from pi05_ros.runtime.inputs.publishers import TURNS_NS, Publishers

STEP_NS = 10_000_000


@given(st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.integers(1, 40)), max_size=60))
def test_each_publisher_is_counted_by_its_own_numbers(taken):
    publishers, numbers, counted = Publishers(), {}, 0
    for index, (publisher, ahead) in enumerate(taken):
        first = publisher not in numbers
        numbers[publisher] = numbers.get(publisher, 500) + ahead
        counted += 1 if first else ahead
        found = publishers.observe(publisher, numbers[publisher], index * STEP_NS)
        assert found == (1 if first else ahead)


def test_numbers_that_are_none_count_one_message():
    publishers = Publishers()
    assert [publishers.observe(b"", number, 0) for number in (0, 0, 7, 5, 90_000)] == [
        1,
        1,
        7,
        1,
        1,
    ]


@given(st.lists(st.sampled_from([b"a", b"b", b"c"]), min_size=1, max_size=40))
def test_turns_are_told_if_one_comes_back_after_another(order):
    publishers, now_ns = Publishers(), 0
    for number, publisher in enumerate(order):
        now_ns += STEP_NS
        publishers.observe(publisher, number, now_ns)
    runs = [p for i, p in enumerate(order) if i == 0 or order[i - 1] != p]
    assert publishers.take_turns(now_ns) == (len(runs) > len(set(runs)))
    assert not publishers.take_turns(now_ns + TURNS_NS)


def test_many_publishers_are_not_remembered_for_ever():
    publishers = Publishers()
    for number in range(100):
        publishers.observe(str(number).encode(), number, number)
    assert publishers.observe(b"0", 1, 100) == 1
    assert not publishers.take_turns(100)
