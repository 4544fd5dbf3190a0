"""Plots of `pi05 eval`: success against latency, delay, steps, KV reuse and missing cameras.

Each point is one setting over all tasks; bars are Wilson's 95 % interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pi05_ros.sim.evaluation.setting import Setting
from pi05_ros.sim.evaluation.success_rates import Rate

Entry = dict[str, object]
SIZE = (7.0, 4.4)
SEAM_FLOOR = 1e-3
"""Below this the seam axis is linear, so that 0 can be shown."""
WIDE = 5.0
"""Ratio of latencies from which their axis is logarithmic."""
LATENCY, REUSE, SEAM = "success_latency.png", "success_kv_reuse.png", "seam_delay.png"
CURVES = {
    "delay_ms": ("injected inference delay, ms", "success_delay.png"),
    "denoise_steps": ("denoise steps", "success_steps.png"),
    "drop_wrist": ("share of observations without the wrist image", "success_drop_wrist.png"),
}
"""What is varied -> label of its axis, file."""
_VARIED = tuple(item.name for item in fields(Setting))
_SHORT = {"denoise_steps": "steps", "kv_reuse": "KV", "drop_wrist": "drop", "delay_ms": "delay"}


@dataclass(frozen=True)
class Point:
    """One setting over all its tasks."""

    values: Entry
    rate: Rate
    seam_mean: float
    fresh_share: float
    latency_ms: float


def points(summary: Sequence[Entry]) -> list[Point]:
    """Entries of `summarize` with the right prompt, tasks put together."""
    groups: dict[tuple[object, ...], list[Entry]] = {}
    for entry in summary:
        if entry["task"] == entry["prompted"]:
            groups.setdefault(tuple(entry.get(name) for name in _VARIED), []).append(entry)
    return [_point(members) for members in groups.values()]


def _point(members: Sequence[Entry]) -> Point:
    counts = [int(_number(entry["episodes"])) for entry in members]

    def mean(name: str) -> float:
        total = sum(n * _number(e[name]) for n, e in zip(counts, members, strict=True))
        return total / max(1, sum(counts))

    done = sum(round(n * _number(e["success"])) for n, e in zip(counts, members, strict=True))
    return Point(
        values={name: members[0].get(name) for name in _VARIED},
        rate=Rate(done, sum(counts)),
        seam_mean=mean("seam_mean"),
        fresh_share=mean("fresh_share"),
        latency_ms=_number(members[0].get("latency_ms", math.nan)),
    )


def draw(summary: Sequence[Entry], out: Path) -> list[Path]:
    """Draw what the settings vary, and remove plots of it that an earlier run has left in ``out``.

    Returns the PNG files that were written.
    """
    for name in (LATENCY, REUSE, SEAM, *(file for _, file in CURVES.values())):
        (out / name).unlink(missing_ok=True)
    found = points(summary)
    made = []
    if len({p.latency_ms for p in found if math.isfinite(p.latency_ms)}) > 1:
        made.append(pareto(found, out / LATENCY))
    for name, (label, file) in CURVES.items():
        if len({p.values[name] for p in found}) > 1:
            made.append(_curves(found, name, label, _success, out / file))
    if len({p.values["delay_ms"] for p in found}) > 1:
        made.append(_curves(found, "delay_ms", CURVES["delay_ms"][0], _seam, out / SEAM))
    if len({p.values["kv_reuse"] for p in found}) > 1:
        made.append(_reuse(found, out / REUSE))
    return made


def front(found: Sequence[Point]) -> list[Point]:
    """Points that no other beats in latency and success, fastest first."""
    best: list[Point] = []
    for point in sorted(found, key=lambda p: (p.latency_ms, -p.rate.rate)):
        if not best or point.rate.rate > best[-1].rate.rate:
            best.append(point)
    return best


def pareto(found: Sequence[Point], path: Path) -> Path:
    """Success over the time of an inference, with the Pareto front."""
    from matplotlib.ticker import LogLocator, NullFormatter

    known = [point for point in found if math.isfinite(point.latency_ms)]
    figure, axes = _axes()
    best = front(known)
    # The front goes on to the right: who waits longer has at least that success.
    longest = max(p.latency_ms for p in known)
    axes.step(
        [p.latency_ms for p in best] + [longest],
        [100 * p.rate.rate for p in best] + [100 * best[-1].rate.rate],
        where="post", color="0.7", zorder=1, label="Pareto front",
    )  # fmt: skip
    for point, label in zip(known, _labels(known), strict=True):
        axes.errorbar(
            point.latency_ms, 100 * point.rate.rate, yerr=_bars([point]), marker="o", capsize=3,
            linestyle="", label=label, zorder=3 if point in best else 2,
        )  # fmt: skip
    if longest > WIDE * min(p.latency_ms for p in known):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("mean time of an inference, ms (measured alone)")
    axes.set_ylabel("success, %")
    _legend(axes)
    figure.savefig(path, dpi=120)
    return path


def _curves(
    found: Sequence[Point],
    name: str,
    label: str,
    show: Callable[[Any, Sequence[float], Sequence[Point], str], None],
    path: Path,
) -> Path:
    figure, axes = _axes()
    lines: dict[str, list[Point]] = {}
    for point, line in zip(found, _labels(found, without=name), strict=True):
        lines.setdefault(line, []).append(point)
    places = sorted({_number(p.values[name]) for p in found})
    width = (places[-1] - places[0]) / 150 if len(places) > 1 else 0.0
    for index, (line, members) in enumerate(lines.items()):
        members = sorted(members, key=lambda p: _number(p.values[name]))
        shift = width * (index - (len(lines) - 1) / 2)
        show(axes, [_number(p.values[name]) + shift for p in members], members, line)
    axes.set_xticks(places)
    axes.set_xlabel(label)
    _legend(axes)
    figure.savefig(path, dpi=120)
    return path


def _success(axes: Any, x: Sequence[float], members: Sequence[Point], line: str) -> None:
    y = [100 * p.rate.rate for p in members]
    axes.errorbar(x, y, yerr=_bars(members), marker="o", capsize=3, label=line)
    axes.set_ylabel("success, %")


def _seam(axes: Any, x: Sequence[float], members: Sequence[Point], line: str) -> None:
    axes.plot(x, [p.seam_mean for p in members], marker="o", label=line)
    axes.set_yscale("symlog", linthresh=SEAM_FLOOR)
    axes.set_ylim(0, 1.5 * max(axes.get_ylim()[1], SEAM_FLOOR))
    axes.set_ylabel("mean seam between old and new chunk")


def _reuse(found: Sequence[Point], path: Path) -> Path:
    figure, axes = _axes()
    for point, label in zip(found, _labels(found), strict=True):
        axes.errorbar(
            point.fresh_share, 100 * point.rate.rate, yerr=_bars([point]), marker="o",
            capsize=3, linestyle="", label=label,
        )  # fmt: skip
    axes.set_xlabel("share of inferences with a KV cache of their own")
    axes.set_ylabel("success, %")
    _legend(axes)
    figure.savefig(path, dpi=120)
    return path


def _axes() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.grid(alpha=0.3)
    return figure, axes


def _legend(axes: Any) -> None:
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))


def _bars(members: Sequence[Point]) -> list[list[float]]:
    """Lengths below and above, in per cent."""
    spans = [(p.rate.rate, *p.rate.interval) for p in members]
    below = [max(0.0, 100 * (rate - low)) for rate, low, _ in spans]
    return [below, [max(0.0, 100 * (high - rate)) for rate, _, high in spans]]


def _labels(found: Sequence[Point], without: str = "") -> list[str]:
    """What tells the points apart."""
    differ = [n for n in _VARIED if n != without and len({str(p.values[n]) for p in found}) > 1]
    bare = ("backend", "precision", "chunking")
    return [
        " ".join(
            str(p.values[n]) if n in bare else f"{_SHORT.get(n, n)} {p.values[n]}" for n in differ
        )
        or "all"
        for p in found
    ]


def _number(value: object) -> float:
    return float(str(value))
