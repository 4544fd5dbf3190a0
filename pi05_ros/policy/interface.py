"""A policy seen from outside: observation, action chunk, description, and what it can do.

Imports no torch: the executor and the robot profiles do without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pi05_ros.policy.pose_groups import PoseGroup

if TYPE_CHECKING:
    from pi05_ros.backends import Precision

MAX_DENOISE_STEPS = 1000
MAX_SEED = 2**63 - 1
"""Largest seed of the flow noise; seeds that are counted up start again at 0 behind it."""


@dataclass(frozen=True)
class Observation:
    """One moment of the robot.

    Attributes:
        images: camera role ("base", "wrist", "wrist_2", or as `PolicyInfo.camera_roles` says) ->
            RGB image, uint8 ``[H, W, 3]``. ``[3, H, W]`` and float in [0, 1] are accepted too.
            A role that is absent is a missing camera: the model sees it masked.
        state: joint and gripper values ``[n]`` in the order of the profile's ``state_names``:
            rad and m, other columns in the profile's unit (`RobotProfile.observed_units`).
        prompt: language instruction; None takes the profile's default prompt.

    """

    images: Mapping[str, np.ndarray]
    state: np.ndarray
    prompt: str | None = None
    stamp_ns: int = field(default=0)
    """Time of the oldest sample in it, nanoseconds of the robot's clock; 0 if unknown."""
    age_s: float = field(default=0.0)
    """How long before the inference begins that was; chunks that continue each other need it."""


class ActionMeaning(IntEnum):
    """What one action value means; the numbers are those of ActionChunk.msg."""

    ABSOLUTE = 0
    DELTA = 1
    VELOCITY = 2
    TASK_DELTA = 3
    TASK_POSE = 4
    TASK_FROM_START = 5


class ActionUnit(IntEnum):
    """Unit of one action value; the numbers are those of ActionChunk.msg."""

    RADIAN = 0
    METRE = 1
    RADIAN_PER_SECOND = 2
    METRE_PER_SECOND = 3
    GRIPPER_OPEN_0_CLOSED_1 = 4
    GRIPPER_CLOSED_0_OPEN_1 = 5
    DIMENSIONLESS = 6
    PERCENT = 7
    NORMALIZED = 8


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
        actions: float32 ``[H, A]`` in ``units``: rad, m, rad/s and m/s for joints, whatever the
            model was trained in; row i is meant for observation time + i * dt.
        normalized: float32 ``[H, 32]``, the model's own output before un-normalization (what
            real-time chunking continues from).
        names, meanings, units: one per column of ``actions``.
        dt: seconds per step.
        prompt: the cleaned prompt that was used.
        seed: seed of the flow noise.
        pose_groups: which columns are poses of which links.

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
    pose_groups: tuple[PoseGroup, ...] = ()

    @property
    def horizon(self) -> int:
        """Number of steps."""
        return int(self.actions.shape[0])


@dataclass(frozen=True)
class PolicyInfo:
    """What is loaded, for status messages and logs.

    Attributes:
        checkpoint: as given to `Policy.load`.
        checkpoint_hash: "sha256:<hex>" of the weight file, or "random:<preset>:<seed>".
        random_weights: True if the actions mean nothing; such a policy must not move a real arm.
        robot: profile name.
        backend, backend_reason: engine, and why this one.
        device: e.g. "cpu", "cuda:0".
        precision: of each stage, resolved.
        denoise_steps: Euler steps of the flow unless an inference asks for others.
        horizon: steps kept of each chunk.
        step_s: seconds per step.
        action_names, camera_roles, state_names: as in the profile.
        tokenizer: file, or "bytes".
        assumptions: facts that no file told, one sentence each.
        doubts: why numbers may mean something else than is taken here, one sentence each.

    """

    checkpoint: str
    checkpoint_hash: str
    random_weights: bool
    robot: str
    backend: str
    backend_reason: str
    device: str
    precision: Precision
    denoise_steps: int
    horizon: int
    step_s: float
    action_names: tuple[str, ...]
    camera_roles: tuple[str, ...]
    state_names: tuple[str, ...]
    tokenizer: str
    assumptions: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


class PolicyLike(Protocol):
    """What a policy is for those who use one: in this process, in another, or on a server."""

    info: Any
    robot: Any

    def infer(
        self, obs: Observation, *, seed: int | None = None, denoise_steps: int | None = None
    ) -> ActionChunk:
        """Actions for one observation."""

    def prefill(
        self, obs: Observation, *, seed: int | None = None, denoise_steps: int | None = None
    ) -> Any:
        """First half of `infer`, see `pi05_ros.policy.Policy`; asked for with overlap only."""

    def denoise(self, prefilled: Any) -> ActionChunk:
        """Second half; the next first half may run meanwhile."""

    def warm_up(self) -> Any:
        """Run once so that the first real inference is not slow."""

    def close(self) -> None:
        """Free the model."""
