"""Show a report of `pi05 bench model`: table, markdown, image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pi05_ros.tables import markdown_table

ORDER = (
    "H2D",
    "preprocess",
    "vision per camera",
    "vision",
    "prefill",
    "denoise per step",
    "denoise",
    "denoise guided",
    "D2H",
    "graph",
    "graph monitored",
    "total",
    "wall",
    "overlap period",
    "overlap latency",
)
COLUMNS = ("stage", "p50 ms", "mean", "std", "p99", "floor ms", "of floor")


def title(report: dict[str, Any], result: dict[str, Any]) -> str:
    """One line naming the workload."""
    w, p = result["workload"], report["precision"]
    return (
        f"{w['views']} views, {w['tokens']} tokens, H {w['horizon']}, {w['steps']} steps; "
        f"vision {p['vision']}, prefill {p['prefill']}, denoise {p['denoise']}"
    )


def rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Cells of one workload's table."""
    out: list[tuple[str, ...]] = []
    for name in ORDER:
        t = result["times_ms"].get(name)
        if t is None:
            continue
        floor = result["floor_ms"].get(name)
        out.append(
            (
                name,
                f"{t['p50']:.3f}",
                f"{t['mean']:.3f}",
                f"{t['std']:.3f}",
                f"{t['p99']:.3f}",
                "" if floor is None else f"{floor:.2f}",
                "" if floor is None else f"{100 * floor / t['p50']:.0f} %",
            )
        )
    return out


def summary(report: dict[str, Any]) -> str:
    """Device, readiness, memory, eager ratio."""
    lines = [
        f"{report['device']}, torch {report['torch']}, weights: {report['weights']}, "
        f"tuning {report['tuning']}, {report['runs']} runs",
        f"ready in {report['ready_s']:.1f} s, peak memory {report['peak_memory_gb']:.2f} GB",
    ]
    if report.get("eager_ms"):
        lines.append(
            f"plain model (BF16, eager): {report['eager_ms']['p50']:.1f} ms; "
            f"this backend is {report['speedup']:.1f} times as fast"
        )
    return "\n".join(lines)


def console(report: dict[str, Any]) -> None:
    """Print tables with rich."""
    from rich.console import Console
    from rich.table import Table

    screen = Console()
    for result in report["results"]:
        table = Table(title=title(report, result))
        for column in COLUMNS:
            table.add_column(column, justify="left" if column == "stage" else "right")
        for cells in rows(result):
            table.add_row(*cells)
        screen.print(table)
    screen.print(summary(report))


def markdown(report: dict[str, Any]) -> str:
    """Report as markdown tables."""
    parts = [summary(report).replace("\n", "  \n")]
    for result in report["results"]:
        parts.append(f"\n**{title(report, result)}**\n")
        parts.append(markdown_table(COLUMNS, rows(result)).rstrip("\n"))
    return "\n".join(parts) + "\n"


STAGE_COLOURS = {
    "preprocess": "#7f7f7f",
    "vision": "#4c78a8",
    "prefill": "#f2a541",
    "denoise": "#59a14f",
}
STEP_COLOURS = ("#4c78a8", "#e45756", "#59a14f", "#b279a2", "#9d755d")


def plot(report: dict[str, Any], path: Path) -> None:
    """Stacked stage bars per workload beside the spread of the whole graph's latency."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (bars, spread) = pyplot.subplots(
        1, 2, figsize=(11, 4.6), gridspec_kw={"width_ratios": (1, 1.25)}
    )
    results = report["results"]
    _stage_bars(bars, results)
    _latency_spread(spread, results)
    w, p = results[0]["workload"], report["precision"]
    figure.suptitle(
        f"{report['device']}, {w['views']} views, {w['tokens']} tokens, H {w['horizon']}; "
        f"vision {p['vision']}, prefill {p['prefill']}, denoise {p['denoise']}",
        fontsize=11,
    )
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _steps(result: dict[str, Any]) -> str:
    n = result["workload"]["steps"]
    return f"{n} step" if n == 1 else f"{n} steps"


def _stage_bars(axes: Any, results: list[dict[str, Any]]) -> None:
    """Milliseconds of each stage on top of each other, the floor as marks beside each bar."""
    labels = [_steps(r) for r in results]
    bottom = [0.0] * len(labels)
    for stage, color in STAGE_COLOURS.items():
        heights = [r["times_ms"][stage]["p50"] for r in results]
        axes.bar(labels, heights, 0.6, bottom=bottom, label=stage, color=color)
        for x, (low, high) in enumerate(zip(bottom, heights, strict=True)):
            if high > 0.06 * max(r["times_ms"]["graph"]["p50"] for r in results):
                axes.text(x, low + high / 2, f"{high:.2f}", ha="center", va="center", color="w")
        bottom = [low + high for low, high in zip(bottom, heights, strict=True)]
    for x, (result, top) in enumerate(zip(results, bottom, strict=True)):
        total = result["times_ms"]["total"]["p50"]
        axes.text(x, top, f"total {total:.2f}", ha="center", va="bottom")
        floor = result["floor_ms"]["graph"]  # beside the bar, not through its numbers
        ends = [x - 0.44, x + 0.31], [x - 0.31, x + 0.44]
        axes.hlines([floor] * 2, *ends, "k", linewidth=2, label="" if x else "floor")
    axes.set_ylim(0, 1.12 * max(bottom))
    axes.set_ylabel("ms, p50")
    axes.set_title("stages", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper left")


def _latency_spread(axes: Any, results: list[dict[str, Any]]) -> None:
    """Share of replays by their distance from the median, microseconds."""
    distances = [
        [1e3 * (t - r["times_ms"]["graph"]["p50"]) for t in r["histogram"]] for r in results
    ]
    merged = sorted(d for row in distances for d in row)
    last = len(merged) - 1
    low, high = merged[round(0.02 * last)], merged[round(0.98 * last)]
    edges = [low + (high - low or 1.0) * i / 40 for i in range(41)]
    for result, row, color in zip(results, distances, STEP_COLOURS * 9, strict=False):
        t = result["times_ms"]["graph"]
        axes.hist(
            [min(max(d, edges[0]), edges[-1]) for d in row],
            bins=edges,
            weights=[100.0 / len(row)] * len(row),
            histtype="stepfilled",
            facecolor=(*_rgb(color), 0.25),
            edgecolor=color,
            label=f"{_steps(result)}: p50 {t['p50']:.3f}, p99 {t['p99']:.3f} ms",
        )
    axes.set_xlabel("graph replay, microseconds from its median (ends hold what lies beyond)")
    axes.set_ylabel("% of replays")
    axes.set_title("latency", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)


def _rgb(color: str) -> tuple[float, float, float]:
    red, green, blue = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue
