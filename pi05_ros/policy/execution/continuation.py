"""What of the previous chunk the next one has to continue, and the delay to expect."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from pi05_ros.policy.normalize import Normalizer
from pi05_ros.policy.transforms import absolute_to_delta, pad_to


@dataclass(frozen=True)
class Continuation:
    """The not yet executed rest of a chunk, as guidance for the next.

    Attributes:
        previous: float32 ``[H, 32]``, normalised; row 0 is the action at the new observation.
        left: rows that hold actions; the others are zero.
        delay: steps that will pass before the new chunk is there.

    """

    previous: np.ndarray
    left: int
    delay: int


def continuation(
    actions: np.ndarray,
    consumed: float,
    state: np.ndarray,
    *,
    delta_mask: tuple[bool, ...],
    normalizer: Normalizer,
    horizon: int,
    model_dim: int,
    delay: int,
) -> Continuation:
    """Express the rest of a chunk as the model would have output it for the new observation.

    Args:
        actions: previous chunk ``[H', A]``, absolute, in the model's conventions.
        consumed: rows that lie before the new observation; between rows it is interpolated.
        state: state of the new observation ``[n]``, model conventions; deltas refer to it.
        delta_mask: as in the robot profile.
        normalizer: of the actions.
        horizon: H of the new chunk.
        model_dim: columns of the model's actions, 32.
        delay: expected delay in steps; limited to the rows that are left.

    """
    rest = rows_from(actions, consumed)[:horizon]
    left = len(rest)
    previous = np.zeros((horizon, model_dim), dtype=np.float32)
    if left:
        relative = absolute_to_delta(rest, state, delta_mask)
        previous[:left] = pad_to(normalizer.normalize(relative), model_dim)
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

    def record(self, latency_s: float) -> None:
        """Remember a measured time from observation to usable chunk; not finite is ignored."""
        if math.isfinite(latency_s) and latency_s >= 0:
            self._recent.append(latency_s)

    @property
    def steps(self) -> int:
        """``ceil(longest / step)``, forgiving a millionth of a step."""
        return math.ceil(max(self._recent) / self._step_s - 1e-6)
