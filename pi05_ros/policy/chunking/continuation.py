"""What of the previous chunk the next one has to continue, and the delay to expect."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from pi05_ros.policy.transforms.normalize import Normalizer


@dataclass(frozen=True)
class Continuation:
    """The not yet executed rest of a chunk, as guidance for the next.

    Attributes:
        previous: float32 ``[H, 32]``, normalized; row 0 is the action at the new observation.
        left: rows that hold actions; the others are zero.
        delay: steps that will pass before the new chunk is there.

    """

    previous: np.ndarray
    left: int
    delay: int


def continuation(
    normalized: np.ndarray,
    consumed: float,
    moved: np.ndarray,
    *,
    delta_mask: tuple[bool, ...],
    normalizer: Normalizer,
    columns: int,
    horizon: int,
    delay: int,
) -> Continuation:
    """Express the rest of a chunk as the model would have output it for the new observation.

    Only deltas depend on the observation; all other columns stay what the model said.

    Args:
        normalized: previous chunk ``[H', 32]``, as the model gave it.
        consumed: rows that lie before the new observation; between rows it is interpolated.
        moved: state of the new observation less that of the previous chunk ``[n]``, both in the
            model's conventions.
        delta_mask: as in the robot profile.
        normalizer: of the actions.
        columns: actions of the robot; those behind are tied to zero.
        horizon: H of the new chunk.
        delay: expected delay in steps; limited to the rows that are left.

    """
    rest = rows_from(normalized[:, :columns], consumed)[:horizon]
    left = len(rest)
    previous = np.zeros((horizon, normalized.shape[1]), dtype=np.float32)
    previous[:left, :columns] = rest
    # A delta that never varied in training is the same from any state.
    deltas = np.flatnonzero(delta_mask)
    deltas = deltas[~normalizer.constant(columns)[deltas]]
    if left and deltas.size:
        actions = normalizer.unnormalize(rest)
        actions[:, deltas] -= moved[deltas]
        previous[:left, deltas] = normalizer.normalize(actions)[:, deltas]
    return Continuation(previous, left, max(0, min(delay, left)))


def rows_from(actions: np.ndarray, first: float) -> np.ndarray:
    """Rows ``first``, ``first + 1``, ... of actions ``[H, A]``, linear between rows, or none."""
    first = max(0.0, first)
    places = first + np.arange(max(0, math.floor(len(actions) - 1 - first + 1e-6) + 1))
    low = np.minimum(places.astype(int), len(actions) - 1)
    high = np.minimum(low + 1, len(actions) - 1)
    part = (places - low)[:, None]
    rows: np.ndarray = (1 - part) * actions[low] + part * actions[high]
    return rows


class DelayEstimator:
    """Delay of the next inference in control steps: the longest of the recent ones."""

    def __init__(self, step_s: float, window: int = 10, initial_s: float = 0.0) -> None:
        self._step_s = step_s
        self._recent: deque[float] = deque([initial_s], maxlen=window)

    @property
    def recent(self) -> tuple[float, ...]:
        """What was recorded last, oldest first."""
        return tuple(self._recent)

    def record(self, latency_s: float) -> None:
        """Remember how long an inference took; not finite is ignored."""
        if math.isfinite(latency_s) and latency_s >= 0:
            self._recent.append(latency_s)

    def steps(self, age_s: float = 0.0) -> int:
        """``ceil((age + longest) / step)``, forgiving a millionth of a step.

        Args:
            age_s: of the observation when the inference begins, which row 0 belongs to.

        """
        return math.ceil((age_s + max(self._recent)) / self._step_s - 1e-6)
