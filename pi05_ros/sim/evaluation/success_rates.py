"""Success rates with their intervals, and the tables that `pi05 eval` writes."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from pi05_ros.sim.evaluation.setting import Setting
from pi05_ros.tables import markdown_table


@dataclass(frozen=True)
class Rate:
    """Successes of one group of episodes with Wilson's 95 % interval."""

    successes: int
    episodes: int

    @property
    def rate(self) -> float:
        """Share of successes, NaN without episodes."""
        return self.successes / self.episodes if self.episodes else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson score interval at 95 %."""
        if not self.episodes:
            return math.nan, math.nan
        found = binomtest(self.successes, self.episodes).proportion_ci(0.95, method="wilson")
        return float(found.low), float(found.high)


MEASURES = (
    "seam_mean", "seam_max", "kick_mean", "boundary_step_mean", "boundary_step_max",
    "inner_step_mean", "acceleration_mean", "acceleration_max", "jerk_mean", "jerk_max",
)  # fmt: skip
"""Of `Result`, in the order of a summary."""


def write_csv(rows: Sequence[dict[str, object]], path: Path) -> None:
    """All episodes, one per line."""
    with path.open("w", newline="", encoding="utf-8") as file:
        names = dict.fromkeys(name for row in rows for name in row)
        writer = csv.DictWriter(file, fieldnames=list(names))
        writer.writeheader()
        writer.writerows(rows)


def summarize(rows: Sequence[dict[str, object]]) -> list[dict[str, object]]:
    """One entry per setting, task and prompt, in order of appearance."""
    names = [item.name for item in fields(Setting)] + ["task", "prompted"]
    groups: dict[tuple[object, ...], list[dict[str, object]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return [
        {**dict(zip(names, key, strict=True)), **_group(members)}
        for key, members in groups.items()
    ]


def _group(members: Sequence[dict[str, object]]) -> dict[str, object]:
    def mean(name: str) -> float:
        return sum(float(str(row.get(name, "nan"))) for row in members) / len(members)

    def largest(name: str) -> float:
        return max(float(str(row.get(name, "nan"))) for row in members)

    rate = Rate(sum(bool(row["success"]) for row in members), len(members))
    wrong = sum(
        any(name != row["prompted"] for name in str(row["done"]).split("+") if name)
        for row in members
    )
    low, high = rate.interval
    return {
        "episodes": rate.episodes,
        "success": rate.rate,
        "low95": low,
        "high95": high,
        "unasked_tasks_done": wrong,
        "steps_mean": mean("steps"),
        "fresh_share": mean("fresh") / max(mean("inferences"), 1e-9),
        **{name: (largest if name.endswith("_max") else mean)(name) for name in MEASURES},
    }


def markdown(summary: Sequence[dict[str, object]], setting_type: type[Setting] = Setting) -> str:
    """Table for people, one line per entry of `summarize`."""
    head = (
        "setting",
        "task",
        "prompt",
        "episodes",
        "success",
        "95 %",
        "unasked",
        "steps",
        "fresh KV",
        f"seam mean / max, kick [{setting_type.UNIT}]",
    )
    table: list[Sequence[object]] = []
    for entry in summary:
        values: dict[str, Any] = {f.name: entry[f.name] for f in fields(setting_type)}
        setting = setting_type(**values)
        cells = [
            setting.label,
            entry["task"],
            "same" if entry["task"] == entry["prompted"] else entry["prompted"],
            entry["episodes"],
            f"{entry['success']:.3f}",
            f"{entry['low95']:.3f} to {entry['high95']:.3f}",
            entry["unasked_tasks_done"],
            f"{entry['steps_mean']:.1f}",
            f"{entry['fresh_share']:.2f}",
            f"{entry['seam_mean']:.4f} / {entry['seam_max']:.3f}, {entry['kick_mean']:.4f}",
        ]
        table.append(cells)
    return markdown_table(head, table)


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Exact two-sided p-value that two settings differ, from successes on the same seeds."""
    only_a = sum(x and not y for x, y in zip(a, b, strict=True))
    only_b = sum(y and not x for x, y in zip(a, b, strict=True))
    discordant = only_a + only_b
    return float(binomtest(only_a, discordant).pvalue) if discordant else 1.0
