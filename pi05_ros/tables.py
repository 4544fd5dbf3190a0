"""Markdown tables, as all reports write them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(
    header: Sequence[str], rows: Iterable[Sequence[object]], *, right: bool = False
) -> str:
    """Table with a line per row; ends with a newline.

    Args:
        header: one cell per column.
        rows: cells; None is an empty cell, ``|`` is escaped.
        right: align all columns but the first to the right.

    """
    lines = [_line(header)]
    rest = "---:" if right else "---"
    lines.append("|" + "|".join(["---", *[rest] * (len(header) - 1)]) + "|")
    lines += [_line(row) for row in rows]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[object]) -> str:
    texts = ("" if cell is None else str(cell).replace("|", "\\|") for cell in cells)
    return "| " + " | ".join(texts) + " |"
