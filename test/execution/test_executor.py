"""The executor's core: order, staleness, stops, seams, and chunks meant to do harm."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pi05_ros.execution.command import STOPPED
from pi05_ros.execution.executor import FOLLOWING, HOLDING, WAITING, Executor, ExecutorSettings
from pi05_ros.execution.limits import JointLimits
from pi05_ros.execution.strategies import make_strategy
from pi05_ros.execution.timed_chunk import ChunkRefusedError, TimedChunk, timed_chunk
from pi05_ros.policy.interface import ActionMeaning

JOINTS = ("a", "b")
LIMITS = JointLimits(JOINTS, [-1, 0], [2, 1], [1.5, 4], [6, 80])
DT = 0.05
STEP = 50_000_000
SECOND = 1_000_000_000


def make(strategy: str = "replace", after: int = 0, **options) -> Executor:
    settings_ = ExecutorSettings(period_s=DT, **options)
    return Executor(LIMITS, make_strategy(strategy, after), settings_)


def chunk(start, rows, chunk_id=1, policy="p"):
    return TimedChunk(start, STEP, np.asarray(rows, dtype=float), policy, chunk_id)


def run(executor, start, ticks, state=(0.0, 0.5)):
    commands = []
    for k in range(ticks):
        now = start + k * STEP
        executor.measure(np.array(state), now)
        commands.append(executor.tick(now))
    return commands


def test_nothing_is_commanded_before_joint_states_and_a_chunk():
    executor = make()
    assert executor.tick(0).mode == WAITING
    executor.measure(np.array([np.nan, 0]), 0)
    assert executor.tick(0).reason == "no joint states yet"
    assert run(executor, STEP, 1)[0].positions is None


def test_a_chunk_is_followed_then_held():
    executor = make()
    rows = np.stack([np.linspace(0, 0.3, 10), np.full(10, 0.5)], axis=1)
    executor.offer(chunk(0, rows), 0)
    commands = run(executor, 0, 20)
    assert [c.mode for c in commands] == [FOLLOWING] * 10 + [HOLDING] * 10
    assert commands[9].positions == pytest.approx([0.3, 0.5], abs=0.01)
    assert commands[-1].reason.startswith("no fresh chunk")
    assert np.array_equal(commands[-1].positions, commands[-2].positions)


def test_late_chunks_start_at_the_step_that_belongs_to_now():
    executor = make()
    rows = np.stack([np.linspace(0, 0.9, 10), np.full(10, 0.5)], axis=1)
    late = chunk(0, rows)
    assert late.index(3 * STEP) == 3
    assert late.at(3 * STEP + STEP // 2)[0] == pytest.approx(0.35)
    executor.offer(late, 3 * STEP)
    commands = run(executor, 3 * STEP, 7)
    assert all(c.mode == FOLLOWING for c in commands)


def test_replace_after_n_keeps_a_chunk_for_n_steps_and_takes_the_newest():
    executor = make(after=4)
    executor.offer(chunk(0, np.full((12, 2), 0.1), 1), 0)
    seen = []
    for k in range(9):
        now = k * STEP
        executor.measure(np.array([0.0, 0.1]), now)
        if k in (1, 2):
            executor.offer(chunk(now, np.full((12, 2), 0.1 * (k + 1)), k + 1), now)
        executor.tick(now)
        seen.append(float(executor.strategy.target(now)[0]))
    assert seen == pytest.approx([0.1] * 4 + [0.3] * 5)


def test_ensemble_averages_with_the_oldest_weighing_most():
    strategy = make_strategy("ensemble", ensemble_decay=1.0)
    strategy.add(chunk(0, np.zeros((4, 2))))
    strategy.add(chunk(STEP, np.ones((4, 2)), 2))
    w = np.exp([-0.0, -1.0])
    assert strategy.target(0) == pytest.approx([0, 0])
    assert strategy.target(2 * STEP) == pytest.approx([w[1] / w.sum()] * 2)
    assert strategy.target(4 * STEP) == pytest.approx([1, 1])
    assert strategy.target(6 * STEP) is None


def test_the_path_of_an_ensemble_is_its_target_at_every_time():
    strategy = make_strategy("ensemble", ensemble_decay=0.3)
    rng = np.random.default_rng(0)
    for number, (start, steps) in enumerate([(0, 9), (STEP, 4), (3 * STEP, 12), (4 * STEP, 7)]):
        strategy.add(chunk(start, rng.normal(size=(steps, 2)), number))
    path = strategy.path(5 * STEP)
    assert path is strategy.path(6 * STEP)
    assert path.start_ns == 0
    for k in range(5, 15):
        assert path.at(k * STEP) == pytest.approx(strategy.target(k * STEP), abs=1e-12)


@pytest.mark.parametrize(
    ("offered", "now", "reason"),
    [
        (chunk(0, np.zeros((4, 2))), 2 * SECOND, "stale"),
        (chunk(0, np.zeros((4, 2))), 4 * STEP, "stale"),
        (chunk(SECOND, np.zeros((4, 2))), 0, "future"),
        (chunk(0, np.full((4, 2), np.nan)), 0, "not finite"),
        (chunk(0, np.zeros((4, 3))), 0, "not finite"),
    ],
)
def test_bad_chunks_are_refused_counted_and_named(offered, now, reason):
    executor = make()
    with pytest.raises(ChunkRefusedError):
        executor.offer(offered, now)
    assert executor.refused == {reason: 1}
    executor.measure(np.array([0.0, 0.5]), now)
    assert executor.last_refusal in executor.tick(now).reason


def test_order_and_random_weights():
    executor = make()
    executor.offer(chunk(0, np.zeros((4, 2)), 5), 0)
    for number in (5, 4):
        with pytest.raises(ChunkRefusedError, match="came after 5"):
            executor.offer(chunk(0, np.zeros((4, 2)), number), 0)
    executor.offer(chunk(0, np.zeros((4, 2)), 1, "another policy"), 0)
    with pytest.raises(ChunkRefusedError, match="random weights"):
        executor.offer(chunk(0, np.zeros((4, 2)), 6), 0, random_weights=True)
    make(random_weights_allowed=True).offer(chunk(0, np.zeros((4, 2))), 0, random_weights=True)


def test_stale_joint_states_hold_and_stop_is_soft_and_lasting():
    executor = make()
    executor.offer(chunk(0, np.full((19, 2), 0.9)), 0)
    run(executor, 0, 4)
    assert executor.tick(SECOND).reason == "joint states are stale"
    executor.offer(chunk(SECOND, np.full((19, 2), 0.9), 2), SECOND)
    moving = run(executor, SECOND, 4)
    executor.stop("operator")
    stopped = run(executor, SECOND + 4 * STEP, 12)
    assert {c.mode for c in stopped} == {STOPPED}
    steps = np.diff([c.positions[0] for c in [*moving, *stopped]])
    assert (np.abs(np.diff(steps)) <= 6 * DT * DT + 1e-9).all()
    assert steps[-1] == 0
    executor.resume()
    executor.offer(chunk(2 * SECOND, np.zeros((9, 2)), 3), 2 * SECOND)
    assert run(executor, 2 * SECOND, 1)[0].mode == FOLLOWING


@pytest.mark.parametrize(("error", "first"), [(0.01, 0.0), (0.8, 0.8)])
def test_resume_starts_from_the_measured_joints_only_if_the_arm_was_moved(error, first):
    executor = make()
    executor.offer(chunk(0, np.tile([0.0, 0.5], (9, 1))), 0)
    run(executor, 0, 2)
    executor.stop("operator")
    run(executor, 2 * STEP, 2)
    executor.measure(np.array([error, 0.5]), 4 * STEP)
    executor.resume()
    if first:
        assert executor.tick(4 * STEP).positions is None  # nothing before a chunk
    executor.offer(chunk(4 * STEP, np.tile([first, 0.5], (9, 1)), 2), 4 * STEP)
    assert executor.tick(4 * STEP).positions[0] == first


def test_stale_joint_states_are_nothing_to_start_from():
    executor = make()
    run(executor, 0, 4)
    late = executor.tick(2 * SECOND)
    assert (late.positions, late.mode, late.reason) == (None, WAITING, "joint states are stale")
    executor.offer(chunk(2 * SECOND, np.zeros((9, 2))), 2 * SECOND)
    assert executor.tick(2 * SECOND).positions is None


def at_rest(**options):
    """Executor that holds [0, 0.5]: commands it would follow are over at 9 STEP."""
    executor = make(**options)
    executor.offer(chunk(0, np.tile([0.0, 0.5], (9, 1))), 0)
    assert [c.mode for c in run(executor, 0, 10)][-2:] == [FOLLOWING, HOLDING]
    return executor


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize(("place", "first"), [(0.1, 0.0), (0.8, 0.8)])
def test_an_arm_that_was_not_seen_for_long_is_let_go_until_a_chunk_comes(stopped, place, first):
    executor = at_rest()
    mode = STOPPED if stopped else HOLDING
    if stopped:
        executor.stop("operator")
    unseen = [executor.tick(now) for now in range(10 * STEP, 30 * STEP, STEP)]
    assert {c.mode for c in unseen[:18]} == {mode}
    assert [c.positions is None for c in unseen] == [False] * 20
    gone = executor.tick(30 * STEP)  # 1.05 s after the last joint states
    assert gone.positions is None
    assert "joint states" in gone.reason
    back = run(executor, 60 * STEP, 3, state=(place, 0.5))
    assert {c.positions is None for c in back} == {True}
    executor.resume()
    executor.offer(chunk(63 * STEP, np.tile([first, 0.5], (9, 1)), 2), 63 * STEP)
    assert run(executor, 63 * STEP, 1, state=(place, 0.5))[0].positions[0] == first


@pytest.mark.parametrize("stopped", [False, True])
def test_an_arm_at_rest_that_somebody_moves_is_let_go(stopped):
    executor = at_rest()
    if stopped:
        executor.stop("operator")
    moved = run(executor, 10 * STEP, 11, state=(0.2, 0.5))
    assert [c.positions is None for c in moved] == [False] * 10 + [True]
    assert moved[-1].mode == (STOPPED if stopped else WAITING)
    assert "a is 0.200 from where it is held" in moved[-1].reason
    # Nor when it comes by the place where it was held.
    assert run(executor, 21 * STEP, 1)[0].positions is None
    executor.resume()
    executor.offer(chunk(22 * STEP, np.tile([0.9, 0.5], (9, 1)), 2), 22 * STEP)
    (start,) = run(executor, 22 * STEP, 1, state=(0.9, 0.5))
    assert (start.mode, start.positions[0]) == (FOLLOWING, 0.9)


def test_neither_sag_nor_a_knock_nor_a_held_object_makes_it_let_go():
    executor = at_rest()  # 0.15 and 0.4 are 0.1 s at full velocity
    assert {c.mode for c in run(executor, 10 * STEP, 40, state=(-0.149, 0.5))} == {HOLDING}
    for start in (50, 70):
        run(executor, start * STEP, 9, state=(0.3, 0.5))
        assert {c.mode for c in run(executor, (start + 9) * STEP, 11)} == {HOLDING}
    assert run(executor, 100 * STEP, 20, state=(0.0, 0.95))[-1].mode == WAITING
    gripper = at_rest(gripping=("b",))
    held = run(gripper, 10 * STEP, 40, state=(0.0, 0.95))
    assert {(c.mode, c.positions[1]) for c in held} == {(HOLDING, 0.5)}
    gripper.stop("operator")
    run(gripper, 50 * STEP, 4, state=(0.0, 0.95))
    gripper.resume()
    assert run(gripper, 54 * STEP, 1, state=(0.0, 0.95))[0].positions[1] == 0.5
    patient = at_rest(following_lag_s=1.0)
    assert {c.mode for c in run(patient, 10 * STEP, 40, state=(0.9, 0.5))} == {HOLDING}


def test_an_arm_that_lags_behind_while_it_follows_is_not_let_go():
    executor = make()
    executor.offer(chunk(0, np.tile([1.0, 0.5], (60, 1))), 0)
    assert {c.mode for c in run(executor, 0, 60)} == {FOLLOWING}
    assert {c.mode for c in run(executor, 60 * STEP, 10)} == {HOLDING}
    assert run(executor, 70 * STEP, 1)[0].mode == WAITING


def test_commanding_does_not_start_from_far_outside_the_limits():
    executor = make()
    executor.offer(chunk(0, np.zeros((9, 2))), 0)
    command = run(executor, 0, 1, state=(2.5, 0.5))[0]
    assert command.positions is None
    assert "a is at 2.500, outside its limits" in command.reason


def test_a_joint_a_little_outside_comes_back_within_its_limits():
    executor = make()
    executor.offer(chunk(0, np.zeros((19, 2))), 0)
    path = [2.05, *(c.positions[0] for c in run(executor, 0, 12, state=(2.05, 0.5)))]
    steps = np.diff([2.05, *path]) / DT
    assert path[1] == pytest.approx(2.05, abs=6 * DT * DT + 1e-9)
    assert max(path) <= 2.05
    assert (np.abs(steps) <= 1.5 + 1e-9).all()
    assert (np.abs(np.diff(steps)) <= 6 * DT + 1e-9).all()
    assert path[-1] < 1.9


def test_a_clock_that_jumped_back_brakes_softly_and_takes_new_chunks():
    executor = make()
    executor.offer(chunk(SECOND, np.full((19, 2), 1.0), 7), SECOND)
    moving = run(executor, SECOND, 4)
    executor.rewind()
    blind = executor.tick(0)
    assert (blind.mode, blind.reason) == (HOLDING, "joint states are stale")
    executor.offer(chunk(STEP, np.full((9, 2), 1.0), 1), STEP)  # not before it is at rest
    braking = run(executor, STEP, 8, state=blind.positions)
    resting = next(i for i, c in enumerate(braking) if c.mode != HOLDING)
    path = [c.positions[0] for c in [*moving, blind, *braking]]
    steps = np.diff(path)
    assert (np.abs(np.diff(steps)) <= 6 * DT * DT + 1e-9).all()
    assert steps[4 + resting - 1] == 0
    assert {c.mode for c in braking[resting:]} == {FOLLOWING}


def test_a_clock_that_jumped_back_lets_an_arm_at_rest_go():
    executor = at_rest()
    executor.rewind()
    run(executor, 0, 1)
    (gone,) = run(executor, STEP, 1)
    assert (gone.positions, gone.mode) == (None, WAITING)
    assert gone.reason == "the clock jumped back"
    executor.offer(chunk(2 * STEP, np.tile([0.0, 0.5], (9, 1)), 1), 2 * STEP)
    assert run(executor, 2 * STEP, 1, state=(0.01, 0.5))[0].positions[0] == 0


def test_after_a_jump_back_an_arm_that_is_elsewhere_is_where_commands_start():
    executor = make()
    executor.offer(chunk(SECOND, np.full((19, 2), 1.0), 7), SECOND)
    moving = run(executor, SECOND, 6)
    executor.rewind()
    executor.offer(chunk(0, np.tile([-0.9, 0.5], (19, 1)), 1), 0)
    after = [c.positions[0] for c in run(executor, 0, 12, state=(-0.9, 0.5))]
    start = next(i for i, place in enumerate(after) if place < 0)
    braking = np.diff([c.positions[0] for c in moving] + after[:start])
    assert (np.abs(np.diff(braking)) <= 6 * DT * DT + 1e-9).all()
    assert braking[-1] == 0
    assert after[start:] == pytest.approx([-0.9] * len(after[start:]))


def test_a_chunk_that_came_while_joint_states_were_stale_is_not_followed_later():
    executor = make()
    run(executor, 0, 4)
    executor.tick(SECOND)
    executor.offer(chunk(SECOND, np.full((19, 2), 1.0)), SECOND)
    executor.tick(SECOND)
    assert run(executor, SECOND + STEP, 1)[0].mode == WAITING


def test_a_replaced_policy_is_refused_until_the_newer_one_has_fallen_silent():
    executor = make()
    for now, number in ((0, 1), (STEP, 2)):
        executor.offer(chunk(now, np.zeros((4, 2)), number, "old"), now)
    executor.offer(chunk(2 * STEP, np.ones((4, 2)), 0, "new"), 2 * STEP)
    for k in (3, 4, 5):
        with pytest.raises(ChunkRefusedError, match="old was replaced by new"):
            executor.offer(chunk(k * STEP, np.zeros((4, 2)), k, "old"), k * STEP)
    assert executor.strategy.target(5 * STEP)[0] == 1
    assert executor.refused == {"two policies": 3}
    for k in (6, 7, 8):  # the old one is followed again, chunk after chunk
        executor.offer(chunk(k * STEP, np.zeros((4, 2)), k, "old"), k * STEP)
    with pytest.raises(ChunkRefusedError, match="came after 8"):
        executor.offer(chunk(8 * STEP, np.zeros((4, 2)), 8, "old"), 8 * STEP)
    executor.offer(chunk(9 * STEP, np.ones((4, 2)), 0, "third"), 9 * STEP)
    with pytest.raises(ChunkRefusedError, match="old was replaced by third"):
        executor.offer(chunk(10 * STEP, np.zeros((4, 2)), 9, "old"), 10 * STEP)


def test_a_stop_before_the_first_command_commands_nothing():
    executor = make()
    executor.measure(np.array([0.0, 0.5]), 0)
    executor.stop("operator")
    assert executor.tick(0).positions is None
    assert executor.tick(0).mode == STOPPED


def test_older_joint_states_do_not_replace_newer_ones():
    executor = make()
    executor.measure(np.array([0.1, 0.5]), 2 * SECOND)
    executor.measure(np.array([0.2, 0.5]), SECOND)
    assert executor.measured[0] == 0.1
    executor.offer(chunk(3 * SECOND, np.zeros((9, 2))), 3 * SECOND)
    assert executor.tick(3 * SECOND).reason == "joint states are stale"


def test_velocities_start_from_where_the_joints_were_at_the_observation():
    executor = make()
    for k in range(5):  # joint a moves by 0.05 per step
        executor.measure(np.array([0.05 * k, 0.5]), k * STEP)
    assert executor.measured_at(-STEP)[0] == 0
    assert executor.measured_at(STEP + STEP // 2)[0] == pytest.approx(0.075)
    assert executor.measured_at(9 * STEP)[0] == pytest.approx(0.2)
    late = timed_chunk(
        joints=JOINTS, names=JOINTS, data=np.tile([1.0, 0.0], 10), horizon=10, step_ns=STEP,
        start_ns=0, meaning=[ActionMeaning.VELOCITY] * 2, reference=executor.measured_at(0),
    )  # fmt: skip
    # At 1 rad/s the arm is where the chunk has it, although the chunk came four steps later.
    assert late.at(4 * STEP)[0] == pytest.approx(executor.measured[0] + 0.05)
    for k in range(5, 200):
        executor.measure(np.array([0.0, 0.5]), k * STEP)
    assert executor.measured_at(0)[0] == 0  # older states are forgotten
    executor.rewind()
    assert executor.measured_at(0) is None


def test_long_refusals_are_cut():
    executor = make()
    executor.refuse(ChunkRefusedError("names", "x" * 10_000))
    assert len(executor.last_refusal) == 300


def test_wire_chunks_are_put_in_order_and_made_absolute():
    options = {
        "joints": JOINTS,
        "names": ["b", "a"],
        "horizon": 2,
        "step_ns": STEP,
        "start_ns": 0,
        "reference": np.array([1.0, 2.0]),
    }
    got = timed_chunk(data=[1, 2, 3, 4], meaning=[0, 0], **options)
    assert got.positions.tolist() == [[2, 1], [4, 3]]
    got = timed_chunk(
        data=[1, 2, 3, 4], meaning=[ActionMeaning.DELTA, ActionMeaning.VELOCITY], **options
    )
    assert got.positions == pytest.approx(np.array([[1.1, 3], [1.3, 6]]))
    with pytest.raises(ChunkRefusedError, match="accepted: 1000000 to 10000000000"):
        timed_chunk(data=[1, 2, 3, 4], meaning=[0, 0], **{**options, "step_ns": 11 * SECOND})


WILD = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.floats(-1e30, 1e30),
    st.floats(-3, 3),
)


@st.composite
def offers(draw):
    """What somebody may send: mostly wrong in one way or another."""
    names = draw(
        st.sampled_from([("a", "b"), ("b", "a"), ("a",), ("a", "b", "c"), ("a", "a"), ("x", "y")])
    )
    horizon = draw(st.integers(0, 6))
    count = horizon * len(names) + draw(st.sampled_from([0, 0, 0, 0, 1, -1, 7]))
    return {
        "names": names,
        "horizon": horizon,
        "data": draw(st.lists(WILD, min_size=max(0, count), max_size=max(0, count))),
        "step_ns": draw(st.sampled_from([STEP, STEP, STEP, 1, 0, -5, 10**12])),
        "lag": draw(st.sampled_from([0, 0, 0, STEP, -STEP, 3 * SECOND, -3 * SECOND])),
        "meaning": draw(st.lists(st.integers(0, 9), min_size=len(names), max_size=len(names))),
        "chunk_id": draw(st.integers(0, 20)),
    }


@settings(max_examples=300, deadline=None)
@given(
    sent=st.lists(st.one_of(st.none(), offers()), min_size=1, max_size=30),
    strategy=st.sampled_from(["replace", "ensemble", "rtc"]),
    state=st.tuples(st.floats(-1.5, 2.5), st.floats(-0.2, 1.2)),
)
def test_adversarial_chunks_never_move_a_joint_beyond_its_limits(sent, strategy, state):
    executor = make(strategy, after=2)
    start = np.array(state)  # at most 2 % of the range outside, else nothing starts
    path = [start]
    paths = [path]
    now = 10 * SECOND
    for offer in sent:
        now += STEP
        executor.measure(np.array(state), now)
        if offer is not None:
            arguments = dict(offer)
            lag = arguments.pop("lag")
            try:
                wire = timed_chunk(
                    joints=JOINTS, reference=executor.measured, start_ns=now - lag, **arguments
                )
            except ChunkRefusedError as error:
                executor.refuse(error)
            else:
                with contextlib.suppress(ChunkRefusedError):
                    executor.offer(wire, now)
        command = executor.tick(now)
        if command.positions is None and len(path) > 1:
            path = [start]  # let go: the next command starts from the measured joints
            paths.append(path)
        elif command.positions is not None:
            path.append(command.positions)
        if command.mode != FOLLOWING:
            assert command.reason
            assert executor.refusal in command.reason
    for path in paths:
        velocity = np.diff(path, axis=0) / DT
        change = np.diff(np.vstack([np.zeros(2), velocity]), axis=0) / DT
        assert (np.array(path) >= np.minimum(LIMITS.lower, start) - 1e-9).all()
        assert (np.array(path) <= np.maximum(LIMITS.upper, start) + 1e-9).all()
        assert (np.abs(velocity) <= LIMITS.velocity + 1e-7).all()
        assert (np.abs(change) <= LIMITS.acceleration + 1e-5).all()
