"""Settings against the first one on the same episodes: the paired test of `pi05 eval`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

from pi05_ros.sim.evaluation.setting import Setting
from pi05_ros.sim.evaluation.success_rates import mcnemar
from pi05_ros.tables import markdown_table

Z95 = 1.959964
Row = dict[str, object]
FEW = 10
"""Discordant pairs below which half a pair is added to each of the four cells (Agresti, Min
2005): Wald's own interval shrinks to nothing there, to +-0 points where all pairs are alike."""


@dataclass(frozen=True)
class PairedComparison:
    """One setting against the first, over the episodes (task, seed) that both have.

    Attributes:
        setting: label of the setting, all tasks together.
        pairs: episodes in common.
        success: share of successes among them.
        fresh_share: inferences with a KV cache of their own over all inferences.
        gained: done here and not under the first setting; ``lost``: the other way round.
        difference: points (per cent) above the first setting, ``low95`` to ``high95``: its 95 %
            interval from the discordant pairs (Wald; see `FEW`); all 0 for the first setting.
        p: exact McNemar test, two-sided; 1 for the first setting itself.

    """

    setting: str
    pairs: int
    success: float
    fresh_share: float
    gained: int
    lost: int
    difference: float
    low95: float
    high95: float
    p: float

    def row(self) -> Row:
        """Flat, for JSON."""
        return asdict(self)


def compare(rows: Sequence[Row], setting_type: type[Setting] = Setting) -> list[PairedComparison]:
    """Every setting against the first, in order of appearance; rows as `evaluate` returns them.

    Episodes with a wrong prompt are left out: success is not what is wanted there.
    """
    names = [item.name for item in fields(setting_type)]
    groups: dict[tuple[object, ...], dict[tuple[object, ...], Row]] = {}
    for row in rows:
        if row["task"] != row["prompted"]:
            continue
        episode = (row["task"], row["seed"])
        groups.setdefault(tuple(row[name] for name in names), {})[episode] = row
    first = next(iter(groups.values()), {})
    return [
        _compare(setting_type(**dict(zip(names, key, strict=True))).label, first, episodes)  # type: ignore[arg-type]
        for key, episodes in groups.items()
    ]


def _compare(
    label: str, first: dict[tuple[object, ...], Row], other: dict[tuple[object, ...], Row]
) -> PairedComparison:
    both = [episode for episode in other if episode in first]
    n = len(both)
    a = [bool(first[episode]["success"]) for episode in both]
    b = [bool(other[episode]["success"]) for episode in both]
    gained = sum(y and not x for x, y in zip(a, b, strict=True))
    lost = sum(x and not y for x, y in zip(a, b, strict=True))
    difference = (gained - lost) / n if n else math.nan
    low, high = (0.0, 0.0) if other is first else _interval(gained, lost, n)
    inferences = sum(int(str(other[episode]["inferences"])) for episode in both)
    fresh = sum(int(str(other[episode]["fresh"])) for episode in both)
    return PairedComparison(
        setting=label,
        pairs=n,
        success=sum(b) / n if n else math.nan,
        fresh_share=fresh / inferences if inferences else math.nan,
        gained=gained,
        lost=lost,
        difference=100 * difference,
        low95=100 * low,
        high95=100 * high,
        p=mcnemar(a, b),
    )


def _interval(gained: int, lost: int, n: int) -> tuple[float, float]:
    """95 % interval of (gained - lost) / n."""
    if not n:
        return math.nan, math.nan
    discordant, pairs = float(gained + lost), n
    if discordant < FEW:
        discordant, pairs = discordant + 1, pairs + 2
    center = (gained - lost) / pairs
    half = Z95 * math.sqrt(max(0.0, discordant - pairs * center**2)) / pairs
    return max(-1.0, center - half), min(1.0, center + half)


def markdown(comparisons: Sequence[PairedComparison]) -> str:
    """Table for people."""
    head = ("setting", "pairs", "success", "fresh KV", "points", "95 %", "gained / lost", "p")
    table: list[Sequence[object]] = []
    for item in comparisons:
        cells = (
            item.setting,
            item.pairs,
            f"{100 * item.success:.1f}",
            f"{item.fresh_share:.2f}",
            f"{item.difference:+.1f}",
            f"{item.low95:+.1f} to {item.high95:+.1f}",
            f"{item.gained} / {item.lost}",
            f"{item.p:.2g}",
        )
        table.append(cells)
    return markdown_table(head, table)
