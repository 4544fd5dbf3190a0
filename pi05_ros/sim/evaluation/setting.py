"""What `pi05 eval` varies between episodes: engine, chunking, delay, KV reuse and so on."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import ClassVar

from pi05_ros.backends.choices import BACKENDS, PRECISIONS
from pi05_ros.errors import InvalidValueError
from pi05_ros.model.guidance import MAX_GUIDANCE
from pi05_ros.policy.chunking.kv_reuse import make_rule
from pi05_ros.policy.interface import MAX_DENOISE_STEPS
from pi05_ros.sim.arm.tasks import MAX_STEPS
from pi05_ros.sim.arm.world import CONTROL_DT
from pi05_ros.sim.evaluation.imitated_precision import IMITATED, KINDS

LIMITING = ("joint", "path", "ruckig")
ACTIONS = ("joints", "libero")
CHUNKING = ("naive", "ensemble", "rtc-vjp", "rtc-vjp-scaled", "rtc-identity", "rtc-trained")


@dataclass(frozen=True)
class Setting:
    """What is varied between episodes; one row of a results table is one setting.

    Attributes:
        backend: engine.
        precision: of all three stages, "auto", or imitated: "fake-fp8", "fake-int8".
        denoise_steps: Euler steps of the flow.
        chunking: "naive": the new chunk replaces the old; "ensemble": they are averaged; "rtc-":
            the new one continues the old (guided by VJP or identity, or trained prefix).
        max_guidance: clip of the gain of guided chunks.
        replan: control steps between two observations that are answered; at least the delay.
        delay_ms: time from observation to usable chunk.
        kv_reuse: "1", "2", ... or "dynamic".
        drop_wrist: probability that an observation lacks the wrist camera.
        max_steps: control steps an episode may take.
        limiting: "joint" clips each joint, "path" slows down along the path, "ruckig" tracks that
            path with jerk limits as well, see `execution.motion`.
        limit_share: part of the arm's velocity and acceleration limits that is allowed.
        nudge: probability that the asked block is pushed aside by 4 cm once, early on.
        actions: "joints": as the policy gives them; "libero": converted to LIBERO's deltas of the
            end effector and back by the executor's inverse kinematics.

    """

    STEP_S: ClassVar[float] = CONTROL_DT
    MOST_STEPS: ClassVar[int] = MAX_STEPS
    LEAST_STEPS: ClassVar[int] = 1
    UNIT: ClassVar[str] = "rad"
    """Of seams and kicks."""

    backend: str = "eager"
    precision: str = "fp32"
    denoise_steps: int = 10
    chunking: str = "naive"
    max_guidance: float = MAX_GUIDANCE
    replan: int = 8
    delay_ms: int = 0
    kv_reuse: str = "1"
    drop_wrist: float = 0.0
    max_steps: int = MAX_STEPS
    nudge: float = 0.0
    limiting: str = "joint"
    limit_share: float = 1.0
    actions: str = "joints"

    def __post_init__(self) -> None:
        if self.chunking not in CHUNKING:
            raise InvalidValueError(f"chunking {self.chunking!r}; accepted: {', '.join(CHUNKING)}")
        if self.limiting not in LIMITING:
            raise InvalidValueError(f"limiting {self.limiting!r}; accepted: {', '.join(LIMITING)}")
        if self.actions not in ACTIONS:
            raise InvalidValueError(f"actions {self.actions!r}; accepted: {', '.join(ACTIONS)}")
        if self.actions != "joints" and self.kv_reuse != "1":
            raise InvalidValueError(f"actions {self.actions} needs kv_reuse 1")
        self._check_engine()
        if not 0 < self.max_guidance < math.inf:
            raise InvalidValueError(
                f"max_guidance {self.max_guidance}: accepted are numbers above 0"
            )
        for name, low, high in (
            ("denoise_steps", 1, MAX_DENOISE_STEPS),
            ("delay_ms", 0, 2000),
            ("replan", 1, 1000),
            ("max_steps", self.LEAST_STEPS, self.MOST_STEPS),
            ("drop_wrist", 0, 1),
            ("nudge", 0, 1),
            ("limit_share", 0.01, 1),
        ):
            if not low <= getattr(self, name) <= high:
                raise InvalidValueError(f"{name} {getattr(self, name)}; accepted: {low} to {high}")
        make_rule(self.kv_reuse)

    def _check_engine(self) -> None:
        if self.backend not in BACKENDS:
            raise InvalidValueError(f"backend {self.backend!r}; accepted: {', '.join(BACKENDS)}")
        imitated = tuple(IMITATED + kind for kind in KINDS)
        if self.precision not in (*PRECISIONS, *imitated):
            accepted = ", ".join((*PRECISIONS, *imitated))
            raise InvalidValueError(f"precision {self.precision!r}; accepted: {accepted}")
        if self.precision in imitated and self.backend not in ("auto", "eager"):
            raise InvalidValueError(
                f"precision {self.precision} needs backend eager, not {self.backend}"
            )

    @property
    def delay_steps(self) -> int:
        """Control steps from observation to usable chunk."""
        return math.ceil(self.delay_ms / 1e3 / self.STEP_S - 1e-9)

    @property
    def label(self) -> str:
        """The values that differ from the defaults, for tables."""
        parts = [
            f"{item.name}={getattr(self, item.name)}"
            for item in fields(self)
            if getattr(self, item.name) != item.default
        ]
        return " ".join(parts) or "default"


def chunk_mode(setting: Setting) -> str:
    """Mode of `ChunkGenerator` and of the policy node."""
    prefix = "rtc-"
    guided = setting.chunking.startswith(prefix)
    return setting.chunking.removeprefix(prefix) if guided else "plain"
