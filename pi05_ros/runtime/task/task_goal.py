"""What a task is asked to be and how it went; the checks of a goal."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import IntEnum

from pi05_ros.errors import Pi05Error
from pi05_ros.policy.prompt.prompt import clean_prompt

# Values of RunPolicy's result.
DONE = "done"
CANCELLED = "cancelled"
TIMEOUT = "timeout"
FAULT = "fault"
TAKEN_OVER = "taken over"
REPLACED = "replaced"

SUCCESS = "success"
FAILURE = "failure"
UNKNOWN = "unknown"

MAX_PROMPT_CHARACTERS = 4096
"""What the prompt topic of the policy node takes."""
SHORTEST_HOLD_S = 0.1
LONGEST_S = 86400.0
_TOPIC = re.compile(r"^(~?/)?[A-Za-z_][A-Za-z0-9_]*(/[A-Za-z_][A-Za-z0-9_]*)*\Z")


class TaskGoalError(Pi05Error, ValueError):
    """A goal that cannot be taken; the text names the field and what is accepted."""


class End(IntEnum):
    """What ends a task; values of RunPolicy's `end`."""

    EXTERNAL = 0
    SUCCESS_TOPIC = 1
    HOLD = 2


@dataclass(frozen=True)
class TaskGoal:
    """A goal whose values have been checked and whose defaults are filled in.

    Attributes:
        goal_id: 32 hex digits.
        prompt: instruction; empty: the policy node's own.
        time_limit_s: from permission on.
        end: what ends it.
        success_topic: with `End.SUCCESS_TOPIC`.
        hold_s: seconds of stillness, or for which success has to last.
        record: whether a bag is written.
        speed_scale: part of the speed of chunks; 0: as the executor has it.

    """

    goal_id: str
    prompt: str
    time_limit_s: float
    end: End
    success_topic: str
    hold_s: float
    record: bool
    speed_scale: float


@dataclass(frozen=True)
class TaskResult:
    """How a task ended; the fields of RunPolicy's result."""

    reason: str
    outcome: str
    message: str
    bag_path: str = ""
    elapsed_s: float = 0.0
    chunks: int = 0


def check_goal(
    *,
    goal_id: str,
    prompt: str,
    time_limit_s: float,
    end: int,
    success_topic: str,
    hold_s: float,
    record: bool,
    speed_scale: float,
    default_time_limit_s: float,
    default_success_topic: str,
) -> TaskGoal:
    """The goal with defaults in the place of 0 and empty.

    Raises:
        TaskGoalError: a value that is not accepted.

    """
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise TaskGoalError(
            f"prompt has {len(prompt)} characters; accepted: up to {MAX_PROMPT_CHARACTERS}"
        )
    if end not in tuple(End):
        raise TaskGoalError(f"end is {end}; accepted: {', '.join(map(str, map(int, End)))}")
    kind = End(end)
    limit_s = default_time_limit_s if time_limit_s == 0 else time_limit_s
    _within("time_limit_s", limit_s, 0.0, LONGEST_S, "0 for the default, else above 0")
    _within("speed_scale", speed_scale, -1.0, 1.0, "0 for the executor's own, else above 0")
    if speed_scale < 0:
        raise TaskGoalError(f"speed_scale is {speed_scale:g}; accepted: 0 to 1")
    shortest = SHORTEST_HOLD_S if kind is End.HOLD else 0.0
    if not (math.isfinite(hold_s) and shortest <= hold_s <= LONGEST_S):
        raise TaskGoalError(f"hold_s is {hold_s:g}; accepted: {shortest:g} to {LONGEST_S:g}")
    topic = (success_topic or default_success_topic) if kind is End.SUCCESS_TOPIC else ""
    if kind is End.SUCCESS_TOPIC and not topic:
        raise TaskGoalError("success_topic is empty, and so is the node's parameter; name a topic")
    if topic and not _TOPIC.match(topic):
        raise TaskGoalError(f"success_topic {topic!r} is no name of a topic")
    words = prompt if clean_prompt(prompt) else ""
    return TaskGoal(goal_id, words, limit_s, kind, topic, hold_s, record, speed_scale)


def _within(name: str, value: float, above: float, most: float, words: str) -> None:
    if not (math.isfinite(value) and above < value <= most):
        raise TaskGoalError(f"{name} is {value:g}; accepted: {words}, up to {most:g}")
