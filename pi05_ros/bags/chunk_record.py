"""Recorded action chunks: decode them from a bag, encode what offline replay computes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from pi05_ros.bags.bag import Bag, BagError
from pi05_ros.bags.cdr_messages import (
    ACTION_CHUNK,
    NS,
    duration_message,
    header,
    time_message,
    to_ns,
    typestore,
)
from pi05_ros.policy.interface import ActionChunk, StageTimings
from pi05_ros.policy.pose_groups import PoseGroup

TIMING_FIELDS = (
    "queue_ms", "convert_ms", "inference_ms", *(field.name for field in fields(StageTimings)),
    "total_ms",
)  # fmt: skip
CHUNK_TOPIC = "/pi05_policy/action_chunk"
CHUNKS = "chunks"  # name of the bag in the output folder of a replay


@dataclass(frozen=True)
class ChunkRecord:
    """One pi05_ros/ActionChunk as it was on the wire, stamps in nanoseconds.

    Attributes:
        received_ns: log time in the bag: the bag clock when the recorder got it.
        data: float32 ``[horizon, len(names)]``.
        inputs: input name -> header stamp of the sample used.
        timings: milliseconds by field name.
        pose_groups: empty in chunks of joints and of release 0.1.0.

    """

    received_ns: int
    stamp_ns: int
    observation_ns: int
    published_ns: int
    inputs: dict[str, int]
    chunk_id: int
    policy_id: str
    names: tuple[str, ...]
    step_ns: int
    meaning: tuple[int, ...]
    unit: tuple[int, ...]
    data: np.ndarray
    steps_past: int
    prompt: str
    seed: int
    kv_age: int
    random_weights: bool
    denoise_steps: int
    timings: dict[str, float]
    pose_groups: tuple[PoseGroup, ...] = ()

    @property
    def key(self) -> tuple[tuple[str, int], ...]:
        """Which samples it answers: equal keys mean equal observations."""
        return tuple(sorted(self.inputs.items()))


def record_from_message(message: Any, received_ns: int) -> ChunkRecord:
    """Decoded message -> record.

    Raises:
        BagError: the sizes in the message contradict each other.

    """
    width = len(message.names)
    data = np.asarray(message.data, dtype=np.float32)
    if len(message.input_names) != len(message.input_stamps):
        raise BagError(
            f"chunk {message.chunk_id} has {len(message.input_names)} input names and "
            f"{len(message.input_stamps)} input stamps"
        )
    if data.size != message.horizon * width:
        raise BagError(
            f"chunk {message.chunk_id} has {data.size} values for {message.horizon} steps "
            f"of {width} names"
        )
    return ChunkRecord(
        received_ns=received_ns,
        stamp_ns=to_ns(message.header.stamp),
        observation_ns=to_ns(message.observation_stamp),
        published_ns=to_ns(message.published_stamp),
        inputs={
            name: to_ns(stamp)
            for name, stamp in zip(message.input_names, message.input_stamps, strict=True)
        },
        chunk_id=int(message.chunk_id),
        policy_id=message.policy_id,
        names=tuple(message.names),
        step_ns=to_ns(message.step),
        meaning=tuple(int(value) for value in message.meaning),
        unit=tuple(int(value) for value in message.unit),
        data=data.reshape(int(message.horizon), width),
        steps_past=int(message.steps_past),
        prompt=message.prompt,
        seed=int(message.seed),
        kv_age=int(message.kv_age),
        random_weights=bool(message.random_weights),
        denoise_steps=int(message.timings.denoise_steps),
        timings={name: float(getattr(message.timings, name)) for name in TIMING_FIELDS},
        pose_groups=tuple(PoseGroup.of_message(group) for group in message.pose_groups),
    )


def read_chunks(path: str | Path) -> list[ChunkRecord]:
    """All chunks of a bag, in the order of arrival.

    Args:
        path: bag with one chunk topic, or the output folder of a replay, which holds it as
            `chunks`.

    Raises:
        BagError: unreadable bag, no chunk topic, or several.

    """
    path = Path(path)
    if (path / CHUNKS / "metadata.yaml").is_file() and not (path / "metadata.yaml").exists():
        path = path / CHUNKS
    with Bag(path) as bag:
        topics = [t.name for t in bag.topics.values() if t.msgtype == ACTION_CHUNK]
        if len(topics) != 1:
            found = ", ".join(topics) if topics else f"none. Topics:\n{bag.describe_topics()}"
            raise BagError(f"{path} should have one {ACTION_CHUNK} topic, but has {found}")
        return [
            record_from_message(message.decode(), message.log_ns)
            for message in bag.messages(topics)
        ]


def chunk_message(
    chunk: ActionChunk,
    *,
    inputs: Iterable[tuple[str, int]],
    published_ns: int,
    chunk_id: int,
    policy_id: str,
    random_weights: bool,
) -> Any:
    """Chunk of an offline replay as a message.

    Timings are NaN: they differ from run to run, and two offline replays shall be equal byte
    for byte.
    """
    inputs = list(inputs)
    observation_ns = min(stamp for _, stamp in inputs)
    step_ns = round(chunk.dt * NS)
    steps_past = -((observation_ns - published_ns) // step_ns)  # ceil of the age in steps
    types = typestore().types
    return types[ACTION_CHUNK](
        header=header(observation_ns),
        observation_stamp=time_message(observation_ns),
        input_names=[name for name, _ in inputs],
        input_stamps=[time_message(stamp) for _, stamp in inputs],
        published_stamp=time_message(published_ns),
        chunk_id=chunk_id,
        policy_id=policy_id,
        names=list(chunk.names),
        horizon=chunk.horizon,
        step=duration_message(step_ns),
        meaning=np.asarray([int(value) for value in chunk.meanings], np.uint8),
        unit=np.asarray([int(value) for value in chunk.units], np.uint8),
        data=np.ascontiguousarray(chunk.actions, np.float32).reshape(-1),
        steps_past=min(max(steps_past, 0), chunk.horizon),
        prompt=chunk.prompt,
        seed=chunk.seed,
        kv_age=chunk.kv_age,
        random_weights=random_weights,
        timings=types["pi05_ros/msg/InferenceTimings"](
            **dict.fromkeys(TIMING_FIELDS, float("nan")), denoise_steps=chunk.denoise_steps
        ),
        pose_groups=[
            types["pi05_ros/msg/PoseGroup"](**group.message_fields())
            for group in chunk.pose_groups
        ],
    )
