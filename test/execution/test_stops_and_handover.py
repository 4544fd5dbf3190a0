"""Stops, permissions, faults, teleoperation: when, why, and never a jump of the commands."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pi05_ros.execution.command import FAULT, STOPPED
from pi05_ros.execution.executor import (
    FOLLOWING,
    HOLDING,
    TELEOPERATED,
    WAITING,
    Executor,
    ExecutorSettings,
)
from pi05_ros.execution.interlocks import InterlockSettings
from pi05_ros.execution.limits import JointLimits
from pi05_ros.execution.strategies import make_strategy
from pi05_ros.execution.timed_chunk import ChunkRefusedError, TimedChunk

LIMITS = JointLimits(("a", "b"), [-1, -2], [2, 2], [1.5, 3.0], [6, 20])
DT = 0.02
TICK = 20_000_000
STEP = 50_000_000
SECOND = 1_000_000_000


class Loop:
    """An executor, a policy that wants to go to and fro, and an arm that does as it is told."""

    def __init__(self, strategy="rtc", **options):
        options = {"period_s": DT, "limiting": "path", **options}
        self.core = Executor(LIMITS, make_strategy(strategy, 2), ExecutorSettings(**options))
        self.k, self.number = 0, 0
        self.place = np.zeros(2)
        self.stuck = False
        self.chunks = True
        self.pieces = [[]]

    @property
    def now(self):
        return self.k * TICK

    def wish(self, s):
        return np.stack([0.8 * np.sin(2 * s) + 0.3, 0.9 * np.cos(3 * s) - 0.9], axis=-1)

    def tick(self):
        core = self.core
        core.measure(self.place, self.now)
        if self.chunks and self.k % 5 == 0:
            self.number += 1
            s = self.now / 1e9 + np.arange(20) * 0.05
            chunk = TimedChunk(self.now, STEP, self.wish(s), "p", self.number)
            with contextlib.suppress(ChunkRefusedError):
                core.offer(chunk, self.now)
        command = core.tick(self.now)
        if command.positions is None:
            self.pieces.append([])
        else:
            if not self.pieces[-1]:
                self.pieces[-1] = [self.place.copy()]
            self.pieces[-1].append(command.positions)
            if not self.stuck:
                self.place = command.positions
        self.k += 1
        return command

    def run(self, ticks, each=lambda: None):
        command = None
        for _ in range(ticks):
            each()
            command = self.tick()
        return command

    def assert_smooth(self):
        for piece in self.pieces:
            if len(piece) < 2:
                continue
            velocity = np.diff(piece, axis=0) / DT
            change = np.diff(np.vstack([np.zeros(2), velocity]), axis=0) / DT
            assert (np.abs(velocity) <= LIMITS.velocity + 1e-6).all()
            assert (np.abs(change) <= LIMITS.acceleration + 1e-4).all()
            assert (np.array(piece) >= LIMITS.lower - 1e-9).all()
            assert (np.array(piece) <= LIMITS.upper + 1e-9).all()


def test_a_halt_lasts_as_long_as_it_is_set_and_a_stop_until_resume():
    loop = Loop()
    assert loop.run(20).mode == FOLLOWING
    loop.core.interlocks.halted = True
    halted = loop.run(60)
    assert (halted.mode, halted.reason) == (STOPPED, "halted")
    assert loop.core.resume() == "halted"
    assert loop.run(5).mode == STOPPED
    loop.core.interlocks.halted = False
    assert loop.run(10).mode == FOLLOWING
    loop.core.stop("operator")
    assert loop.run(10).reason == "operator"
    assert loop.core.resume() == ""
    assert loop.run(10).mode == FOLLOWING
    loop.assert_smooth()


def test_nothing_moves_before_it_is_enabled():
    loop = Loop(interlocks=InterlockSettings(require_enable=True))
    command = loop.run(20)
    assert (command.positions, command.mode, command.reason) == (None, STOPPED, "not enabled")
    loop.core.interlocks.enabled = True
    assert loop.run(10).mode == FOLLOWING
    loop.core.interlocks.enabled = False
    assert loop.run(40).reason == "not enabled"
    loop.assert_smooth()


def test_a_heartbeat_that_falls_silent_is_a_fault_until_resume():
    loop = Loop(interlocks=InterlockSettings(heartbeat_timeout_s=0.1))
    beat = lambda: loop.core.interlocks.beat(loop.now)  # noqa: E731
    assert loop.run(10).reason == "no heartbeat"
    assert loop.run(20, beat).mode == FOLLOWING
    silent = loop.run(40)
    assert silent.mode == FAULT
    assert "silent for more than 0.1 s" in silent.reason
    assert loop.run(10, beat).mode == FAULT
    assert loop.core.resume() == ""
    assert loop.run(20, beat).mode == FOLLOWING
    loop.assert_smooth()


def test_a_joint_that_does_not_follow_is_a_fault_and_is_named():
    loop = Loop(tracking_error_time_s=0.3)
    loop.run(30)
    loop.stuck = True
    command = loop.run(120)
    assert command.mode == FAULT
    assert "does not follow" in command.reason
    loop.stuck = False
    loop.core.resume()
    assert loop.run(40).mode == FOLLOWING
    loop.assert_smooth()


@pytest.mark.parametrize("delay", [0, 5, 15])
def test_an_arm_that_follows_late_is_no_fault(delay):
    loop = Loop(tracking_error_time_s=0.3, following_lag_s=0.1)
    past = [loop.place] * (delay + 1)
    for _ in range(300):
        command = loop.tick()
        past.append(loop.place)
        loop.place = past[-1 - delay]
    assert command.mode == FOLLOWING


@pytest.mark.parametrize("limiting", ["path", "joint"])
def test_a_person_takes_over_and_hands_back(limiting):
    loop = Loop(limiting=limiting)
    loop.run(33)
    assert not loop.core.intervention
    steer = lambda: loop.core.teleop.offer(["b"], [1.5], loop.now)  # noqa: E731
    command = loop.run(100, steer)
    assert (command.mode, command.reason) == (TELEOPERATED, "teleoperation")
    assert loop.core.intervention
    assert command.positions[1] == pytest.approx(1.5, abs=1e-3)
    accepted = loop.core.accepted
    loop.run(10, steer)
    assert loop.core.accepted > accepted  # the chunks go on in shadow
    assert loop.run(30).mode in (TELEOPERATED, FOLLOWING)
    assert loop.run(100).mode == FOLLOWING
    assert not loop.core.intervention
    assert loop.place == pytest.approx(loop.wish((loop.now - TICK) / 1e9), abs=0.1)
    loop.assert_smooth()


@pytest.mark.parametrize("limiting", ["path", "joint"])
def test_held_chunks_leave_the_arm_to_a_person_and_are_forgotten(limiting):
    loop = Loop(limiting=limiting)
    loop.run(33)
    loop.core.hold_chunks = True
    held = loop.run(60)
    assert (held.mode, held.reason) == (HOLDING, "chunks are held (hold_chunks)")
    still = loop.place.copy()
    steer = lambda: loop.core.teleop.offer(["a", "b"], [-0.5, 1.5], loop.now)  # noqa: E731
    assert loop.run(100, steer).mode == TELEOPERATED
    assert loop.place == pytest.approx([-0.5, 1.5], abs=1e-3)
    assert abs(still - loop.place).max() > 0.5
    assert loop.run(60).mode == HOLDING  # handed back
    assert loop.place == pytest.approx([-0.5, 1.5], abs=1e-3)
    loop.chunks = False
    loop.core.hold_chunks = False
    assert loop.run(5).mode == HOLDING  # chunks that came meanwhile are not for later
    loop.chunks = True
    assert loop.run(100).mode == FOLLOWING
    loop.assert_smooth()


def test_teleoperation_starts_commands_and_respects_stops():
    loop = Loop()
    loop.chunks = False
    assert loop.run(5).mode == WAITING
    steer = lambda: loop.core.teleop.offer(["a", "b"], [0.5, 0.1], loop.now)  # noqa: E731
    assert loop.run(100, steer).positions == pytest.approx([0.5, 0.1], abs=1e-3)
    loop.core.stop("operator")
    assert loop.run(10, steer).mode == STOPPED
    loop.core.resume()
    assert loop.run(10, steer).mode == TELEOPERATED
    loop.core.teleop.held = True
    held = loop.run(100)
    assert (held.mode, held.reason) == (TELEOPERATED, "taken over; no target yet")
    loop.core.teleop.held = False
    assert loop.run(5).mode == HOLDING
    loop.assert_smooth()


@pytest.mark.parametrize(
    ("names", "positions", "message"),
    [
        (["a"], [np.nan], "not finite"),
        (["x"], [0.0], "names none of a, b"),
        (["a", "b"], [0.0], "2 names and 1 positions"),
    ],
)
def test_teleop_targets_that_cannot_be_used_are_counted(names, positions, message):
    loop = Loop()
    loop.core.teleop.offer(names, positions, 0)
    assert loop.core.teleop.refused == 1
    assert message in loop.core.teleop.last_refusal
    assert not loop.core.teleop.active(0)


def test_blending_in_takes_the_time_that_is_set():
    fast, slow = Loop(), Loop(blend_in_s=1.0)
    for loop in (fast, slow):
        loop.place = np.array([0.5, 0.5])
        loop.wish = lambda s: np.zeros((*np.shape(s), 2))
        loop.run(30)
    assert np.abs(fast.place).max() < 0.03
    assert np.abs(slow.place).max() > 0.1
    slow.run(60)
    assert np.abs(slow.place).max() < 1e-3


@pytest.mark.parametrize("blend_in_s", [0.0, 0.5])
def test_a_clock_that_is_set_back_does_not_slow_the_arm_down(blend_in_s):
    loop = Loop(blend_in_s=blend_in_s)
    loop.k = 100_000
    loop.run(40)
    loop.k = 50_000
    loop.run(150)
    assert loop.place == pytest.approx(loop.wish((loop.now - TICK) / 1e9), abs=0.1)
    loop.assert_smooth()


EVENTS = [
    "stop",
    "resume",
    "halt",
    "unhalt",
    "disable",
    "enable",
    "take",
    "give",
    "chunks",
    "none",
    "slow",
    "full",
    "hold",
    "unhold",
    "teleop",
    "teleop",
    "silence",
    "jump",
    "doubt",
    "trust",
]


@settings(max_examples=60, deadline=None)
@given(
    script=st.lists(
        st.tuples(st.sampled_from(EVENTS), st.integers(0, 25), st.floats(-3, 3)), max_size=14
    ),
    strategy=st.sampled_from(["rtc", "replace", "ensemble"]),
    limiting=st.sampled_from(["path", "joint"]),
)
def test_no_event_at_any_time_makes_the_commands_jump(script, strategy, limiting):
    loop = Loop(strategy, limiting=limiting)
    core, locks, wish = loop.core, loop.core.interlocks, loop.wish
    target = [None]

    def each():
        if target[0] is not None:
            core.teleop.offer(["a", "b"], [target[0], -target[0]], loop.now)

    for event, ticks, value in script:
        if event == "stop":
            core.stop("operator")
        elif event == "resume":
            core.resume()
        elif event in ("halt", "unhalt"):
            locks.halted = event == "halt"
        elif event in ("disable", "enable"):
            locks.enabled = event == "enable"
        elif event in ("take", "give"):
            core.teleop.held = event == "take"
        elif event in ("chunks", "none"):
            loop.chunks = event == "chunks"
        elif event in ("hold", "unhold"):
            core.hold_chunks = event == "hold"
        elif event in ("slow", "full"):
            core.speed_scale = 1.0 if event == "full" else abs(value) / 3
        elif event in ("teleop", "silence"):
            target[0] = value if event == "teleop" else None
        elif event == "jump":  # the policy changes its mind
            loop.wish = lambda s, value=value: wish(s + value) + value
        else:
            core.distrust("two publishers" if event == "doubt" else "")
        loop.run(ticks, each)
    loop.assert_smooth()
