"""What `pi05 bench compare` does: unpack both sides, run them in turn, keep records, judge."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pi05_ros.bench.bench_requests import CompareRequest
from pi05_ros.bench.comparison.fresh_runs import RunError, check_options, fresh_run
from pi05_ros.bench.comparison.history_file import add_to_history, read_history
from pi05_ros.bench.comparison.program_trees import ProgramTree, own_tree, program_tree
from pi05_ros.bench.comparison.ratio import Ratio, alternate, ratio_of

Runner = Callable[[ProgramTree, tuple[str, ...], str], dict[str, Any]]
DEFAULTS = ("--no-eager", "--steps", "10")
"""Options of `bench model` in front of those that are given."""


@dataclass(frozen=True)
class SideBySide:
    """Outcome: records in the order of the runs, and ratios B / A of rows of the report."""

    records: list[dict[str, Any]]
    ratios: dict[str, Ratio]
    row: str

    @property
    def ratio(self) -> Ratio:
        """Of the row that was asked for."""
        return self.ratios[self.row]

    def p50s(self, side: str) -> list[float]:
        """Medians of that row in each process of a side, ms."""
        return [r["p50_ms"][self.row] for r in self.records if r["side"] == side]


def compare(
    request: CompareRequest, say: Callable[[str], None] = print, run: Runner = fresh_run
) -> SideBySide:
    """Run A, B, A, B, ... in fresh processes; each run is in the history as soon as it ends.

    Raises:
        InvalidValueError, FileError: a side, an option or the history that cannot be used.
        RunError: a run without figures.

    """
    settings = tuple((*DEFAULTS, *request.options, *own) for own in (request.a, request.b))
    for words in settings:
        check_options(words)
    if request.history is not None:
        read_history(request.history)  # an unusable one is said before the first run
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="pi05_compare_") as folder:
        words = request.trees or (str(own_tree()),) * 2
        trees = [
            program_tree(word, Path(folder) / side) for word, side in zip(words, "ab", strict=True)
        ]
        for side, tree, own in zip("AB", trees, settings, strict=True):
            say(f"{side}: {tree.name()}, {' '.join(own)}")

        def one(index: int) -> Callable[[int], float]:
            def timed(pair: int) -> float:
                made = run(trees[index], settings[index], "AB"[index])
                if request.row not in made["p50_ms"]:
                    known = ", ".join(made["p50_ms"])
                    raise RunError(f"no row {request.row!r} in the report; there are: {known}")
                records.append(made)
                if request.history is not None:
                    add_to_history(request.history, [made])
                say(f"{pair + 1} {'AB'[index]}: {made['p50_ms'][request.row]:.3f} ms")
                return float(made["p50_ms"][request.row])

            return timed

        alternate(request.pairs, one(0), one(1))
    return SideBySide(records, _ratios(records, request.level), request.row)


def _ratios(records: list[dict[str, Any]], level: float) -> dict[str, Ratio]:
    """Of every row that all records have."""

    def times(side: list[dict[str, Any]], name: str) -> list[float]:
        return [r["p50_ms"][name] for r in side]

    sides = [[r for r in records if r["side"] == side] for side in "AB"]
    rows = [
        name for name in records[0]["p50_ms"] if all(r["p50_ms"].get(name, 0) > 0 for r in records)
    ]
    return {name: ratio_of(times(sides[0], name), times(sides[1], name), level) for name in rows}
