"""A promise of the documentation, how it went, and the table of all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any, Generic, TypeVar

from pi05_ros.tables import markdown_table

NODE, EXECUTOR = "docs/node.md", "docs/executor.md"
CHUNK, STATUS = "msg/ActionChunk.msg", "msg/PolicyStatus.msg"
EXECUTOR_STATUS, TIMINGS = "msg/ExecutorStatus.msg", "msg/InferenceTimings.msg"
R = TypeVar("R")


class PromiseOutcome(str, Enum):
    """What came of a check; "not applicable" is what could not be seen in this run."""

    PASS = "pass"
    FAIL = "fail"
    NONE = "not applicable"


@dataclass(frozen=True)
class Promise:
    """One sentence of the documentation.

    Attributes:
        name: short and unique.
        page: file in the repository.
        heading: above the sentence; empty in message files.
        sentence: as it stands there, without line breaks.

    """

    name: str
    page: str
    heading: str
    sentence: str


@dataclass(frozen=True)
class Verdict:
    """PromiseOutcome and what was seen."""

    outcome: PromiseOutcome
    seen: str


@dataclass(frozen=True)
class PromiseFinding:
    """A promise, whose it is, and the verdict."""

    target: str
    promise: Promise
    verdict: Verdict

    def row(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"target": self.target, **asdict(self.promise),
                "outcome": self.verdict.outcome.value, "seen": self.verdict.seen}  # fmt: skip


def passed(seen: str) -> Verdict:
    """It was kept."""
    return Verdict(PromiseOutcome.PASS, seen)


def failed(seen: str) -> Verdict:
    """It was broken."""
    return Verdict(PromiseOutcome.FAIL, seen)


def absent(why: str) -> Verdict:
    """It could not be seen."""
    return Verdict(PromiseOutcome.NONE, why)


def none_of(broken: Sequence[str], count: int, what: str) -> Verdict:
    """Failed with the first of what is broken, passed if nothing is and something was there."""
    if broken:
        return failed(f"{len(broken)} of {count} {what}: {broken[0]}")
    return passed(f"{count} {what}") if count else absent(f"no {what}")


class Checks(Generic[R]):
    """Checks of one kind of record, each with its promise; `add` is a decorator."""

    def __init__(self) -> None:
        self._checks: list[tuple[Promise, Callable[[R], Verdict]]] = []

    def add(
        self, name: str, page: str, heading: str, sentence: str
    ) -> Callable[[Callable[[R], Verdict]], Callable[[R], Verdict]]:
        """Register the decorated function as the check of this promise."""

        def register(check: Callable[[R], Verdict]) -> Callable[[R], Verdict]:
            self._checks.append((Promise(name, page, heading, sentence), check))
            return check

        return register

    @property
    def promises(self) -> list[Promise]:
        """All that are checked."""
        return [promise for promise, _ in self._checks]

    def judge(self, target: str, record: R) -> list[PromiseFinding]:
        """Run all checks on what was recorded."""
        return [PromiseFinding(target, promise, check(record)) for promise, check in self._checks]


def table(findings: Sequence[PromiseFinding]) -> str:
    """Markdown table, failures first."""
    order = [PromiseOutcome.FAIL, PromiseOutcome.NONE, PromiseOutcome.PASS]
    rows = [
        (
            finding.verdict.outcome.value,
            finding.promise.name,
            f"{finding.promise.page}: {finding.promise.heading}".rstrip(": "),
            finding.verdict.seen,
        )
        for finding in sorted(findings, key=lambda item: order.index(item.verdict.outcome))
    ]
    return markdown_table(("outcome", "check", "promised in", "seen"), rows)


def totals(findings: Sequence[PromiseFinding]) -> dict[str, int]:
    """How many of each outcome."""
    return {
        outcome.value: sum(finding.verdict.outcome is outcome for finding in findings)
        for outcome in PromiseOutcome
    }
