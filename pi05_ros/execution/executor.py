"""The executor's core without ROS: chunks in, one safe joint command per control period out."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass

import numpy as np

from pi05_ros.execution.limits import JointLimits, MotionFilter
from pi05_ros.execution.strategies import Strategy
from pi05_ros.execution.timed_chunk import ChunkRefusedError, TimedChunk

FOLLOWING = "following"
HOLDING = "holding"
WAITING = "waiting"
STOPPED = "stopped"
START_SLACK = 0.02
"""Share of a joint's range by which it may lie outside its limits when commanding starts."""
MOVED_AFTER_S = 0.5
"""An arm at rest that is elsewhere for this long was moved; braking takes less to settle."""
MAX_REFUSAL_CHARACTERS = 300
_REPLACED_KEPT = 16
_STATES_KEPT = 4096


@dataclass(frozen=True)
class ExecutorSettings:
    """Time limits of the executor, and what it takes for granted.

    Attributes:
        period_s: control period.
        max_chunk_age_s: chunks whose step 0 lies farther back are refused on arrival.
        max_future_s: chunks whose step 0 lies farther ahead are refused (clocks disagree).
        max_state_age_s: joint states older than this stop the motion.
        following_lag_s: how far an arm may be from its commands, as a time at full velocity; one
            that is farther has been moved by somebody else.
        gripping: joints that what they hold may keep far from their commands; they do not count.
        random_weights_allowed: chunks of random weights are refused unless this is set, which
            is only right for a simulation.

    """

    period_s: float = 0.05
    max_chunk_age_s: float = 1.0
    max_future_s: float = 0.2
    max_state_age_s: float = 0.5
    following_lag_s: float = 0.1
    gripping: tuple[str, ...] = ()
    random_weights_allowed: bool = False


