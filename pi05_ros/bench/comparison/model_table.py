"""Table of the newest figures of each device, workload and precision in a history."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from pi05_ros.errors import InvalidValueError
from pi05_ros.small_files import read_text, write_atomically
from pi05_ros.tables import markdown_table

BEGIN = "<!-- model table: pi05 bench table -->"
END = "<!-- model table end -->"
COLUMNS = (
    "device", "views", "tokens", "H", "steps", "vision / prefill / denoise", "p50 ms", "p99 ms",
    "processes x runs", "driver, torch", "commit",
)  # fmt: skip


def render(history: list[dict[str, Any]]) -> str:
    """Markdown: a row for each device, workload and precision, from its newest sources.

    Newest are the sources whose first run came last: those of the side B that A is compared with,
    though both run in turn. Times are the median over all their processes. Runs of a commit with
    changes on top are in the history, but not in the table; a plain folder of which no commit is
    known goes by the hash of its sources.
    """
    found: dict[tuple[Any, ...], dict[str, list[dict[str, Any]]]] = {}
    for run in history:
        if not run.get("dirty"):
            key = (run["device"], run["weights"], *_workload(run), _mix(run))
            found.setdefault(key, {}).setdefault(run["sources"], []).append(run)
    newest = [list(by_sources.values())[-1] for by_sources in found.values()]
    rows = [_row(runs) for runs in sorted(newest, key=lambda runs: _place(runs[-1]))]
    return markdown_table(COLUMNS, rows)


def _place(run: dict[str, Any]) -> tuple[Any, ...]:
    views, tokens, horizon, steps = _workload(run)
    return run["device"], _mix(run), -steps, -horizon, views, tokens, run["weights"]


def _workload(run: dict[str, Any]) -> tuple[int, int, int, int]:
    work = run["workload"]
    return work["views"], work["tokens"], work["horizon"], work["steps"]


def _mix(run: dict[str, Any]) -> str:
    return " / ".join(run["precision"][stage] for stage in ("vision", "prefill", "denoise"))


def _row(runs: list[dict[str, Any]]) -> tuple[str, ...]:
    last = runs[-1]
    return (
        last["device"],
        *map(str, _workload(last)),
        _mix(last),
        f"{median(run['p50_ms']['total'] for run in runs):.2f}",
        f"{median(run['p99_ms']['total'] for run in runs):.2f}",
        f"{len(runs)} x {last['runs']}",
        f"{last.get('driver') or 'no driver'}, {last['torch']}",
        last["commit"][:10] if last.get("commit") else f"sources {last['sources'][:10]}",
    )


def placed(page: str, table: str, where: str = "the page") -> str:
    """The page with the table between its two marker lines.

    Raises:
        InvalidValueError: the page does not have both markers once, in order.

    """
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in head + tail:
        raise InvalidValueError(f"{where}: one line {BEGIN} and one {END} behind it are needed")
    return f"{head}{BEGIN}\n{table}{END}{tail}"


def place_table(path: Path, table: str) -> bool:
    """Write the table into a page; whether that changed it."""
    page = read_text(path)
    new = placed(page, table, str(path))
    if new != page:
        write_atomically(path, new)
    return new != page
