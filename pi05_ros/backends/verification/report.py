"""A check for people: Markdown with the verdict first, and two plots."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.files import write_atomically
from pi05_ros.backends.verification.verify import Report
from pi05_ros.tables import markdown_table


def _number(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _table(rows: list[dict[str, Any]], columns: list[str]) -> list[str]:
    cells = ([_number(row.get(name)) for name in columns] for row in rows)
    return markdown_table(columns, cells).splitlines()


def markdown(report: Report, facts: dict[str, Any]) -> str:
    """The report as text.

    Args:
        report: result of `verify.check_engine`.
        facts: what was checked where: shown as a list.

    """
    failed = report.failures
    lines = [
        f"# Check of backend {report.backend}: {'passed' if report.ok else 'REFUSED'}",
        "",
        f"{report.samples} observations, {report.flow_steps} flow steps, precision "
        + ", ".join(f"{stage} {word}" for stage, word in report.precision.items())
        + ". Reference: the same checkpoint in float32 on torch. `fake` is the same quantization "
        "simulated in torch; `ratio` is engine error over simulated error.",
        "",
        *(f"- {name}: {_number(value)}" for name, value in facts.items()),
        "",
    ]
    if failed:
        lines += ["## What refused it", ""]
        lines += _table(
            [f.as_dict() for f in failed[:40]],
            ["item", "value", "limit"],
        )
        lines.append("")
    warned = [f for f in report.findings if not f.ok and f.level == "warn"]
    if warned:
        lines += ["## Warnings", ""]
        lines += _table([f.as_dict() for f in warned[:40]], ["item", "value", "limit"])
        lines.append("")
    lines += ["## Actions, chained", ""]
    lines += _table(
        report.actions, ["name", "cosine", "relative", "fake_relative", "mean_abs", "max_abs"]
    )
    lines += ["", "## Keys and values by layer, isolated", ""]
    columns = ["cosine", "relative", "fake_relative", "ratio", "max_abs"]
    lines += _table(report.layers, ["layer", "tensor", *columns])
    lines += ["", "## Denoise by flow step, isolated", ""]
    lines += _table(report.steps, ["step", *columns])
    if report.inspector:
        lines += ["", "## Layers of the engines", ""]
        rows = [{"stage": stage, **found} for stage, found in report.inspector.items()]
        columns = ["stage", "layers", "quantized", "expected"]
        lines += _table(rows, [*columns, "attentions", "fused_attentions", "copies"])
    lines += ["", "## Limits", ""]
    lines += [f"- {name}: {value}" for name, value in report.as_dict()["thresholds"].items()]
    return "\n".join(lines) + "\n"


def _plot(report: Report, folder: Path) -> list[str]:
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.6))
    for name in ("keys", "values"):
        rows = [row for row in report.layers if row["tensor"] == name]
        left.plot(
            [row["layer"] for row in rows],
            [1 - (row["cosine"] if row["cosine"] is not None else math.nan) for row in rows],
            marker="o",
            label=name,
        )
    left.set_yscale("symlog", linthresh=1e-6)
    left.set(xlabel="layer", ylabel="1 - cosine (worst sample)", title="prefill, isolated")
    left.legend()
    for key, label in (("relative", "engine"), ("fake_relative", "simulated")):
        values = [row[key] if row[key] is not None else math.nan for row in report.steps]
        right.plot([row["step"] for row in report.steps], values, marker="o", label=label)
    right.set(xlabel="flow step", ylabel="relative error", title="denoise, isolated")
    right.legend()
    figure.tight_layout()
    figure.savefig(folder / "check.png", dpi=110)
    pyplot.close(figure)
    return ["check.png"]


def write_files(report: Report, folder: Path, facts: dict[str, Any]) -> Path:
    """Write ``check.md`` and its plots; returns the Markdown file.

    Raises:
        BackendError: the folder cannot be written.

    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = markdown(report, facts)
        for name in _plot(report, folder):
            text += f"\n![layers and steps]({name})\n"
    except OSError as error:
        raise BackendError(f"cannot write the report into {folder}: {error}") from None
    write_atomically(folder / "check.md", text.encode())
    return folder / "check.md"


def write_json(report: Report, path: Path, facts: dict[str, Any]) -> None:
    """Write the numbers for programs."""
    content = {**report.as_dict(), "facts": facts}
    write_atomically(path, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())
