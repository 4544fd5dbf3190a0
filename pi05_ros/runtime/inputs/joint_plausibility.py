"""Whether two measured values of a joint can both be true: jumps and publishers that disagree."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

NS = 1_000_000_000
MAX_SPEED = 10.0  # rad/s or m/s; no arm in use is faster
SLACK = 0.05  # rad or m: noise and coarse encoders
WINDOW_NS = NS  # a publisher that was silent for longer disagrees with nobody
RETURNS = 3  # jumps there and back within WINDOW_NS that make a conflict
_TURNS = (0.0, 2 * math.pi, 360.0)  # a joint at the seam of its turn has not moved


@dataclass(frozen=True)
class JointConflict:
    """Two publishers that disagree about one joint.

    Attributes:
        joint: its name.
        values: the two positions.
        publishers: their ids as given to `offer`; None where unknown.

    """

    joint: str
    values: tuple[float, float]
    publishers: tuple[str | None, str | None]

    def __str__(self) -> str:
        a, b = self.values
        known = [publisher for publisher in self.publishers if publisher]
        who = f" ({' and '.join(known)})" if len(set(known)) == 2 else ""
        return (
            f"joint states disagree about {self.joint}: {a:.3f} and {b:.3f} in turn; two "
            f"publishers{who}"
        )


@dataclass(frozen=True)
class JointValue:
    """One measured value of a joint and who sent it."""

    position: float
    velocity: float
    stamp_ns: int
    publisher: str | None


@dataclass
class WatchedJoint:
    """One joint: its accepted value and the one before the last jump (or not believed yet)."""

    name: str
    max_speed: float
    value: JointValue | None = None
    other: JointValue | None = None
    unit: float = 1.0  # values beyond two turns are degrees or percent
    turns: bool = True  # may step by a whole turn: it is not known that it cannot
    guess_unit: bool = True
    returns: deque[int] = field(default_factory=lambda: deque(maxlen=RETURNS))
    conflict: JointConflict | None = None
    conflict_ns: int = 0

    def near(self, a: JointValue, b: JointValue) -> bool:
        """Whether the joint can have been at both values."""
        apart = abs(a.position - b.position)
        seconds = abs(a.stamp_ns - b.stamp_ns) / NS
        allowed = self.unit * (SLACK + self.max_speed * seconds)
        turns = _TURNS if self.turns else _TURNS[:1]
        return any(abs(apart - turn) <= allowed for turn in turns)

    def judge(self, kept: JointValue, new: JointValue, late: bool, now_ns: int) -> None:
        """Note a conflict if the joint goes to and fro faster than it can move."""
        other = self.other
        strangers = None not in (new.publisher, kept.publisher) and new.publisher != kept.publisher
        alive = abs(new.stamp_ns - kept.stamp_ns) <= WINDOW_NS
        back = (
            other is not None
            and abs(new.stamp_ns - other.stamp_ns) <= WINDOW_NS
            and kept.stamp_ns >= other.stamp_ns  # heard since: not a single move elsewhere
            and self.near(new, other)
        )
        if not alive or not (strangers or back or late):
            return
        self.returns.append(now_ns)
        first = self.returns[0]
        if strangers or (len(self.returns) == RETURNS and abs(now_ns - first) <= WINDOW_NS):
            self.conflict_ns = now_ns
            self.conflict = JointConflict(
                self.name,
                (kept.position, new.position),
                (kept.publisher, new.publisher),
            )
