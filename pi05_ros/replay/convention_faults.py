"""Which mistake in units, order or timing would explain that chunks are not what was done.

Each hypothesis corrects the chunks (sign, scale, columns, ...). The one after whose correction the
least error is left is named, if it removes most of a large error.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from pi05_ros.replay.faults.column_sources import base_faults, source_faults
from pi05_ros.replay.faults.fitted_columns import normalization_faults
from pi05_ros.replay.faults.readings import reading_faults
from pi05_ros.replay.faults.windows import (
    BAD,
    BELIEVED,
    CAP,
    EXPLAINED,
    FITTED,
    Hypothesis,
    Windows,
    explained,
    motion_of,
)

LAGS = 8
PACES = (0.2, 0.3, 1 / 3, 0.4, 0.5, 0.6, 2 / 3, 0.75, 0.8, 1.25, 4 / 3, 1.5, 5 / 3, 2.0, 2.5, 3.0)
"""Ratios of usual control rates."""
AMONG = 16
"""Of so many hypotheses two are tried together."""
PERFECT = 0.02
"""Relative error of a column below which less is no better."""
DEGREES = 180 / math.pi


def column_hypotheses(w: Windows) -> Iterator[Hypothesis]:
    """Faults of the actions, which are corrected in the chunks that are there."""
    base = w.errors(w.chunks)
    state = w.state[:, None]

    def one(
        kind: str,
        text: str,
        number: float,
        change: Callable[[np.ndarray], np.ndarray],
        among: Sequence[int],
        fitted: int = 0,
    ) -> Iterator[Hypothesis]:
        """The fault in every column where it explains something."""
        errors = base.copy()
        better = w.errors(change(w.chunks))
        hit = [j for j in among if explained(base[j], better[j])]
        errors[hit] = better[hit]
        if hit:
            names = tuple(w.names[j] for j in hit)
            yield Hypothesis(kind, text.format(", ".join(names)), names, number, errors, fitted)

    everything = range(len(w.names))
    sized = [j for j in everything if w.sizes[j]]
    grippers = [j for j in everything if w.grippers[j]]
    joints = [j for j in everything if not w.grippers[j]]
    yield from one("sign", "sign of {} is reversed", -1.0, lambda p: -p, joints)
    yield from one(
        "sign", "sign of the motion of {} is reversed", -1.0, lambda p: 2 * state - p, joints
    )
    yield from one("gripper", "{} opens where it should close", -1.0, lambda p: 1 - p, grippers)
    yield from one(
        "gripper", "{} opens where it should close (0 to 100)", -1.0, lambda p: 100 - p, grippers
    )
    done = w.slice()
    ends = np.nanmin(done, axis=(0, 1)) + np.nanmax(done, axis=(0, 1))
    turned = [j for j in grippers if min(abs(ends[j] - 1), abs(ends[j] - 100)) > 1e-2]
    text = "{} opens where it should close (between the ends of what was done)"
    yield from one("gripper", text, -1.0, lambda p: ends - p, turned)
    for factor, text in (
        (1 / DEGREES, "{} is in degrees and read as radians"),
        (DEGREES, "{} is in radians and read as degrees"),
    ):
        yield from one("degrees", text, factor, _times(factor), [j for j in joints if j in sized])
        among = [j for j in joints if w.moves[j]]
        yield from one("degrees", text, factor, _times(factor, state), among)
    for factor, text in (
        (100.0, "{} is a fraction and read as percent"),
        (0.01, "{} is percent and read as a fraction"),
        (1000.0, "{} is in meters and read as millimeters"),
        (0.001, "{} is in millimeters and read as meters"),
    ):
        yield from one("unit", text, factor, _times(factor), sized)
    plus, minus = _shifted(state), _shifted(-state)
    yield from one(
        "delta_as_absolute",
        "{} is relative to the state and read as absolute",
        1.0,
        plus,
        everything,
    )
    yield from one(
        "absolute_as_delta",
        "{} is absolute and read as relative to the state",
        1.0,
        minus,
        everything,
    )
    yield from _scales(w, base)
    yield from _offsets(w, base)
    yield from _swaps(w, base)
    yield from _timing(w, base)
    yield from source_faults(w, base)
    yield from normalization_faults(w, base)
    yield from base_faults(w, base)
    yield from reading_faults(w, base)


def _shifted(by: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    def change(chunks: np.ndarray) -> np.ndarray:
        return np.asarray(chunks + by)

    return change


def _times(factor: float, about: np.ndarray | float = 0.0) -> Callable[[np.ndarray], np.ndarray]:
    def change(chunks: np.ndarray) -> np.ndarray:
        return np.asarray(about + factor * (chunks - about))

    return change


def _scales(w: Windows, base: np.ndarray) -> Iterator[Hypothesis]:
    """Ratio of the spreads, about zero and about the state."""
    done, state = w.slice(), w.state[:, None]
    for about, word in ((0 * state, "size"), (state, "size of the motion")):
        p, d = w.chunks - about, done - about
        both = p * d
        ratio = np.nansum(both, axis=(0, 1)) / np.maximum(np.nansum(p**2, axis=(0, 1)), 1e-12)
        better = w.errors(about + ratio * p)
        hit = [
            j
            for j in range(len(w.names))
            if w.moves[j]
            and explained(base[j], better[j])
            and ratio[j] > 0
            and not 0.77 < ratio[j] < 1.3
        ]
        groups = [[j] for j in hit] + ([hit] if len(hit) > 1 else [])
        for group in groups:
            common = float(np.median(ratio[group]))
            errors = base.copy()
            errors[group] = w.errors(about + common * p)[group]
            names = tuple(w.names[j] for j in group)
            text = f"{word} of {', '.join(names)} is off: it should be {common:.3g} times as large"
            yield Hypothesis("scale", text, names, common, errors, 1)


def _offsets(w: Windows, base: np.ndarray) -> Iterator[Hypothesis]:
    offset = np.nanmedian(w.slice() - w.chunks, axis=(0, 1))
    better = w.errors(w.chunks + offset)
    hit = [j for j in range(len(w.names)) if explained(base[j], better[j])]
    if hit:
        errors = base.copy()
        errors[hit] = better[hit]
        names = tuple(w.names[j] for j in hit)
        shown = ", ".join(f"{w.names[j]} by {offset[j]:+.3g}" for j in hit)
        text = f"offset: {shown} is missing"
        yield Hypothesis("offset", text, names, float(offset[hit[0]]), errors, 1)


def _swaps(w: Windows, base: np.ndarray) -> Iterator[Hypothesis]:
    """Pairs of columns, and two halves (arms) exchanged as a whole."""
    count = len(w.names)
    pairs: list[tuple[tuple[int, ...], tuple[int, ...]]]
    pairs = [((i,), (j,)) for i in range(count) for j in range(i + 1, count)]
    half = count // 2
    if count % 2 == 0 and half > 1:
        pairs.append((tuple(range(half)), tuple(range(half, count))))
    for first, second in pairs:
        order = list(range(count))
        for i, j in zip(first, second, strict=True):
            order[i], order[j] = j, i
        errors = w.errors(w.chunks[..., order])
        involved = [*first, *second]
        if explained(base[involved].max(), errors[involved].max()):
            kept = base.copy()
            kept[involved] = errors[involved]
            left, right = (", ".join(w.names[i] for i in side) for side in (first, second))
            names = tuple(w.names[i] for i in involved)
            yield Hypothesis(
                "swapped_columns", f"{left} and {right} are exchanged", names, 1.0, kept
            )


def _timing(w: Windows, base: np.ndarray) -> Iterator[Hypothesis]:
    """Chunks that come early or late, and steps that are longer or shorter than told."""
    for lag in [k for k in range(-LAGS, LAGS + 1) if abs(k) >= 2]:
        errors = w.errors(w.chunks, lag)
        if np.isfinite(errors).all() and errors.sum() < EXPLAINED * base.sum():
            seconds = abs(lag) * w.step_s
            word = "ahead of" if lag > 0 else "behind"
            text = f"chunks are {seconds:.2f} s {word} what was done"
            yield Hypothesis("lag", text, w.names, lag * w.step_s, errors, 1)
    for pace in PACES:
        errors = w.errors(w.chunks, pace=pace)
        # Whatever stays near the start is near a slow motion, too.
        slow = (w.motion / motion_of(w.slice(pace=pace), w.moves)) ** 2
        close = np.isfinite(errors).all() and (errors * slow)[w.moves].mean() < EXPLAINED
        if close and errors.sum() < EXPLAINED * base.sum():
            text = f"a step takes {pace * w.step_s:.3g} s, not {w.step_s:.3g} s (control_hz)"
            yield Hypothesis("step_time", text, w.names, pace, errors, 1)

    backwards = w.errors(w.chunks[:, ::-1])
    if backwards.sum() < EXPLAINED * base.sum():
        yield Hypothesis("reversed_time", "chunks run backwards in time", w.names, -1.0, backwards)


def best(w: Windows, found: Sequence[Hypothesis]) -> list[Hypothesis]:
    """Hypotheses that explain most of the error, the most likely first.

    Two that are about different columns stand first together, if they explain more than any other.
    """
    base = np.minimum(w.errors(w.chunks), CAP)
    bad = base > BAD
    if not bad.any():
        return []
    total = float(base[bad].sum())
    good = [h for h in found if explains_all(h, bad, total) or _one_column(h, base, bad)]

    perfect = PERFECT * float(bad.sum())

    def cost(h: Hypothesis) -> tuple[float, int, float]:
        left = h.left(bad)
        return max(left, perfect) / FITTED**h.fitted, len(h.columns), left

    ranked = sorted(good, key=cost)
    pair = _pair(ranked, w.names, bad, cost)
    return ranked if pair is None else [*pair, *ranked]


def _apart(fault: Hypothesis, other: Hypothesis, names: Sequence[str]) -> Hypothesis | None:
    """A fault without the columns that another one explains better; None if that cannot be."""
    shared = set(fault.columns) & set(other.columns)
    if not shared:
        return fault
    place = {name: j for j, name in enumerate(names)}
    better = {n for n in shared if other.errors[place[n]] < fault.errors[place[n]]}
    kept = tuple(name for name in fault.columns if name not in better)
    listed = ", ".join(fault.columns)
    if not kept or listed not in fault.text:
        return None
    return dataclasses.replace(
        fault, columns=kept, text=fault.text.replace(listed, ", ".join(kept))
    )


def _pair(
    ranked: Sequence[Hypothesis],
    names: Sequence[str],
    bad: np.ndarray,
    cost: Callable[[Hypothesis], tuple[float, int, float]],
) -> tuple[Hypothesis, Hypothesis] | None:
    """Two faults at once, where they explain more than the best of all alone."""
    chosen: tuple[float, Hypothesis, Hypothesis] | None = None
    for one, other in itertools.combinations(ranked[:AMONG], 2):
        first, second = _apart(one, other, names), _apart(other, one, names)
        if first is None or second is None or max(one.fitted, other.fitted) > 1:
            continue
        errors = np.minimum(first.errors, second.errors)
        both = dataclasses.replace(first, errors=errors, fitted=one.fitted + other.fitted + 1)
        if cost(both)[0] < (cost(ranked[0])[0] if chosen is None else chosen[0]):
            chosen = cost(both)[0], first, second
    if chosen is None:
        return None
    _, first, second = chosen
    if second.left(bad) < first.left(bad):
        first, second = second, first
    errors = np.minimum(first.errors, second.errors)
    return (
        dataclasses.replace(first, text=f"{first.text}, and {second.text}", errors=errors),
        dataclasses.replace(second, text=f"second of these two: {second.text}", errors=errors),
    )


def explains_all(h: Hypothesis, bad: np.ndarray, total: float) -> bool:
    """Whether it explains the error of all columns together; `total` is that of the bad ones."""
    left = h.left(bad)
    return left < EXPLAINED * total and left < BELIEVED * float(bad.sum())


def _one_column(h: Hypothesis, base: np.ndarray, bad: np.ndarray) -> bool:
    """Whether it explains one of the columns, and not by numbers that fit anything."""
    if not h.columns or h.fitted > 1:
        return False
    left = np.minimum(h.errors, CAP)
    pairs = zip(base[bad], left[bad], strict=True)
    return any(
        explained(before, after) and (not h.fitted or after < BAD) for before, after in pairs
    )
