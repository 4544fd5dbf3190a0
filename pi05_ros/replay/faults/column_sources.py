"""Columns that hold another joint's values, and chunks that start from the wrong place."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pi05_ros.replay.faults.windows import BAD, Hypothesis, Windows, explained

ALIKE = 0.1
"""Relative error up to which a column is taken for that of another joint."""


def source_faults(w: Windows, base: np.ndarray) -> Iterator[Hypothesis]:
    """Columns in another order, or one in place of another, of positions or of motions."""
    bad = [j for j in range(len(base)) if base[j] > BAD]
    moves = w.moves
    for about, word in ((np.zeros_like(w.state), "holds"), (w.state, "moves as")):
        chunks, done = w.chunks - about[:, None], w.slice() - about[:, None]
        # [chunk column, joint]: how far the column is from what the joint did.
        away = np.nanmean(
            np.minimum(((chunks[..., :, None] - done[..., None, :]) / w.motion) ** 2, 25.0),
            axis=(0, 1),
        )
        away[:, ~moves] = np.inf
        order: dict[int, int] = {}
        for j in bad:
            i = int(np.argmin(away[j]))
            if i != j and away[j, i] < ALIKE:
                order[j] = i
        if not order:
            continue
        order = _exchange(order, away) or order
        sources = list(order.values())
        errors = base.copy()
        for j, i in order.items():
            errors[j] = away[j, i]
        names = tuple(w.names[j] for j in order)
        shown = ", ".join(f"{w.names[j]} {word} {w.names[i]}" for j, i in order.items())
        if set(sources) == set(order) and len(set(sources)) == len(sources):
            if len(order) > 2 or word == "moves as":  # two are `swapped_columns`
                yield Hypothesis(
                    "swapped_columns" if len(order) == 2 else "column_order",
                    f"columns are in another order: {shown}",
                    names,
                    float(len(order)),
                    errors,
                )
        else:
            text = f"one column stands for another: {shown}"
            yield Hypothesis("repeated_column", text, names, float(len(order)), errors)


def _exchange(order: dict[int, int], away: np.ndarray) -> dict[int, int] | None:
    """The same columns in another order, if that is possible: joints may move alike."""
    columns = list(order)
    fits = {j: [i for i in columns if i != j and away[j, i] < ALIKE] for j in columns}
    taken: dict[int, int] = {}  # source -> column

    def place(j: int, seen: set[int]) -> bool:
        for i in sorted(fits[j], key=lambda i: float(away[j, i])):
            if i not in seen:
                seen.add(i)
                if i not in taken or place(taken[i], seen):
                    taken[i] = j
                    return True
        return False

    if not all(place(j, set()) for j in columns):
        return None
    return {j: i for i, j in sorted(taken.items(), key=lambda pair: pair[1])}


def base_faults(w: Windows, base: np.ndarray) -> Iterator[Hypothesis]:
    """Relative actions that were added to the wrong place."""
    state = w.state[:, None]
    bad = [j for j in range(len(base)) if base[j] > BAD]
    motion = w.chunks - state
    steps = np.diff(motion, axis=1, prepend=0.0)
    for kind, text, corrected in (
        (
            "cumulated_delta",
            "{} is relative to the state and was added up step by step",
            state + steps,
        ),
        (
            "step_delta",
            "{} is relative to the step before and was added to the state",
            state + np.cumsum(motion, axis=1),
        ),
    ):
        yield from _where(w, base, kind, text, 1.0, corrected, 0)
    for j in bad:
        for i in range(len(w.names)):
            differ = w.state[:, i] - w.state[:, j]
            if i == j or np.abs(w.state[:, i]).max() < 0.05 or np.abs(differ).max() < 1e-3:
                continue
            corrected = w.chunks.copy()
            corrected[..., j] -= differ[:, None]
            after = w.errors(corrected)[j]
            if explained(base[j], after):
                errors = base.copy()
                errors[j] = after
                text = f"{w.names[j]} starts from the state of {w.names[i]}"
                yield Hypothesis(
                    "wrong_base", text, (w.names[j],), float(np.median(differ)), errors, 2
                )
    start = w.chunks[:, :1] - w.slice()[:, :1]
    number = float(np.nanmedian(np.abs(start[..., bad]))) if len(bad) else 0.0
    text = "the motion of {} is right and starts from another place"
    yield from _where(w, base, "wrong_base", text, number, w.chunks - start, 3)


def _where(
    w: Windows,
    base: np.ndarray,
    kind: str,
    text: str,
    number: float,
    corrected: np.ndarray,
    fitted: int,
) -> Iterator[Hypothesis]:
    """The fault in every column where it explains something."""
    better = w.errors(corrected)
    hit = [j for j in range(len(w.names)) if explained(base[j], better[j])]
    if hit:
        errors = base.copy()
        errors[hit] = better[hit]
        names = tuple(w.names[j] for j in hit)
        yield Hypothesis(kind, text.format(", ".join(names)), names, number, errors, fitted)
