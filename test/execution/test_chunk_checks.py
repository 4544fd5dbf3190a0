"""What is checked about chunks: clock, length, units, fields, and numbers that look wrong."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from pi05_ros.execution.arrival.chunk_watch import STUCK_AFTER_CHUNKS
from pi05_ros.execution.arrival.wire import read_chunk
from pi05_ros.execution.executor import FOLLOWING, Executor, ExecutorSettings
from pi05_ros.execution.limits import JointLimits
from pi05_ros.execution.strategies import make_strategy
from pi05_ros.execution.timed_chunk import ChunkRefusedError, TimedChunk, timed_chunk
from pi05_ros.policy.interface import ActionMeaning, ActionUnit

GRIPPER = "gripper_open_0_closed_1"
LIMITS = JointLimits(
    ("a", "slide", "hand"), [-1, 0, 0], [2, 0.5, 1], [1.5] * 3, [6] * 3,
    units=("", "metre", GRIPPER),
)  # fmt: skip
STEP = 50_000_000
MS = 1_000_000
SECOND = 1_000_000_000
HOME = np.array([0.0, 0.1, 0.0])


def make(**options):
    return Executor(LIMITS, make_strategy("rtc"), ExecutorSettings(**options))


def chunk(start, number=1, horizon=20, step=STEP, published=0, rows=None):
    table = np.tile(HOME, (horizon, 1)) if rows is None else np.asarray(rows, float)
    return TimedChunk(start, step, table, "p", number, published)


def follow(executor, now, number):
    executor.measure(HOME, now)
    executor.offer(chunk(now, number), now)
    return executor.tick(now).mode


@pytest.mark.parametrize("back", [1, 20 * MS, 50 * MS])
def test_a_clock_that_is_slewed_back_is_no_jump(back):
    executor = make()
    assert follow(executor, SECOND, 1) == FOLLOWING
    assert executor.tick(SECOND - back).mode == FOLLOWING
    assert executor.clock_jumps == 0
    assert executor.measured is not None


@pytest.mark.parametrize("back", [150 * MS, 300 * MS, 3700 * SECOND])
def test_chunks_from_before_a_jump_back_are_refused(back):
    executor = make()
    start = 10_000 * SECOND
    assert follow(executor, start, 1) == FOLLOWING
    assert follow(executor, start + 3600 * SECOND, 2) == FOLLOWING
    now = start + 3600 * SECOND - back
    executor.measure(HOME, now)
    late = chunk(now - 100 * MS, 3, published=now + back - 10 * MS)  # on its way meanwhile
    with pytest.raises(ChunkRefusedError, match="before the clock jumped back"):
        executor.offer(late, now)
    assert executor.clock_jumps == 1
    for k in range(1, 40):
        executor.measure(HOME, now + k * STEP)
        if k % 4 == 0:
            executor.offer(chunk(now + k * STEP, k, published=now + k * STEP), now + k * STEP)
        command = executor.tick(now + k * STEP)
    assert command.mode == FOLLOWING


def test_a_chunk_is_not_followed_for_hours():
    executor = make()
    with pytest.raises(ChunkRefusedError, match=r"lasts 100000\.0 s .* up to 10 s") as error:
        executor.offer(chunk(0, horizon=10_000, step=10 * SECOND), 0)
    assert error.value.reason == "duration"
    make(max_chunk_s=60.0).offer(chunk(0, horizon=600, step=STEP), 0)


def test_a_refusal_is_a_reason_until_a_chunk_is_accepted_or_it_is_old():
    executor = make()
    executor.measure(HOME, 0)
    executor.tick(0)
    executor.refuse(ChunkRefusedError("names", "wrong names"))
    assert "last refused: wrong names" in executor.tick(STEP).reason
    assert follow(executor, 2 * STEP, 1) == FOLLOWING
    for k in range(3, 40):
        executor.measure(HOME, k * STEP)
        command = executor.tick(k * STEP)
    assert command.reason == "no fresh chunk"
    executor.refuse(ChunkRefusedError("names", "wrong again"))
    assert "wrong again" in executor.tick(40 * STEP).reason
    executor.measure(HOME, 40 * STEP + 11 * SECOND)
    assert "wrong again" not in executor.tick(40 * STEP + 11 * SECOND).reason
    assert executor.last_refusal == "wrong again"


def test_joint_states_that_are_doubted_hold_and_start_nothing():
    executor = make()
    executor.distrust("two publishers disagree")
    executor.measure(HOME, 0)
    executor.offer(chunk(0), 0)
    assert executor.tick(0).reason == "two publishers disagree"
    executor.distrust("")
    assert follow(executor, STEP, 2) == FOLLOWING
    executor.distrust("two publishers disagree")
    held = executor.tick(2 * STEP)
    assert (held.mode, held.reason) == ("holding", "two publishers disagree")
    assert held.positions == pytest.approx(HOME)
    for k in range(3, 60):  # far away: held all the same, and not let go
        executor.measure(HOME + 0.4, k * STEP)
        held = executor.tick(k * STEP)
    assert held.positions == pytest.approx(HOME)


def test_commands_start_when_joint_states_have_come_for_a_while():
    executor = make(settle_s=0.2)
    modes = [follow(executor, k * STEP, k + 1) for k in range(7)]
    assert modes.index(FOLLOWING) == 4
    executor.tick(3 * SECOND)
    now = 3 * SECOND + STEP  # they come again after a gap
    follow(executor, now, 10)
    assert "have only begun" in executor.tick(now).reason


def test_values_outside_and_at_one_end_are_told():
    executor = make()
    rows = np.tile([45.0, 0.1, 1.0], (20, 1))
    for k in range(STUCK_AFTER_CHUNKS):
        executor.offer(chunk(k * STEP, k, rows=rows), k * STEP)
    now = STUCK_AFTER_CHUNKS * STEP
    assert executor.watch.outside == {"a": STUCK_AFTER_CHUNKS}
    assert executor.watch.clipped == {"a": STUCK_AFTER_CHUNKS}
    assert executor.watch.outside_now(now).startswith("a (100 chunks, last 0.1 s ago)")
    assert executor.watch.stuck() == (
        "a at its upper end for 100 chunks, hand at its upper end for 100 chunks"
    )
    executor.offer(chunk(now, 200), now)
    assert executor.watch.stuck() == ""
    assert executor.watch.outside_now(now + 60 * SECOND) == ""


UNITS = [
    ("a", ActionMeaning.ABSOLUTE, ActionUnit.RADIAN, True),
    ("a", ActionMeaning.DELTA, ActionUnit.METRE, True),
    ("a", ActionMeaning.VELOCITY, ActionUnit.RADIAN_PER_SECOND, True),
    ("a", ActionMeaning.VELOCITY, ActionUnit.DIMENSIONLESS, False),
    ("a", ActionMeaning.VELOCITY, ActionUnit.RADIAN, False),
    ("a", ActionMeaning.ABSOLUTE, ActionUnit.RADIAN_PER_SECOND, False),
    ("a", ActionMeaning.ABSOLUTE, ActionUnit.GRIPPER_OPEN_0_CLOSED_1, False),
    ("a", ActionMeaning.ABSOLUTE, 99, False),
    ("slide", ActionMeaning.ABSOLUTE, ActionUnit.METRE, True),
    ("slide", ActionMeaning.ABSOLUTE, ActionUnit.RADIAN, False),
    ("slide", ActionMeaning.VELOCITY, ActionUnit.METRE_PER_SECOND, True),
    ("slide", ActionMeaning.VELOCITY, ActionUnit.RADIAN_PER_SECOND, False),
    ("hand", ActionMeaning.ABSOLUTE, ActionUnit.GRIPPER_OPEN_0_CLOSED_1, True),
    ("hand", ActionMeaning.ABSOLUTE, ActionUnit.RADIAN, True),  # what an unset field holds
    ("hand", ActionMeaning.ABSOLUTE, ActionUnit.GRIPPER_CLOSED_0_OPEN_1, False),
    ("hand", ActionMeaning.VELOCITY, ActionUnit.METRE_PER_SECOND, False),
]


@pytest.mark.parametrize(("joint", "meaning", "unit", "good"), UNITS)
def test_units_are_those_of_the_joint(joint, meaning, unit, good):
    i = LIMITS.names.index(joint)
    options = {
        "joints": [joint], "names": [joint], "data": [0.1, 0.2], "horizon": 2, "step_ns": STEP,
        "start_ns": 0, "meaning": [meaning], "reference": np.zeros(1), "unit": [unit],
        "joint_units": LIMITS.units[i : i + 1],
    }  # fmt: skip
    if good:
        timed_chunk(**options)
    else:
        with pytest.raises(ChunkRefusedError, match=f"{joint} is in .*accepted") as error:
            timed_chunk(**options)
        assert error.value.reason == "unit"


def stamp(sec=5, nanosec=0):
    return SimpleNamespace(sec=sec, nanosec=nanosec)


def message(**changes):
    fields = {
        "header": SimpleNamespace(stamp=stamp(), frame_id=""),
        "published_stamp": stamp(),
        "step": stamp(0, STEP),
        "names": list(LIMITS.names),
        "data": [0.0] * 6,
        "horizon": 2,
        "steps_past": 0,
        "meaning": [0, 0, 0],
        "unit": [0, 1, 4],
        "policy_id": "p",
        "chunk_id": 1,
        **changes,
    }
    return SimpleNamespace(**fields)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"steps_past": 3}, "steps past"),
        ({"step": stamp(0, 1_000_000_000)}, "step"),
        ({"step": stamp(-1, STEP)}, "step"),
        ({"step": stamp(0, 0)}, "step"),
        ({"header": SimpleNamespace(stamp=stamp(1, 2**31), frame_id="")}, "stamp"),
        ({"published_stamp": stamp(-1)}, "stamp"),
        ({"header": SimpleNamespace(stamp=stamp(), frame_id="tool0")}, "frame"),
        ({"unit": [0, 1]}, "length"),
        ({"unit": []}, "length"),
        ({"meaning": [0] * 4}, "length"),
        ({"unit": [0, 1, 6]}, "unit"),
        ({"meaning": [3, 0, 0]}, "unit|meaning"),
    ],
)
def test_fields_are_checked_as_the_message_says(changes, reason):
    measured = lambda _: HOME  # noqa: E731
    assert read_chunk(message(steps_past=2), LIMITS, measured).start_ns == 5 * SECOND
    with pytest.raises(ChunkRefusedError) as error:
        read_chunk(message(**changes), LIMITS, measured)
    assert error.value.reason in reason.split("|")
