"""What was heard of one node, for the checks: messages with the time at which they came."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

NS = 1_000_000_000
DIAGNOSTICS_PERIOD_S = 1.0
# Scheduling of a busy machine: a timer of one second may come this late.
LONGEST_GAP_S = 3.0


def ns(stamp: Any) -> int:
    """Nanoseconds of a Time or Duration."""
    return int(stamp.sec) * NS + int(stamp.nanosec)


@dataclass(frozen=True)
class Heard:
    """A message, when it came (monotonic), and what the ROS clock of this process showed."""

    mono_s: float
    clock_ns: int
    message: Any

    def value(self, key: str) -> str | None:
        """Of a DiagnosticStatus: the value of a key."""
        return next((pair.value for pair in self.message.values if pair.key == key), None)

    def count(self, key: str) -> int:
        """Of a DiagnosticStatus: the value of a counter, 0 where it is absent."""
        return int(self.value(key) or 0)

    @property
    def level(self) -> int:
        """Of a DiagnosticStatus."""
        level = self.message.level
        return level[0] if isinstance(level, bytes) else int(level)


@dataclass
class NodeRecord:
    """What both nodes have.

    Attributes:
        node: fully qualified name.
        parameters: as the node's parameter service gives them.
        qos: topic -> "reliable volatile" and the like, of the node's publishers.
        seconds: how long was listened.
        statuses: PolicyStatus or ExecutorStatus.
        entries: name after the colon -> DiagnosticStatus.

    """

    node: str
    parameters: dict[str, Any] = field(default_factory=dict)
    qos: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    statuses: list[Heard] = field(default_factory=list)
    entries: dict[str, list[Heard]] = field(default_factory=dict)

    def number(self, name: str, default: float) -> float:
        """A numeric parameter."""
        value = self.parameters.get(name)
        return default if value is None else float(value)


@dataclass
class PolicyRecord(NodeRecord):
    """What a policy node said; `state` is what `~/get_state` answered in the end."""

    chunks: list[Heard] = field(default_factory=list)
    state: str = ""

    @property
    def clock_jumped(self) -> bool:
        """Whether the node counted a jump of its clock."""
        return any(item.count("clock_jumps") for item in self.entries.get("inputs", []))

    def runs(self) -> Iterator[list[Heard]]:
        """Chunks by policy_id, in the order of arrival."""
        runs: dict[str, list[Heard]] = {}
        for chunk in self.chunks:
            runs.setdefault(chunk.message.policy_id, []).append(chunk)
        yield from runs.values()

    def pairs(self) -> list[tuple[Any, Any]]:
        """Chunk messages of one policy_id that came one after the other."""
        return [(a.message, b.message) for run in self.runs() for a, b in pairwise(run)]


@dataclass(frozen=True)
class Limit:
    """Limits of one joint; None is not known."""

    lower: float | None = None
    upper: float | None = None
    velocity: float | None = None
    acceleration: float | None = None


@dataclass
class ExecutorRecord(NodeRecord):
    """What an executor said and commanded.

    `commands` has one series for each topic: (monotonic time, position by joint).
    """

    commands: dict[str, list[tuple[float, Mapping[str, float]]]] = field(default_factory=dict)
    limits: dict[str, Limit] = field(default_factory=dict)
    only_random_chunks: bool = False

    def tracks(self) -> Iterator[tuple[str, list[tuple[float, float]]]]:
        """Joint -> (time, commanded position)."""
        for series in self.commands.values():
            for joint in series[0][1] if series else ():
                yield joint, [(at, values[joint]) for at, values in series if joint in values]


def gaps(heard: Sequence[Heard]) -> list[float]:
    """Seconds between messages."""
    return [b.mono_s - a.mono_s for a, b in pairwise(heard)]
