"""Show a report of `pi05 bench model`: table, markdown, picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ORDER = (
    "H2D",
    "preprocess",
    "vision per camera",
    "vision",
    "prefill",
    "denoise per step",
    "denoise",
    "D2H",
    "graph",
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
        parts.append("| " + " | ".join(COLUMNS) + " |")
        parts.append("|---" * len(COLUMNS) + "|")
        parts += ["| " + " | ".join(cells) + " |" for cells in rows(result)]
    return "\n".join(parts) + "\n"


def plot(report: dict[str, Any], path: Path) -> None:
    """Stacked stage bars per workload beside a histogram of the whole graph."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (bars, histogram) = pyplot.subplots(1, 2, figsize=(11, 4))
    labels = [f"{r['workload']['steps']} steps" for r in report["results"]]
    bottom = [0.0] * len(labels)
    for stage in ("preprocess", "vision", "prefill", "denoise"):
        heights = [r["times_ms"][stage]["p50"] for r in report["results"]]
        bars.bar(labels, heights, bottom=bottom, label=stage)
        bottom = [low + high for low, high in zip(bottom, heights, strict=True)]
    bars.set_ylabel("ms")
    bars.legend()
    bars.set_title(report["device"])
    for result, label in zip(report["results"], labels, strict=True):
        histogram.hist(result["histogram"], bins=40, alpha=0.6, label=label)
    histogram.set_xlabel("graph replay, ms")
    histogram.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
