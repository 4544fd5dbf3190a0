"""Newest sample of each source, and whether together they are fresh enough to act on.

Pure logic on nanosecond integers: the node feeds it from subscriptions, a bag reader from a
file. `now_ns` is the clock that header stamps are compared with (it may be simulated time),
`mono_ns` a monotonic clock that tells a dead source from a paused simulation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pi05_ros.runtime.inputs.conversion import ConversionError
from pi05_ros.runtime.inputs.joint_problems import in_words, joint_problem, lagging_joint
from pi05_ros.runtime.inputs.joint_states import JointStateMerger, merge_message

NS = 1_000_000_000

# A clock may be slewed back a little; more than this is a jump (a bag that starts over).
CLOCK_JUMP_NS = 50_000_000


@dataclass(frozen=True)
class SourceSample:
    """One accepted message: what to convert, its stamp, when it came."""

    payload: Any
    stamp_ns: int
    received_ns: int  # monotonic
    delay_ns: int = 0

    @property
    def taken_ns(self) -> int:
        """Time of what it shows."""
        return self.stamp_ns - self.delay_ns


@dataclass(frozen=True)
class Limits:
    """Freshness limits in nanoseconds.

    Attributes:
        max_age: source name -> oldest stamp against the clock.
        max_skew: between the stamps of one observation.
        future: how far a stamp may lie ahead of the clock.
        dead: monotonic time without a message after which a source is dead.
        zero_is_receive_time: take the clock at receipt for stamps of 0.
        on_change: oldest value of a joint that is published only when it changes.
        camera_delay: from what an image shows to its stamp.

    """

    max_age: Mapping[str, int]
    max_skew: int
    future: int
    dead: int
    zero_is_receive_time: bool = False
    on_change: int = 60 * NS
    camera_delay: int = 0


@dataclass
class SourceState:
    """Newest sample and counters of one source."""

    name: str
    newest: SourceSample | None = None
    received: int = 0
    unrelated: int = 0  # of these, joint states without a wanted joint
    last_received_ns: int | None = None
    dropped: Counter[str] = field(default_factory=Counter)  # messages, by reason
    refused: Counter[str] = field(default_factory=Counter)  # ticks it held up, by reason
    note: str = ""  # what may be the cause where no message comes
    doubt: str = ""  # why messages that can be used may be wrong
    last_error: str = ""
    last_error_ns: int | None = None  # monotonic
    rejected: bool = False  # the newest message; `last_error` says why
    unreadable: int = 0  # samples that an inference was started with and that did not convert


@dataclass(frozen=True)
class Problem:
    """Why one source cannot be used now: a word for counters and a sentence for people."""

    source: str
    code: str
    text: str


@dataclass(frozen=True)
class Snapshot:
    """Samples of one observation, one per source."""

    samples: Mapping[str, SourceSample]

    @property
    def stamp_ns(self) -> int:
        """Time of the oldest of what they show."""
        return min(sample.taken_ns for sample in self.samples.values())

    @property
    def received_ns(self) -> int:
        """Monotonic time at which the newest of the samples came."""
        return max(sample.received_ns for sample in self.samples.values())


class Inputs:
    """Buffers of depth one for a fixed set of sources.

    Args:
        sources: names; all of them are needed for an observation.
        limits: see Limits; may be replaced at any time.
        joints: merges the messages of the source `joints_name`.
        joints_name: source whose messages come by `offer_joints`.

    """

    def __init__(
        self,
        sources: Sequence[str],
        limits: Limits,
        joints: JointStateMerger | None = None,
        joints_name: str = "joint_states",
    ) -> None:
        self.limits = limits
        self.joints = joints
        self._joints_name = joints_name
        self.sources = {name: SourceState(name) for name in sources}
        self.clock_jumps = 0
        self._last_now_ns: int | None = None
        self._last_used: Snapshot | None = None

    def reset(self) -> None:
        """Forget all samples but joints that are published on change; counters stay."""
        self._forget(keep_on_change=True)

    def _forget(self, *, keep_on_change: bool) -> None:
        for source in self.sources.values():
            source.newest = None
        if self.joints is not None:
            self.joints.reset(keep_on_change=keep_on_change)
        self._last_used = None

    def went_back(self, now_ns: int) -> bool:
        """Whether the clock is behind its last reading by more than it may be slewed."""
        last = self._last_now_ns
        return last is not None and now_ns < last - CLOCK_JUMP_NS

    def observe_clock(self, now_ns: int) -> bool:
        """Compare the clock with its last reading; a jump back empties the buffers (True)."""
        jumped = self.went_back(now_ns)
        self._last_now_ns = now_ns
        if jumped:
            self.clock_jumps += 1
            self._forget(keep_on_change=False)
        return jumped

    def offer(self, name: str, payload: Any, stamp_ns: int, now_ns: int, mono_ns: int) -> bool:
        """Keep a message if it is the newest of its source; False if it was dropped."""
        self.observe_clock(now_ns)
        source = self._arrived(name, mono_ns)
        stamp = self._stamp(source, stamp_ns, now_ns)
        if stamp is None:
            return False
        stamp_ns, newest = stamp, source.newest
        # A sample from the future must not lock out the ones that follow it.
        if (
            newest is not None
            and stamp_ns < newest.stamp_ns
            and newest.stamp_ns <= now_ns + self.limits.future
        ):
            self._drop(
                source,
                "out_of_order",
                f"stamp is {in_words(newest.stamp_ns - stamp_ns)} older than the sample before it",
            )
            source.rejected = True
            return False
        source.newest = SourceSample(payload, stamp_ns, mono_ns, self.limits.camera_delay)
        return True

    def offer_joints(
        self,
        name: str,
        message: Any,
        stamp_ns: int,
        now_ns: int,
        mono_ns: int,
        publisher: str | None = None,
    ) -> bool:
        """Merge a JointState message; False if it gave no new state of all joints.

        The payload of the sample is the state ``[n]`` float32, its stamp that of the oldest
        joint. Messages without a wanted joint are counted and are no fault.
        """
        self.observe_clock(now_ns)
        joints, source = self.joints, self.sources[name]
        assert joints is not None, "made without joints"
        if not joints.wants(getattr(message, "name", ())):
            source.received += 1
            source.unrelated += 1
            return False
        self._arrived(name, mono_ns)
        stamp = self._stamp(source, stamp_ns, now_ns)
        if stamp is None:
            return False
        joints.future_ns = self.limits.future
        faults = joints.faults.copy()
        try:
            merged = merge_message(
                joints, message, stamp_ns=stamp, now_ns=now_ns, publisher=publisher
            )
        except ConversionError as error:
            self._drop(source, error.code, str(error))
            source.rejected = True
            return False
        for code in joints.faults - faults:
            self._drop(source, code, joints.last_fault)
            source.rejected = code != "out_of_order"
        if merged is None:
            return False
        source.newest = SourceSample(merged.positions.astype(np.float32), merged.stamp_ns, mono_ns)
        return True

    def reject(self, name: str, code: str, text: str, mono_ns: int) -> None:
        """Count a message that could not be converted."""
        source = self._arrived(name, mono_ns)
        self._drop(source, code, text)
        source.rejected = True

    def count_bad_sample(self, name: str, code: str, text: str) -> None:
        """Count a sample that was kept and turned out to be unusable when converted."""
        source = self.sources[name]
        self._drop(source, code, text)
        source.unreadable += 1

    def complete_since(self, names: Sequence[str], mono_ns: int) -> bool:
        """Whether each of these sources has a sample received at or after that time."""
        return all(
            (sample := self.sources[name].newest) is not None and sample.received_ns >= mono_ns
            for name in names
        )

    def check(self, now_ns: int, mono_ns: int) -> list[Problem]:
        """Everything that keeps the newest samples from being used; counts nothing."""
        self.observe_clock(now_ns)
        problems = [
            problem
            for source in self.sources.values()
            if (problem := self._check_one(source, now_ns, mono_ns)) is not None
        ]
        if problems:
            return problems
        samples = {name: source.newest for name, source in self.sources.items()}
        newest = max(s.taken_ns for s in samples.values() if s)
        return [
            Problem(
                name,
                "skew",
                f"{in_words(newest - sample.taken_ns)} behind the newest source "
                f"(limit {in_words(self.limits.max_skew)})",
            )
            for name, sample in samples.items()
            if sample and newest - sample.taken_ns > self.limits.max_skew
        ]

    def take(self, now_ns: int, mono_ns: int) -> Snapshot | list[Problem]:
        """Newest samples as one observation, or why there is none (counted per source)."""
        problems = self.check(now_ns, mono_ns)
        if not problems:
            snapshot = Snapshot({n: s.newest for n, s in self.sources.items() if s.newest})
            if self._last_used is None or any(
                sample is not self._last_used.samples.get(name)
                for name, sample in snapshot.samples.items()
            ):
                self._last_used = snapshot
                return snapshot
            problems = [
                Problem(name, "unchanged", "no sample since the last inference")
                for name in self.sources
            ]
        for problem in problems:
            self.sources[problem.source].refused[problem.code] += 1
        return problems

    def _arrived(self, name: str, mono_ns: int) -> SourceState:
        source = self.sources[name]
        source.received += 1
        source.last_received_ns = mono_ns
        source.rejected = False
        return source

    def _stamp(self, source: SourceState, stamp_ns: int, now_ns: int) -> int | None:
        """Stamp to use for a message; None if it has none and that is refused."""
        if stamp_ns > 0:
            return stamp_ns
        if self.limits.zero_is_receive_time:
            return now_ns
        self._drop(
            source,
            "zero_stamp",
            "header stamp is 0; stamp it in the driver or set zero_stamps:=receive_time",
        )
        source.rejected = True
        return None

    @staticmethod
    def _drop(source: SourceState, code: str, text: str) -> None:
        source.dropped[code] += 1
        source.last_error = text
        source.last_error_ns = source.last_received_ns

    def _check_one(self, source: SourceState, now_ns: int, mono_ns: int) -> Problem | None:
        silent_ns = None if source.last_received_ns is None else mono_ns - source.last_received_ns
        if silent_ns is not None and silent_ns > self.limits.dead:
            text = f"no message for {silent_ns / NS:.1f} s{source.note}"
            return Problem(source.name, "dead", text)
        sample = source.newest
        joints = self.joints if source.name == self._joints_name else None
        if sample is None:
            if joints is not None and joints.missing and (source.received or joints.on_change):
                text = source.last_error if source.rejected else joints.describe_missing()
                return Problem(source.name, "missing", text)
            if silent_ns is None:
                return Problem(source.name, "missing", f"no message yet{source.note}")
            text = (
                source.last_error if source.rejected else "no message since buffers were emptied"
            )
            return Problem(source.name, "missing", text)
        age_ns = now_ns - sample.taken_ns
        if now_ns - sample.stamp_ns < -self.limits.future:
            return Problem(
                source.name,
                "future",
                f"stamp is {in_words(sample.stamp_ns - now_ns)} ahead of this node's clock (limit "
                f"{in_words(self.limits.future)}): the clocks are not synchronized",
            )
        limit_ns = self.limits.max_age[source.name]
        if age_ns > limit_ns:
            text = f"newest sample is {in_words(age_ns)} old (limit {in_words(limit_ns)})"
            if source.rejected:
                text += f"; newer messages cannot be used: {source.last_error}"
            text += "" if joints is None else lagging_joint(joints)
            return Problem(source.name, "stale", text)
        found = None if joints is None else joint_problem(joints, now_ns, self.limits.on_change)
        return None if found is None else Problem(source.name, *found)
