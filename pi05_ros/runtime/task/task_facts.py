"""What is known about policy, executor, recorder and task while a task runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class PolicyFacts:
    """Of the policy node; times in seconds.

    Attributes:
        seen_s: last sign of life, on a clock that always runs; None before the first.
        active: whether its lifecycle state is active.
        policy_id: of its activation.
        prompt: in use.
        message: its last error.
        complaint: what its diagnostics warn of.
        unheard: why status or chunks cannot be heard though somebody publishes them, else empty.
        chunks: chunks received so far.
        chunk_s: when the newest came, on the clock of tasks.
        chunk_id, chunk_prompt, inference_ms, observation_to_chunk_ms: of the newest chunk.

    """

    seen_s: float | None = None
    active: bool = False
    policy_id: str = ""
    prompt: str = ""
    message: str = ""
    complaint: str = ""
    unheard: str = ""
    chunks: int = 0
    chunk_s: float = 0.0
    chunk_id: int = 0
    chunk_prompt: str = ""
    inference_ms: float = float("nan")
    observation_to_chunk_ms: float = float("nan")

    @property
    def why_silent(self) -> str:
        """Why there are no chunks, with a leading colon, as far as the policy node says so."""
        said = self.unheard or self.message or self.complaint
        return f": {said}" if said else ""


@dataclass
class ExecutorFacts:
    """Of the executor node: its newest status, and when it came on a clock that always runs.

    `unheard`: why its status cannot be heard though somebody publishes it, else empty.
    """

    seen_s: float | None = None
    unheard: str = ""
    mode: int = 0
    mode_name: str = ""
    following: bool = False
    reason: str = ""
    fault: str = ""
    enabled: bool = False
    stopped: bool = False
    halted: bool = False
    intervention: bool = False
    speed_scale: float = 1.0
    lag_s: float = 0.0
    joints: tuple[str, ...] = ()


@dataclass
class RecorderFacts:
    """Of the episode recorder: its newest status."""

    recording: bool = False
    goal_id: str = ""
    bag_path: str = ""
    whole: bool = False
    message: str = ""


@dataclass
class TaskFacts:
    """All of it, written by the node and read by the task.

    Attributes:
        success: last word on the success topic, None before the first.
        end_unheard: why the topic that is to end the task cannot be heard though somebody
            publishes it, else empty.

    """

    policy: PolicyFacts = field(default_factory=PolicyFacts)
    executor: ExecutorFacts = field(default_factory=ExecutorFacts)
    recorder: RecorderFacts = field(default_factory=RecorderFacts)
    success: bool | None = None
    end_unheard: str = ""


class Stillness:
    """For how long the joints have been where they are.

    Args:
        tolerance: farthest that a joint may be from where it was, in its unit.

    """

    def __init__(self, tolerance: float) -> None:
        self._tolerance = tolerance
        self._place: dict[str, float] = {}
        self._since_s: float | None = None

    def reset(self) -> None:
        """Begin anew with the next positions."""
        self._place, self._since_s = {}, None

    def add(self, positions: Mapping[str, float], now_s: float) -> None:
        """Take measured positions of some or all joints."""
        moved = any(
            abs(value - self._place.get(name, value)) > self._tolerance
            for name, value in positions.items()
        )
        if moved or self._since_s is None:
            self._place, self._since_s = {}, now_s
        self._place = {**positions, **self._place}

    def seconds(self, now_s: float) -> float:
        """Seconds without motion; 0 before the first positions."""
        return 0.0 if self._since_s is None else max(0.0, now_s - self._since_s)
