"""What the policy answers: a chunk of actions in robot units, with its meaning and timings."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

MAX_SEED = 2**63 - 1
"""Largest seed of the flow noise; seeds that are counted up start again at 0 behind it."""


class ActionMeaning(IntEnum):
    """What one action value means; the numbers are those of ActionChunk.msg."""

    ABSOLUTE = 0
    DELTA = 1
    VELOCITY = 2
    TASK_DELTA = 3


class ActionUnit(IntEnum):
    """Unit of one action value; the numbers are those of ActionChunk.msg."""

    RADIAN = 0
    METRE = 1
    RADIAN_PER_SECOND = 2
    METRE_PER_SECOND = 3
    GRIPPER_OPEN_0_CLOSED_1 = 4
    GRIPPER_CLOSED_0_OPEN_1 = 5
    DIMENSIONLESS = 6


@dataclass(frozen=True)
class StageTimings:
    """Milliseconds per stage of one inference; NaN where a backend cannot tell stages apart."""

    preprocess_ms: float = float("nan")
    vision_ms: float = float("nan")
    prefill_ms: float = float("nan")
    denoise_ms: float = float("nan")
    model_ms: float = float("nan")
    postprocess_ms: float = float("nan")


@dataclass(frozen=True)
class ActionChunk:
    """Actions for one observation.

    Attributes:
        actions: float32 ``[H, A]``, robot units; row i is meant for observation time + i * dt.
        normalized: float32 ``[H, 32]``, the model's own output before un-normalization (what
            real-time chunking continues from).
        names, meanings, units: one per column of ``actions``.
        dt: seconds per step.
        prompt: the cleaned prompt that was used.
        seed: seed of the flow noise.

    """

    actions: np.ndarray
    normalized: np.ndarray
    names: tuple[str, ...]
    meanings: tuple[ActionMeaning, ...]
    units: tuple[ActionUnit, ...]
    dt: float
    prompt: str
    seed: int
    denoise_steps: int
    timings: StageTimings = field(default_factory=StageTimings)
    kv_age: int = 0

    @property
    def horizon(self) -> int:
        """Number of steps."""
        return int(self.actions.shape[0])
