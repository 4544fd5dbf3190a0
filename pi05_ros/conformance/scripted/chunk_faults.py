"""Chunks that the executor must refuse, and the counter that must tell each."""

from __future__ import annotations

import array
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pi05_ros.conformance.heard import NS
from pi05_ros.msg import ActionChunk

CHUNKS_HEADING = "Which chunks are refused"


@dataclass(frozen=True)
class Refusal:
    """A chunk that must be refused: the counter, the sentence, and what is changed."""

    name: str
    counter: str
    sentence: str
    change: Callable[[ActionChunk], None]


def _set(**values: Any) -> Callable[[ActionChunk], None]:
    def apply(chunk: ActionChunk) -> None:
        for name, value in values.items():
            setattr(chunk, name, value)

    return apply


def _not_finite(chunk: ActionChunk) -> None:
    chunk.data[3] = math.nan


def _frame(chunk: ActionChunk) -> None:
    chunk.header.frame_id = "tool0"


def _step(chunk: ActionChunk) -> None:
    chunk.step.nanosec = 0


def _long(chunk: ActionChunk) -> None:
    chunk.step.sec = 5


def _old(chunk: ActionChunk) -> None:
    chunk.header.stamp.sec -= 5


def _ahead(chunk: ActionChunk) -> None:
    chunk.header.stamp.sec += 5


def _odd_stamp(chunk: ActionChunk) -> None:
    chunk.header.stamp.nanosec = 2 * NS


REFUSALS = (
    Refusal("other names", "names", "columns are not the joints",
            _set(names=[f"other{i}" for i in range(7)])),
    Refusal("data too short", "length", "sizes of `data`, `meaning`, `unit` do not fit",
            _set(data=array.array("f", [0.0] * 7))),
    Refusal("NaN", "not_finite", "NaN or infinite", _not_finite),
    Refusal("step of 0", "step", "step not from 1 ms to 10 s", _step),
    Refusal("odd stamp", "stamp", "nanosec of 1e9 and more", _odd_stamp),
    Refusal("steps past", "steps_past", "`steps_past` above the horizon", _set(steps_past=99)),
    Refusal("a frame", "frame", "a `frame_id`, which joints have none", _frame),
    Refusal("too long", "duration", "horizon times step is more than `max_chunk_s`", _long),
    Refusal("unknown meaning", "meaning", "a meaning that cannot be executed",
            _set(meaning=[3] * 7)),
    Refusal("other unit", "unit", "positions not in rad or m", _set(unit=[7] * 7)),
    Refusal("older number", "order", "an older chunk of the same policy", _set(chunk_id=0)),
    Refusal("old observation", "stale", "step 0 is older than `max_chunk_age_s`", _old),
    Refusal("chunk of the future", "future", "step 0 is more than `max_future_s` ahead", _ahead),
    Refusal("random weights", "random_weights", "random weights, unless `allow_random_weights`",
            _set(random_weights=True)),
)  # fmt: skip
