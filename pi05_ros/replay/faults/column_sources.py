"""Columns that hold another joint's values, and chunks that start from the wrong place."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pi05_ros.replay.faults.windows import BAD, CAP, Hypothesis, Windows, explained, where

ALIKE = 0.1
"""Relative error up to which a column is taken for that of another joint."""
STAY = 0.02
"""So much better another joint must fit before a column is taken from its own."""


def source_faults(w: Windows, base: np.ndarray) -> Iterator[Hypothesis]:
    """Columns in another order, or one in place of another, of positions or of motions."""
    bad = [j for j in range(len(base)) if base[j] > BAD]
    for about, word in ((np.zeros_like(w.state), "holds"), (w.state, "moves as")):
        chunks, done = w.chunks - about[:, None], w.slice() - about[:, None]
        away, turned = _away(w, chunks, done), _away(w, -chunks, done)
        yield from _orders(w, base, away, turned, word)
        yield from _repeated(w, base, bad, away, word)


def _away(w: Windows, chunks: np.ndarray, done: np.ndarray) -> np.ndarray:
    """How far each column of the chunks is from what each joint did `[column, joint]`."""
    off = np.minimum(((chunks[..., :, None] - done[..., None, :]) / w.motion) ** 2, CAP)
    return np.asarray(np.nanmean(off, axis=(0, 1)))


def _orders(
    w: Windows, base: np.ndarray, away: np.ndarray, turned: np.ndarray, word: str
) -> Iterator[Hypothesis]:
    """Each joint once, in another order; then also with signs reversed."""
    for signs in (False, True):
        off = np.minimum(away, turned) if signs else away
        order = _arrangement(off, base)
        # A joint that stands still is no evidence.
        told = [j for j, i in order.items() if base[j] > BAD and w.moves[i]]
        back = [j for j, i in order.items() if turned[j, i] < min(away[j, i], ALIKE)]
        if len(told) < 2 or signs != bool(back):
            continue
        if len(order) == 2 and word == "holds" and not signs:
            continue  # that is `swapped_columns` of the pairs
        errors = base.copy()
        for j, i in order.items():
            errors[j] = off[j, i]
        names = tuple(w.names[j] for j in order)
        shown = ", ".join(
            f"{w.names[j]} {word} {'minus ' * (signs and j in back)}{w.names[i]}"
            for j, i in order.items()
        )
        kind = "swapped_columns" if len(order) == 2 else "column_order"
        what = "another order and of the other sign" if signs else "another order"
        text = f"columns are in {what}: {shown}"
        yield Hypothesis(kind, text, names, float(len(order)), errors)


def _arrangement(off: np.ndarray, base: np.ndarray) -> dict[int, int]:
    """Column -> joint where each joint has one column and fits; only what changes place."""
    count = len(base)
    fits: dict[int, list[int]] = {}
    for j in range(count):
        limit = [max(ALIKE, BAD) if i == j else ALIKE for i in range(count)]
        near = [i for i in range(count) if off[j, i] < limit[i]]
        cost = {i: float(off[j, i]) + STAY * (i != j) for i in near}
        fits[j] = sorted(near, key=cost.__getitem__)
    taken: dict[int, int] = {}  # joint -> column

    def place(j: int, seen: set[int]) -> bool:
        for i in fits[j]:
            if i not in seen:
                seen.add(i)
                if i not in taken or place(taken[i], seen):
                    taken[i] = j
                    return True
        return False

    if not all(place(j, set()) for j in sorted(range(count), key=lambda j: float(base[j]))):
        return {}
    return {j: i for i, j in sorted(taken.items(), key=lambda pair: pair[1]) if i != j}


def _repeated(
    w: Windows, base: np.ndarray, bad: list[int], away: np.ndarray, word: str
) -> Iterator[Hypothesis]:
    """One joint in place of another, which then is nowhere."""
    away = np.where(w.moves, away, np.inf)
    order = {}
    for j in bad:
        i = int(np.argmin(away[j]))
        if i != j and away[j, i] < ALIKE:
            order[j] = i
    sources = list(order.values())
    if not order or (set(sources) == set(order) and len(set(sources)) == len(sources)):
        return
    errors = base.copy()
    for j, i in order.items():
        errors[j] = away[j, i]
    names = tuple(w.names[j] for j in order)
    shown = ", ".join(f"{w.names[j]} {word} {w.names[i]}" for j, i in order.items())
    text = f"one column stands for another: {shown}"
    yield Hypothesis("repeated_column", text, names, float(len(order)), errors)


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
        yield from where(w, base, kind, text, 1.0, corrected, 0)
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
    text = (
        "the motion of {} is right and starts from another place: relative actions are added to "
        "another state, or the policy is shown one that is old"
    )
    yield from where(w, base, "wrong_base", text, number, w.chunks - start, 3)
