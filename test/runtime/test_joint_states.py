"""Joint states of several publishers, in parts, late, wrong, and in disagreement."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pi05_ros.runtime.inputs.conversion import ConversionError
from pi05_ros.runtime.inputs.joint_states import NS, JointStateMerger
from pi05_ros.runtime.inputs.observation_buffer import Inputs, Limits, Snapshot

MS = 1_000_000
ARM = ("a", "b")
ALL = ("a", "b", "grip")


def send(merger, names, positions, ms, **more):
    return merger.offer(list(names), list(positions), stamp_ns=1_000_000_000 + ms * MS, **more)


def test_joints_that_came_before_a_reset_are_not_said_to_be_unknown():
    merger = JointStateMerger(ALL)
    send(merger, ALL, [1, 2, 3], 0)
    merger.reset(keep_on_change=False)
    send(merger, ARM, [1, 2], 5)
    assert merger.describe_missing() == "no position has come of grip"


def test_parts_are_merged_and_the_oldest_joint_counts():
    merger = JointStateMerger(ALL)
    assert send(merger, ARM, [1, 2], 0) is None
    assert merger.missing == ("grip",)
    assert merger.describe_missing() == "joint states lack grip; they have a, b"
    merged = send(merger, ["grip", "spare"], [3, 9], 5)
    np.testing.assert_array_equal(merged.positions, [1, 2, 3])
    assert merged.stamp_ns == merged.stamps_ns[0] == NS
    merged = send(merger, ARM, [1.01, 2.01], 10)
    assert merged.stamp_ns == merged.stamps_ns[2] == NS + 5 * MS
    assert merger.oldest() == ("grip", NS + 5 * MS)


def test_a_whole_message_is_taken_as_it_is():
    merger = JointStateMerger(ALL)
    merged = merger.offer(["grip", "b", "x", "a"], [3, 2, 9, 1], [0.3, 0.2, 9, 0.1], stamp_ns=NS)
    np.testing.assert_array_equal(merged.positions, [1, 2, 3])
    np.testing.assert_array_equal(merged.velocities, [0.1, 0.2, 0.3])
    assert merged.stamps_ns == (NS, NS, NS)


def test_messages_without_a_wanted_joint_are_no_fault():
    merger = JointStateMerger(ALL)
    assert send(merger, ["left_wheel"], [], 0) is None  # of velocities, wrong lengths, anything
    assert send(merger, [], [1.0], 0) is None
    assert send(merger, ["w", "w"], [math.nan, 1], 0) is None
    assert merger.counts["without_wanted_joint"] == 3
    assert send(merger, ALL, [], 0) is None
    assert "1 messages hold no positions" in merger.describe_missing()
    assert not merger.faults


@pytest.mark.parametrize(
    ("names", "positions", "code"),
    [
        (["a", "b", "a"], [1, 2, 3], "joint_duplicate"),
        (["a", "b"], [1], "joint_count"),
        (["a"], ["x"], "malformed"),
        (["a"], 5, "malformed"),
    ],
)
def test_messages_that_cannot_be_read(names, positions, code):
    with pytest.raises(ConversionError) as caught:
        JointStateMerger(ALL).offer(names, positions, stamp_ns=NS)
    assert caught.value.code == code


def test_a_joint_that_is_not_finite_is_left_to_its_own_publisher():
    merger = JointStateMerger(ALL)
    send(merger, ["grip"], [3], 0)
    merged = send(merger, ALL, [1, 2, math.nan], 5)  # a broadcaster that does not know the gripper
    np.testing.assert_array_equal(merged.positions, [1, 2, 3])
    assert merged.stamp_ns == NS
    assert merger.faults["joint_not_finite"] == 1
    assert "grip" in merger.last_fault


def test_older_values_are_dropped_once_per_message():
    merger = JointStateMerger(ALL)
    send(merger, ALL, [1, 2, 3], 10)
    assert send(merger, ALL, [1, 2, 3], 5) is None
    assert merger.faults["out_of_order"] == 1


def test_a_stamp_from_the_future_does_not_lock_a_joint():
    merger = JointStateMerger(ALL)
    send(merger, ALL, [1, 2, 3], 9000, now_ns=NS)
    assert send(merger, ALL, [1, 2, 3], 10, now_ns=NS + 10 * MS).stamp_ns == NS + 10 * MS


def test_joints_published_on_change():
    merger = JointStateMerger(ALL, on_change=["grip"])
    send(merger, ["grip"], [3], 0)
    merged = send(merger, ARM, [1, 2], 7000)
    assert merged.stamp_ns == NS + 7000 * MS
    merger.reset()
    assert merger.missing == ARM  # it will not speak again before it changes
    merger.reset(keep_on_change=False)
    assert merger.missing == ALL
    with pytest.raises(ValueError, match="no such joint: x; joints are a, b, grip"):
        JointStateMerger(ALL, on_change=["x"])
    with pytest.raises(ValueError, match="at least one"):
        JointStateMerger(ALL, on_change=ALL)


# -- disagreement -----------------------------------------------------------------------


def alternate(merger, values, step_ms=2, publishers=None, until=200):
    now = NS
    for index, ms in enumerate(range(0, until, step_ms)):
        now = NS + ms * MS
        who = publishers[index % len(publishers)] if publishers else None
        value = values[index % len(values)]
        merger.offer(["a"], [value], stamp_ns=now, publisher=who)
    return now


@pytest.mark.parametrize("values", [(0.0, 0.8), (0.0,) + (0.8,) * 6, (0.8, 0.0, 0.0)])
@pytest.mark.parametrize("believe_after_ns", [0, 100 * MS])
def test_publishers_that_disagree_are_found_without_ids(values, believe_after_ns):
    merger = JointStateMerger(["a"], believe_after_ns=believe_after_ns)
    now = alternate(merger, values)
    (conflict,) = merger.conflicts(now)
    assert conflict.joint == "a"
    assert sorted(conflict.values) == pytest.approx([0.0, 0.8])
    assert not merger.conflicts(now + 2 * NS)


def test_publishers_with_ids_are_found_at_the_first_message_and_named():
    merger = JointStateMerger(["a"])
    now = alternate(merger, (0.0, 0.8), publishers=("/arm", "/fake"), until=4)
    (conflict,) = merger.conflicts(now)
    assert "/arm and /fake" in str(conflict)


def test_one_that_lags_behind_in_stamps_is_found_too():
    merger = JointStateMerger(["a"])
    for ms in range(0, 200, 10):
        send(merger, ["a"], [0.0], ms, now_ns=NS + ms * MS)
        send(merger, ["a"], [0.8], ms - 5, now_ns=NS + ms * MS)
    assert merger.conflicts(NS + 200 * MS)


def test_held_values_are_not_followed_to_a_false_place():
    merger = JointStateMerger(["a"], believe_after_ns=100 * MS)
    for ms in range(0, 200, 20):
        assert send(merger, ["a"], [0.01], ms) is not None
        for late in range(1, 7):
            assert send(merger, ["a"], [0.8], ms + late) is None
    assert merger.merged().positions[0] == 0.01
    # The arm was really moved: its old place is silent.
    for ms in range(200, 400, 20):
        send(merger, ["a"], [0.8], ms)
    assert merger.merged().positions[0] == 0.8


@pytest.mark.parametrize("believe_after_ns", [0, 100 * MS])
def test_a_single_move_elsewhere_is_no_conflict(believe_after_ns):
    merger = JointStateMerger(["a"], believe_after_ns=believe_after_ns)
    for index in range(400):
        value = 0.0 if index < 200 else 1.5  # a simulation that starts a new episode
        send(merger, ["a"], [value], 10 * index)
        assert not merger.conflicts(NS + 10 * index * MS)
    assert merger.merged().positions[0] == 1.5


@pytest.mark.parametrize(
    ("amplitude", "hz", "rate"),
    [(1.5, 1.0, 100), (0.3, 4.0, 50), (0.01, 20.0, 500), (90.0, 0.5, 50), (50.0, 1.0, 30)],
)
def test_motion_is_no_conflict(amplitude, hz, rate):
    merger = JointStateMerger(["a"])
    for index in range(5 * rate):
        seconds = index / rate
        value = amplitude * math.sin(2 * math.pi * hz * seconds)
        merger.offer(["a"], [value], stamp_ns=NS + int(seconds * NS))
        assert not merger.conflicts(NS + int(seconds * NS))


def test_the_seam_of_a_turn_is_no_jump():
    merger = JointStateMerger(["a"])
    now = alternate(merger, (3.14, -3.14))
    assert not merger.jumps
    assert not merger.conflicts(now)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from(["a", "b", "grip", "wheel"]), max_size=5),
            st.lists(st.floats(), max_size=5),
            st.lists(st.floats(), max_size=5),
            st.integers(-5, 50),
            st.sampled_from([None, "p", "q"]),
        ),
        max_size=30,
    )
)
def test_any_stream_gives_finite_states_and_nothing_but_conversion_errors(stream):
    merger = JointStateMerger(ALL, on_change=["grip"])
    newest = -(10**18)
    for names, positions, velocities, ms, publisher in stream:
        try:
            merged = merger.offer(
                names,
                positions,
                velocities,
                stamp_ns=NS + ms * MS,
                now_ns=NS + 50 * MS,
                publisher=publisher,
            )
        except ConversionError:
            continue
        if merged is not None:
            assert np.isfinite(merged.positions.astype(np.float32)).all()
            assert merged.stamp_ns == min(merged.stamps_ns[:2]) >= newest
            newest = merged.stamp_ns


# -- in the buffers ---------------------------------------------------------------------


class Message:
    def __init__(self, names, positions):
        self.name, self.position, self.velocity = list(names), list(positions), []


def buffers(**limits):
    values = {
        "max_age": {"joint_states": 100 * MS},
        "max_skew": 100 * MS,
        "future": 50 * MS,
        "dead": 2000 * MS,
        **limits,
    }
    merger = JointStateMerger(ALL, on_change=["grip"] if "on_change" in limits else ())
    return Inputs(["joint_states"], Limits(**values), merger)


def feed(inputs, names, positions, ms, stamp_ms=None):
    stamp = NS + (ms if stamp_ms is None else stamp_ms) * MS
    now = NS + ms * MS
    return inputs.offer_joints("joint_states", Message(names, positions), stamp, now, now)


def problem(inputs, ms):
    (found,) = inputs.take(NS + ms * MS, NS + ms * MS)
    return found


def test_a_part_that_falls_silent_is_named():
    inputs = buffers()
    feed(inputs, ["grip"], [3], 0)
    feed(inputs, ARM, [1, 2], 0)
    assert isinstance(inputs.take(NS, NS), Snapshot)
    for ms in range(0, 500, 10):
        feed(inputs, ARM, [1, 2], ms)
    found = problem(inputs, 495)
    assert found.code == "stale"
    assert "grip lags 490 ms behind other joints" in found.text
    assert "on_change_joints" in found.text


def test_on_change_has_its_own_limit():
    inputs = buffers(on_change=300 * MS)
    feed(inputs, ["grip"], [3], 0)
    for ms in range(0, 500, 10):
        feed(inputs, ARM, [1, 2], ms)
        if ms <= 300:
            snapshot = inputs.take(NS + ms * MS, NS + ms * MS)
            assert snapshot.stamp_ns == NS + ms * MS
    assert "grip was published 495 ms ago (limit 300 ms" in problem(inputs, 495).text


def test_wheels_alone_do_not_keep_the_source_alive():
    inputs = buffers()
    feed(inputs, ["wheel"], [1], 0)
    assert problem(inputs, 0).text == "joint states lack a, b, grip; they have wheel"
    feed(inputs, ALL, [1, 2, 3], 0)
    for ms in range(0, 3000, 10):
        feed(inputs, ["wheel"], [1], ms)
    assert problem(inputs, 2990).code == "dead"
    source = inputs.sources["joint_states"]
    assert source.unrelated == 301
    assert not source.dropped


def test_disagreement_refuses():
    inputs = buffers()
    for ms in range(0, 100, 2):
        feed(inputs, ALL, [0.0 if ms % 4 else 1.0, 2, 3], ms)
    found = problem(inputs, 98)
    assert found.code == "conflict"
    assert "disagree about a" in found.text


def test_zero_stamps_and_jumps_of_the_clock():
    inputs = buffers()
    assert not feed(inputs, ALL, [1, 2, 3], 0, stamp_ms=-1000)
    assert inputs.sources["joint_states"].dropped["zero_stamp"] == 1
    assert not feed(inputs, ["wheel"], [1], 0, stamp_ms=-1000)
    assert inputs.sources["joint_states"].dropped["zero_stamp"] == 1
    feed(inputs, ALL, [1, 2, 3], 500)
    assert inputs.observe_clock(NS)
    assert inputs.joints.missing == ALL


@pytest.mark.parametrize("apart", [0.8, 2 * math.pi])
def test_joints_that_are_known_neither_step_by_a_turn_nor_speak_degrees(apart):
    merger = JointStateMerger(
        ["a"], max_speeds=[1.0], continuous=[False], believe_after_ns=400 * MS
    )
    merger.offer(["a"], [0.0], stamp_ns=0)
    merger.offer(["a"], [400.0], stamp_ns=MS)  # a wild value makes no degrees of the joint
    for k in range(1, 40):
        merger.offer(["a"], [apart if k % 4 else 0.0], stamp_ns=10 * k * MS)
        assert merger.merged().positions[0] == 0
    assert merger.conflicts(400 * MS)
    turning = JointStateMerger(["a"], max_speeds=[1.0], continuous=[True])
    turning.offer(["a"], [3.14], stamp_ns=0)
    turning.offer(["a"], [-3.14], stamp_ns=10 * MS)
    assert not turning.jumps