@dataclass(frozen=True)
class Command:
    """One control period's answer.

    Attributes:
        positions: joint targets ``[n]``; None while nothing may be commanded.
        mode: FOLLOWING, HOLDING, WAITING or STOPPED.
        reason: why it is not following, else empty.

    """

    positions: np.ndarray | None
    mode: str
    reason: str


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
        self, limits: JointLimits, strategy: Strategy, settings: ExecutorSettings | None = None
    ) -> None:
        self.settings = settings or ExecutorSettings()
        self.limits = limits
        self.strategy = strategy
        self.filter = MotionFilter(limits, self.settings.period_s)
        self.accepted = 0
        self.clipped = 0
        self.refused: Counter[str] = Counter()
        self.last_refusal = ""
        self._policy_id: str | None = None
        self._chunk_id = -1
        self._end_ns = 0  # of the chunk accepted last
        self._replaced: deque[str] = deque(maxlen=_REPLACED_KEPT)  # policies followed before
        self._measured: np.ndarray | None = None
        self._measured_ns = 0
        self._states: deque[tuple[int, np.ndarray]] = deque(maxlen=_STATES_KEPT)
        self._rewound = False  # and still braking
        self._away_ns: int | None = None  # since when an arm at rest is elsewhere
        self._let_go = ""  # why nothing is commanded until the next chunk
        self._stopped = ""

    @property
    def joints(self) -> tuple[str, ...]:
        """Joint names, the order of all arrays."""
        return self.limits.names

    @property
    def measured(self) -> np.ndarray | None:
        """Last measured joint positions ``[n]``."""
        return self._measured

    def measured_at(self, time_ns: int) -> np.ndarray | None:
        """Joint positions ``[n]`` at a time, linear between joint states; the ends are held.

        States are kept for as long as chunks may be old. None before the first one.
        """
        later: tuple[int, np.ndarray] | None = None
        for state in reversed(self._states):
            if state[0] <= time_ns:
                if later is None:
                    return state[1]
                share = (time_ns - state[0]) / (later[0] - state[0])
                return (1 - share) * state[1] + share * later[1]
            later = state
        return None if later is None else later[1]

    def measure(self, positions: np.ndarray, taken_ns: int) -> None:
        """Joint positions ``[n]`` and their time; not finite and older ones are ignored."""
        values = np.asarray(positions, dtype=np.float64)
        if values.shape != (len(self.joints),) or not np.isfinite(values).all():
            return
        if self._measured is not None and taken_ns < self._measured_ns:
            return
        self._measured, self._measured_ns = values, taken_ns
        self._states.append((taken_ns, values))
        oldest_ns = taken_ns - int(2e9 * self.settings.max_chunk_age_s)
        while self._states[0][0] < oldest_ns:
            self._states.popleft()

    def offer(self, chunk: TimedChunk, now_ns: int, random_weights: bool = False) -> None:
        """Take a chunk over, or raise why not.

        Raises:
            ChunkRefusedError: "random weights", "not finite", "order", "two policies", "stale",
                "future"; counted in `refused`.

        """
        try:
            self._check(chunk, now_ns, random_weights)
        except ChunkRefusedError as error:
            self.refuse(error)
            raise
        if chunk.policy_id != self._policy_id:
            self.strategy.clear()
            if self._policy_id is not None:
                self._replaced.append(self._policy_id)
            if chunk.policy_id in self._replaced:
                self._replaced.remove(chunk.policy_id)  # it is back after the newer fell silent
        self._policy_id, self._chunk_id = chunk.policy_id, chunk.chunk_id
        self._end_ns = chunk.end_ns
        outside = (chunk.positions < self.limits.lower) | (chunk.positions > self.limits.upper)
        self.clipped += bool(outside.any())
        self.accepted += 1
        self.strategy.add(chunk)

    def refuse(self, error: ChunkRefusedError) -> None:
        """Count a chunk that was refused before it got here."""
        self.refused[error.reason] += 1
        self.last_refusal = str(error)[:MAX_REFUSAL_CHARACTERS]

    def stop(self, reason: str) -> None:
        """Brake softly and stay there until `resume`."""
        self._stopped = reason or "stop requested"
        self.strategy.clear()

    def resume(self) -> None:
        """Follow chunks again; what came before is forgotten.

        Commands start from the measured joints again if the stop had come to rest and the arm
        has been moved since. The small error of an arm that holds its place is no reason to:
        that would be a jump of the command.
        """
        if self._stopped and self.filter.resting:
            self._start_from_measured_if_elsewhere()
        self._stopped = ""
        self.strategy.clear()

    def _start_from_measured_if_elsewhere(self) -> None:
        if self._elsewhere():
            self.filter.position = None

    def _elsewhere(self) -> str:
        """Which joint is not where it is commanded, and how far off; empty if none is."""
        if self.filter.position is None or self._measured is None:
            return ""
        lag = np.abs(self._measured - self.filter.position)
        far = lag > self.limits.velocity * self.settings.following_lag_s
        for i, name in enumerate(self.joints):
            if far[i] and name not in self.settings.gripping:
                return f"{name} is {lag[i]:.3f} from where it is held"
        return ""

    def rewind(self) -> None:
        """Take note that the clock has jumped back: what was received before counts no more.

        The arm brakes and is let go. The next chunk starts from the measured joints if they are
        elsewhere then, as in a simulation that started over.
        """
        self.strategy.clear()
        self._policy_id, self._chunk_id = None, -1
        self._replaced.clear()
        self._measured = None
        self._states.clear()
        self._away_ns = None
        self._rewound = True

    def tick(self, now_ns: int) -> Command:
        """Command of this control period; call it once per period."""
        age_s = np.inf if self._measured is None else (now_ns - self._measured_ns) / 1e9
        stale = age_s > self.settings.max_state_age_s
        if stale:
            self.strategy.clear()  # what refers to old joint states is not for the next ones
        if self._rewound and (self.filter.position is None or self.filter.resting):
            self._rewound, self._let_go = False, "the clock jumped back"
        held = self._stopped or stale or self._rewound
        target = None if held else self.strategy.target(now_ns)
        if target is None:
            self._watch(now_ns, age_s)
        else:
            self._away_ns = None
        if self.filter.position is None or self._let_go:
            waiting = self._wait(target, stale)
            if waiting is not None:
                return waiting
        if self._stopped:
            return Command(self.filter.step(None), STOPPED, self._stopped)
        if stale:
            return Command(self.filter.step(None), HOLDING, "joint states are stale")
        if target is None:
            reason = "the clock jumped back" if self._rewound else "no fresh chunk"
            return Command(self.filter.step(None), HOLDING, self._why(reason))
        return Command(self.filter.step(target), FOLLOWING, "")

    def _watch(self, now_ns: int, age_s: float) -> None:
        """Let go of an arm at rest that is moved by somebody else, or may be: nobody sees it."""
        if self._let_go or self.filter.position is None or not self.filter.resting:
            self._away_ns = None
        elif age_s > self.settings.max_state_age_s:
            # Twice: by then an arm that lags behind its commands has come to rest as well.
            if age_s > 2 * self.settings.max_state_age_s:
                self._let_go = "joint states were missing"
        elif away := self._elsewhere():
            self._away_ns = now_ns if self._away_ns is None else self._away_ns
            if now_ns - self._away_ns >= MOVED_AFTER_S * 1e9:
                self._let_go = f"{away}: it was moved, or cannot get there"
        else:
            self._away_ns = None

    def _wait(self, target: np.ndarray | None, stale: bool) -> Command | None:
        """Why commands do not start, or None: they start where the arm is."""
        if self._stopped:
            reason = f"{self._stopped}; {self._let_go}" if self._let_go else self._stopped
            return Command(None, STOPPED, reason)
        if self._measured is None:
            return Command(None, WAITING, "no joint states yet")
        if stale:
            return Command(None, WAITING, "joint states are stale")
        outside = self._outside(self._measured)
        if outside:
            return Command(None, WAITING, self._why(outside))
        if target is None:
            none = "no fresh chunk" if self.accepted else "no chunk yet"
            return Command(None, WAITING, self._why(self._let_go or none))
        self._start_from_measured_if_elsewhere()
        if self.filter.position is None:
            self.filter.reset(self._measured)
        self._let_go, self._away_ns = "", None
        return None

    def _outside(self, measured: np.ndarray) -> str:
        """What is wrong with starting here; a little outside is where gravity leaves an arm."""
        for i, name in enumerate(self.joints):
            lower, upper = self.limits.lower[i], self.limits.upper[i]
            slack = START_SLACK * (upper - lower)
            if not lower - slack <= measured[i] <= upper + slack:
                return (
                    f"{name} is at {measured[i]:.3f}, outside its limits {lower:.3f} to "
                    f"{upper:.3f}; move it back by hand"
                )
        return ""

    def _why(self, text: str) -> str:
        return f"{text}; last refused: {self.last_refusal}" if self.last_refusal else text

    def _check(self, chunk: TimedChunk, now_ns: int, random_weights: bool) -> None:
        settings = self.settings
        if random_weights and not settings.random_weights_allowed:
            raise ChunkRefusedError(
                "random weights",
                "chunk of random weights, which must not move a robot",
            )
        if chunk.positions.shape[1] != len(self.joints) or not np.isfinite(chunk.positions).all():
            raise ChunkRefusedError("not finite", "chunk positions do not fit or are not finite")
        if chunk.policy_id == self._policy_id and chunk.chunk_id <= self._chunk_id:
            raise ChunkRefusedError(
                "order", f"chunk {chunk.chunk_id} came after {self._chunk_id} of the same policy"
            )
        if chunk.policy_id in self._replaced and now_ns < self._end_ns:
            raise ChunkRefusedError(
                "two policies",
                f"policy {chunk.policy_id} was replaced by {self._policy_id}, which is still "
                "followed; end one of the two",
            )
        age_s = (now_ns - chunk.start_ns) / 1e9
        if age_s > settings.max_chunk_age_s or now_ns >= chunk.end_ns:
            raise ChunkRefusedError("stale", f"chunk is {age_s:.2f} s old")
        if -age_s > settings.max_future_s:
            raise ChunkRefusedError("future", f"chunk starts {-age_s:.2f} s in the future")
