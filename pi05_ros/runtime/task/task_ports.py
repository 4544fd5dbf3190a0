"""What a task does to other nodes, as far as the task knows them, and its times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pi05_ros.runtime.task.task_goal import TaskGoal


class Call(Protocol):
    """A request to another node."""

    problem: str
    """What the other node said against it, else empty."""

    def poll(self) -> bool:
        """Whether it has been answered; sends it again if that takes long."""


class TaskPorts(Protocol):
    """What a task does to other nodes."""

    def permit(self, allowed: bool) -> Call:
        """Give or withdraw the executor's permission."""

    def reset_policy(self) -> Call:
        """Forget chunks and buffers."""

    def set_speed(self, scale: float) -> Call:
        """Set the executor's speed_scale."""

    def hold_chunks(self) -> Call:
        """Have the executor follow no chunk until permission is given or withdrawn."""

    def send_prompt(self, prompt: str) -> None:
        """Publish the prompt."""

    def watch(self, goal: TaskGoal) -> None:
        """Listen to what may end the task."""

    def ignore(self) -> None:
        """Stop listening to it."""


@dataclass(frozen=True)
class TaskSettings:
    """Times of a task; the parameters of the task node."""

    step_timeout_s: float = 10.0
    first_chunk_timeout_s: float = 30.0
    chunk_timeout_s: float = 5.0
    status_timeout_s: float = 5.0
    end_on_take_over: bool = True
