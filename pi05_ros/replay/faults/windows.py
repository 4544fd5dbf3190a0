"""Chunks beside what was done, and a fault that would explain how they differ.

Errors are squares relative to the motion from the start of a window: 0 is equal, 1 is
standing still.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

BAD = 0.15
"""Relative error above which a column needs an explanation."""
EXPLAINED = 0.35
"""Share of the error that may be left after a correction that is believed."""
BELIEVED = 0.5
"""Relative error that may be left; shrinking a wrong chunk to nothing leaves 1."""
FITTED = 0.7
"""For each number that was fitted to a column, a hypothesis must leave this much less."""
STILL = 0.05
"""Motion of a column below this share of the largest is no motion."""
FAR = 0.3
"""Size of a column, as a share of its motion, below which it is at 0."""
CAP = 25.0


@dataclass(frozen=True)
class Windows:
    """Chunks beside what was done.

    Attributes:
        names: of the columns.
        grippers: whether a column is a gripper.
        chunks: ``[N, H, A]``, absolute joint positions.
        state: measured at the start of each window ``[N, A]``.
        done: the demonstrator ``[N, before + 3 H, A]``; NaN where the recording has ended.
        before: index of the start of the window in `done`.
        step_s: seconds per step.

    """

    names: tuple[str, ...]
    grippers: tuple[bool, ...]
    chunks: np.ndarray
    state: np.ndarray
    done: np.ndarray
    before: int
    step_s: float

    @property
    def horizon(self) -> int:
        """Steps of a chunk."""
        return int(self.chunks.shape[1])

    @property
    def motion(self) -> np.ndarray:
        """Root mean square of what was done from the start on ``[A]``, with a floor."""
        done = self.slice()
        done = done - done[:, :1]
        motion = np.sqrt(np.nanmean(done**2, axis=(0, 1)))
        return np.asarray(np.maximum(motion, max(STILL * motion.max(), 1e-6)))

    @property
    def moves(self) -> np.ndarray:
        """Whether the demonstrator moves each column enough to tell it from others ``[A]``."""
        done = self.slice()
        motion = np.sqrt(np.nanmean((done - done[:, :1]) ** 2, axis=(0, 1)))
        return np.asarray(motion > max(STILL * motion.max(), 1e-6))

    @property
    def sizes(self) -> np.ndarray:
        """Whether the values of each column are far enough from 0 to have a size ``[A]``.

        Whatever shrinks a chunk would explain a column that stays at 0.
        """
        size = np.sqrt(np.nanmean(self.slice() ** 2, axis=(0, 1)))
        return np.asarray(self.moves | (size > FAR * self.motion))

    def slice(self, lag: float = 0.0, pace: float = 1.0) -> np.ndarray:
        """What was done at the steps of the chunk, or at other ones ``[N, H, A]``."""
        steps = self.before + lag + pace * np.arange(self.horizon)
        low = np.clip(np.floor(steps).astype(int), 0, self.done.shape[1] - 1)
        high = np.clip(low + 1, 0, self.done.shape[1] - 1)
        share = (steps - low)[:, None]
        found = np.where(
            share > 0,
            (1 - share) * self.done[:, low] + share * self.done[:, high],
            self.done[:, low],
        )
        found[:, (steps < 0) | (steps > self.done.shape[1] - 1)] = np.nan
        return np.asarray(found)

    def errors(self, chunks: np.ndarray, lag: float = 0.0, pace: float = 1.0) -> np.ndarray:
        """Relative squared error per column ``[A]``; infinite where too little overlaps."""
        away = ((chunks - self.slice(lag, pace)) / self.motion) ** 2
        seen = np.isfinite(away).mean(axis=(0, 1))
        capped = np.minimum(away, CAP)
        with np.errstate(invalid="ignore"):
            mean = np.nanmean(np.where(np.isfinite(away), capped, np.nan), axis=(0, 1))
        return np.where(seen > 0.4, mean, np.inf)


def motion_of(values: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """Root mean square of `values` ``[N, H, A]`` from their start on; infinite where still."""
    with np.errstate(invalid="ignore"):
        motion = np.sqrt(np.nanmean((values - values[:, :1]) ** 2, axis=(0, 1)))
    return np.where(moves & (motion > 0), motion, np.inf)


@dataclass(frozen=True)
class Hypothesis:
    """One fault and the errors after its correction.

    Attributes:
        kind: word for programs ("sign", "swapped_columns", ...).
        text: what is wrong, for people.
        columns: names of the columns that it is about.
        number: the fitted or tested number behind it.
        errors: per column after the correction ``[A]``.
        fitted: how many numbers were fitted to each column.
        corrected: whether the recording holds what corrects it; if not, `errors` are as they were.

    """

    kind: str
    text: str
    columns: tuple[str, ...]
    number: float
    errors: np.ndarray
    fitted: int = 0
    corrected: bool = True

    def left(self, bad: np.ndarray) -> float:
        """Error that is left in the columns that are bad."""
        return float(np.minimum(self.errors, CAP)[bad].sum())


def explained(before: float, after: float) -> bool:
    """Whether a correction that leaves `after` of the error `before` of a column is believed."""
    return bool(before > BAD and after < min(EXPLAINED * before, BELIEVED))


def where(
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
