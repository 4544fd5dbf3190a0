"""The executor's core without ROS: chunks in, one safe joint command per control period out."""

from __future__ import annotations

from collections import Counter

import numpy as np

from pi05_ros.execution.arrival.chunk_gate import CLOCK_TOLERANCE_NS, ChunkGate
from pi05_ros.execution.arrival.chunk_watch import ChunkWatch
from pi05_ros.execution.command import FOLLOWING, HOLDING, TELEOPERATED, WAITING, Command
from pi05_ros.execution.executor_settings import ExecutorSettings
from pi05_ros.execution.interlocks import Interlocks
from pi05_ros.execution.joint_track import JointTrack
from pi05_ros.execution.limit_sources.joint_limits import JointLimits
from pi05_ros.execution.motion.make_filter import Filter, make_filter
from pi05_ros.execution.motion.preview import preview
from pi05_ros.execution.placement import RestWatch, elsewhere, outside_limits
from pi05_ros.execution.space.guarded_filter import GuardedFilter
from pi05_ros.execution.space.space_guard import SpaceGuard, SpaceReport
from pi05_ros.execution.strategies import Strategy
from pi05_ros.execution.teleop import Teleop
from pi05_ros.execution.timed_chunk import ChunkRefusedError, TimedChunk
from pi05_ros.execution.tracking import TrackingWatch


