"""Velocities and steps read as positions, whole turns, columns that are cut off or stand still."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from pi05_ros.replay.faults.windows import BAD, Hypothesis, Windows, where

CUT = 0.1
"""Share of a column at the ends of what it reaches from which on it may be cut off there."""
STANDS = 0.01
"""Share of the motion that was done below which a column of the chunks does not move."""
CONSTANT = 1e-4
"""The same for chunks as a whole: below it they do not move at all."""
TURN = 2 * math.pi


def reading_faults(w: Windows, base: np.ndarray) -> Iterator[Hypothesis]:
    """Columns that mean something else than a position."""
    state = w.state[:, None]
    sums, steps = np.cumsum(w.chunks, axis=1), np.diff(w.chunks, axis=1, prepend=state)
    turns = np.round((w.chunks - state) / TURN)
    for kind, text, number, corrected in (
        ("velocity", "{} is a velocity and read as a position", 1.0, state + sums * w.step_s),
        (
            "velocity",
            "{} is a position and read as a velocity",
            -1.0,
            steps / w.step_s,
        ),
        (
            "step_delta",
            "{} is relative to the step before and read as a position",
            1.0,
            state + sums,
        ),
        ("turns", "{} is off by whole turns", TURN, w.chunks - TURN * turns),
    ):
        yield from where(w, base, kind, text, number, corrected, 0)
    yield from _cut(w, base)
    yield from _still(w, base)


def _cut(w: Windows, base: np.ndarray) -> Iterator[Hypothesis]:
    """Columns or motions that end where what was done goes on."""
    done = w.slice()
    for about, what in ((np.zeros_like(w.state), "{}"), (w.state, "the motion of {}")):
        chunks, wanted = w.chunks - about[:, None], done - about[:, None]
        low, high = chunks.min(axis=(0, 1)), chunks.max(axis=(0, 1))
        near = 1e-3 * (high - low)
        beyond = ((chunks >= high - near) & (wanted > chunks)) | (
            (chunks <= low + near) & (wanted < chunks)
        )
        cut = (beyond.mean(axis=(0, 1)) > CUT) & (high > low)
        corrected = np.where(beyond & cut, done, w.chunks)
        text = f"{what} is cut off at the ends of a range"
        yield from where(
            w, base, "cut_off", text, float((high - low)[cut].max(initial=0.0)), corrected, 1
        )


def _still(w: Windows, base: np.ndarray) -> Iterator[Hypothesis]:
    """Chunks, or some of their columns, whose rows are alike."""
    away = np.sqrt(np.nanmean((w.chunks - w.chunks[:, :1]) ** 2, axis=(0, 1)))
    if w.moves.any() and (away < CONSTANT * w.motion)[w.moves].all():
        text = "chunks stand still: all rows of a chunk are alike"
        yield Hypothesis("constant_chunk", text, w.names, 0.0, np.zeros_like(base))
        return
    moved = w.slice()
    moved = np.sqrt(np.nanmean((moved - moved[:, :1]) ** 2, axis=(0, 1)))
    bad = [j for j in range(len(base)) if base[j] > BAD]
    hit = [j for j in bad if w.moves[j] and away[j] < STANDS * moved[j]]
    if hit and hit == bad:  # else it may belong to what the policy does instead
        errors = base.copy()
        errors[hit] = 0.0
        names = tuple(w.names[j] for j in hit)
        text = f"{', '.join(names)} stands still in every chunk"
        yield Hypothesis("constant_column", text, names, 0.0, errors)