class Executor:
    """Checks chunks, follows them through the strategy and the limits, holds otherwise.

    Commands start with a chunk, from the measured joints at rest. Once commanding, every command
    is within the limits of the one before, whatever chunks say: holding means braking with the
    allowed acceleration and then repeating the last command.

    An arm at rest that is no longer where it is held, or that has not been seen for long, is let
    go: somebody else moves it, and a controller that gets it back would pull it to where it was.
    Commands that followed the measured joints instead could drag an arm that cannot hold its
    place down with every period, so nothing is commanded until the next chunk.
    """

    def __init__(
        self,
        limits: JointLimits,
        strategy: Strategy,
        settings: ExecutorSettings | None = None,
        guard: SpaceGuard | None = None,
    ) -> None:
        self.settings = settings or ExecutorSettings()
        self.limits = limits
        self.strategy = strategy
        inner = make_filter(limits, self.settings)
        self._guarded = None if guard is None else GuardedFilter(inner, guard)
        self.filter: Filter | GuardedFilter = self._guarded or inner
        self.gate = ChunkGate(self.settings, len(limits.names))
        self.watch = ChunkWatch(limits)
        self.clipped = self.clock_jumps = self.forgotten = 0
        restarted_s = 2 * self.settings.max_state_age_s
        self._track = JointTrack(limits, 2 * self.settings.max_chunk_age_s, restarted_s)
        self._seen_since_ns = 0  # first of the joint states that have been coming without a gap
        self._doubt = ""  # why the joint states are not to be believed
        self._now_ns: int | None = None  # the clock's last reading
        self._rewound = False  # and still braking
        self._rest = RestWatch(self.settings)
        self._let_go = ""  # why nothing is commanded until the next chunk
        self.interlocks = Interlocks(self.settings.interlocks)
        self.teleop = Teleop(limits, self.settings.teleop_timeout_s)
        self._tracking = TrackingWatch.of(limits, self.settings)
        self._blocked = ""  # why nothing was followed in the last period
        self._steered = False  # by a person in the last period
        self.hold_chunks = False  # follow none; a person may still have the arm
        self.hold_until_enabled = False  # the same, until permission is given or withdrawn

    @property
    def joints(self) -> tuple[str, ...]:
        """Joint names, the order of all arrays."""
        return self.limits.names

    @property
    def measured(self) -> np.ndarray | None:
        """Last measured joint positions ``[n]``; continuous joints count their turns."""
        return self._track.newest

    def measured_at(self, time_ns: int) -> np.ndarray | None:
        """Joint positions ``[n]`` at a time, linear between joint states; the ends are held.

        States are kept for as long as chunks may be old. None before the first one.
        """
        return self._track.at(time_ns)

    def measure(self, positions: np.ndarray, taken_ns: int) -> None:
        """Joint positions ``[n]`` and their time; not finite and older ones are ignored."""
        if self._track.age_s(taken_ns) > self.settings.max_state_age_s:
            self._seen_since_ns = taken_ns
        self._track.add(positions, taken_ns)

    @property
    def sees_the_arm(self) -> bool:
        """Whether the measured joints are fresh and believed."""
        now_ns, most_s = self._now_ns, self.settings.max_state_age_s
        return now_ns is not None and not self._doubt and self._track.age_s(now_ns) <= most_s

    def distrust(self, reason: str) -> None:
        """Joint states cannot be right for this reason: hold until it is empty again."""
        self._doubt = reason

    def offer(self, chunk: TimedChunk, now_ns: int, random_weights: bool = False) -> None:
        """Take a chunk over, or raise why not.

        Raises:
            ChunkRefusedError: "random weights", "not finite", "duration", "order", "two policies",
                "stale", "future"; counted in `refused`.

        """
        now_ns = self.read_clock(now_ns)
        if self.gate.take(chunk, now_ns, random_weights):
            self.strategy.clear()
        near = self.filter.position if self._commanding else self.measured
        if near is not None:
            chunk = chunk.on_turn_of(self.limits, near, now_ns)
        outside = (chunk.positions < self.limits.lower) | (chunk.positions > self.limits.upper)
        self.clipped += bool(outside.any())
        self.watch.add(chunk.positions, now_ns)
        self.strategy.add(chunk.earlier(self.settings.command_delay_s))

    def refuse(self, error: ChunkRefusedError) -> None:
        """Count a chunk that was refused before it got here."""
        self.gate.refuse(error, self._now_ns)

    @property
    def accepted(self) -> int:
        """Chunks taken so far."""
        return self.gate.accepted

    @property
    def refused(self) -> Counter[str]:
        """Chunks refused so far, by reason."""
        return self.gate.refused

    @property
    def last_refusal(self) -> str:
        """Why the last refused chunk was refused, however long ago that was."""
        return self.gate.last_refusal

    @property
    def refusal(self) -> str:
        """The same, as long as that may be why nothing is followed; else empty."""
        return self.gate.refusal(self._now_ns)

    def stop(self, reason: str) -> None:
        """Brake softly and stay there until `resume`."""
        self.interlocks.stopped = reason or "stop requested"
        self._forget()

    def resume(self) -> str:
        """Follow chunks again, also after a fault; what came before is forgotten.

        Commands start from the measured joints again if the stop had come to rest and the arm
        has been moved since. The small error of an arm that holds its place is no reason to:
        that would be a jump of the command.

        Returns:
            What still keeps the arm from following (a halt, no permission), else empty.

        """
        if self.interlocks.reason and self.filter.resting:
            self._start_from_measured_if_elsewhere()
        self.interlocks.resume()
        self._forget()
        return self.interlocks.reason

    @property
    def speed_scale(self) -> float:
        """Part of the speed of chunks that is used, 0 to 1."""
        return self.filter.speed_scale

    @speed_scale.setter
    def speed_scale(self, value: float) -> None:
        self.filter.speed_scale = value

    @property
    def intervention(self) -> bool:
        """Whether a person is in charge; the chunks go on in shadow."""
        return self._now_ns is not None and self.teleop.active(self._now_ns)

    @property
    def _commanding(self) -> bool:
        return self.filter.position is not None and not self._let_go

    def _start_from_measured_if_elsewhere(self) -> None:
        if self._elsewhere() or self._track.recounted:
            self.filter.position, self._track.recounted = None, False

    def _elsewhere(self) -> str:
        """Which joint is not where it is commanded, and how far off; empty if none is."""
        return elsewhere(self.limits, self.settings, self.filter.position, self.measured)

    def rewind(self) -> None:
        """Take note that the clock has jumped back: what was received before counts no more.

        The arm brakes and is released. The next chunk starts from the measured joints if they are
        elsewhere then, as in a simulation that started over.
        """
        self._forget()
        self.gate.forget()
        self._track.clear()
        self.teleop.rewind()
        self._tracking.clear()
        self._rest.clear()
        self._now_ns = None
        self._rewound = True
        self.clock_jumps += 1

    def _forget(self) -> None:
        """What came before is not for later."""
        self.strategy.clear()
        self.forgotten += 1

    def read_clock(self, now_ns: int) -> int:
        """Time to go by; a small step back holds it, a large one is a jump, see `rewind`."""
        if self._now_ns is not None and now_ns < self._now_ns:
            if self._now_ns - now_ns <= CLOCK_TOLERANCE_NS:
                return self._now_ns
            self.rewind()
            self.interlocks.rewind(now_ns)
        self._now_ns = now_ns
        return now_ns

    def tick(self, now_ns: int) -> Command:
        """Command of this control period; call it once per period."""
        now_ns = self.read_clock(now_ns)
        command = self._decide(now_ns)
        if command.mode not in (FOLLOWING, TELEOPERATED) or command.positions is None:
            self._tracking.clear()
            return command
        problem = self._tracking.check(command.positions, self.measured, now_ns)
        if problem:
            self.interlocks.fault = problem
        return command

    def preview(self, ahead_s: float) -> tuple[np.ndarray, np.ndarray] | None:
        """Commands planned after the present one, see `preview`; None if nothing is commanded."""
        if self.filter.position is None or self._let_go or self._now_ns is None:
            return None
        following = not (self._blocked or self._doubt or self._rewound or self.intervention)
        strategy = self.strategy if following else None
        period_s = self.settings.period_s
        clear = None if self._guarded is None else self._guarded.clear
        return preview(self.filter, strategy, self._now_ns, period_s, ahead_s, clear)

    @property
    def space(self) -> SpaceReport | None:
        """What is near the arm and whether it holds it; None: space is not watched."""
        return None if self._guarded is None else self._guarded.report

    def _decide(self, now_ns: int) -> Command:
        age_s = self._track.age_s(now_ns)
        blocked = self.interlocks.check(now_ns)
        if self._blocked and not blocked and self.filter.resting:
            self._start_from_measured_if_elsewhere()
        self._blocked = blocked
        unseen = "joint states are stale" if age_s > self.settings.max_state_age_s else ""
        unseen = unseen or self._doubt
        if unseen or blocked or self.hold_chunks or self.hold_until_enabled:
            self._forget()
        if self._rewound and (self.filter.position is None or self.filter.resting):
            self._rewound, self._let_go = False, "the clock jumped back"
        stays = bool(blocked or unseen or self._rewound)
        steered = self.teleop.active(now_ns)
        wanted = not stays and self._wanted(now_ns, steered)
        moves = self.filter.position is None or not self.filter.resting
        if wanted or self._let_go or moves:
            self._rest.clear()
        else:
            away = "" if self._doubt else self._elsewhere()
            self._let_go = self._rest.check(away, now_ns, age_s)
        if self.filter.position is None or self._let_go:
            waiting = self._wait(wanted, blocked, unseen, now_ns)
            if waiting is not None:
                return waiting
        if blocked:
            return Command(self.filter.brake(), self.interlocks.mode, blocked)
        if unseen:
            return Command(self.filter.brake(), HOLDING, unseen)
        if steered and not self._rewound:
            target = self.teleop.target(self.filter.position)
            if target is None:
                return Command(self.filter.brake(), TELEOPERATED, "taken over; no target yet")
            command, held = self.filter.steer(target), self.filter.held
            return Command(command, TELEOPERATED, f"teleoperation; {held}".removesuffix("; "))
        follows = self.filter.follow(self.strategy, now_ns) if wanted else None
        if follows is None:
            reason = "the clock jumped back" if self._rewound else self._no_chunk
            return Command(self.filter.brake(), HOLDING, self._why(reason))
        return Command(follows, HOLDING if self.filter.held else FOLLOWING, self.filter.held)

    def _wanted(self, now_ns: int, steered: bool) -> bool:
        """Whether a person, or else a chunk, says where the arm has to be now."""
        near = self.filter.position if self._commanding else self.measured
        if steered:
            self._steered = True
            return near is not None and self.teleop.has_target
        reached = self.strategy.reaches(now_ns)
        if self._steered and reached and near is not None:
            self._steered = False  # handed back, perhaps on another turn
            self._turn_to(near, now_ns)
        return reached

    def _turn_to(self, near: np.ndarray, now_ns: int) -> None:
        """Put chunks that reach a time onto the turn of positions ``[n]``."""
        target = self.strategy.target(now_ns)
        if target is not None:
            self.strategy.shift(-self.limits.nearest_turn(near, target))

    def _wait(self, wanted: bool, blocked: str, unseen: str, now_ns: int) -> Command | None:
        """Why commands do not start, or None: they start where the arm is."""
        if blocked:
            reason = f"{blocked}; {self._let_go}" if self._let_go else blocked
            return Command(None, self.interlocks.mode, reason)
        if self.measured is None:
            return Command(None, WAITING, self._doubt or "no joint states yet")
        if unseen:
            return Command(None, WAITING, unseen)
        outside = outside_limits(self.limits, self.measured)
        if outside:
            return Command(None, WAITING, self._why(outside))
        if not wanted:
            return Command(None, WAITING, self._why(self._let_go or self._no_chunk))
        if now_ns - self._seen_since_ns < self.settings.settle_s * 1e9:
            return Command(None, WAITING, "joint states have only begun to come")
        self._start_from_measured_if_elsewhere()
        if self.filter.position is None:
            self.filter.reset(self.measured)
        assert self.filter.position is not None
        self._turn_to(self.filter.position, now_ns)
        self._let_go = ""
        self._rest.clear()
        return None

    @property
    def _no_chunk(self) -> str:
        if self.hold_chunks:
            return "chunks are held (hold_chunks)"
        if self.hold_until_enabled:
            return "chunks are held until permission is given again (~/hold)"
        return "no fresh chunk" if self.accepted else "no chunk yet"

    def _why(self, text: str) -> str:
        return text + self.gate.explanation(self._now_ns)
