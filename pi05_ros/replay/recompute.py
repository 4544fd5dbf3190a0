"""Recompute recorded chunks from the bag of their inputs.

Every chunk names the samples it answers, its prompt, seed and denoise steps. The same policy on
the same machine must give the same actions again, bit for bit.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pi05_ros.bags.bag import Bag, BagError, BagMessage
from pi05_ros.bags.chunk_record import ChunkRecord
from pi05_ros.bags.timeline import header_stamp_ns
from pi05_ros.bags.topics import JOINT_STATES, PROMPT, Source, by_topic
from pi05_ros.replay.compare import Comparison, Difference
from pi05_ros.replay.offline import UntimedPolicy, converters
from pi05_ros.runtime import inference
from pi05_ros.runtime.inference import Job, PolicyLike
from pi05_ros.runtime.inputs import conversion
from pi05_ros.runtime.inputs.joint_states import JointStateMerger, MergedJoints, merge_message
from pi05_ros.runtime.inputs.observation_buffer import Snapshot, SourceSample
from pi05_ros.runtime.inputs.sources import camera_source
from pi05_ros.runtime.parameters import PolicyParameters
from pi05_ros.runtime.policy_loading import load_policy


def policy_for(parameters: PolicyParameters, chunks: Sequence[ChunkRecord]) -> PolicyLike:
    """Load the policy that computes recorded chunks again, each from a KV cache of its own.

    Raises:
        BagError: the chunks continue each other, and some of them are not computed again.

    """
    reused = sum(chunk.kv_age > 0 for chunk in chunks)
    if parameters.chunk_mode != "plain" and reused:
        raise BagError(
            f"{reused} of {len(chunks)} recorded chunks reuse the KV cache of an earlier one and "
            f"cannot be computed again, nor can those that continue them (chunk_mode "
            f"{parameters.chunk_mode})"
        )
    return load_policy(dataclasses.replace(parameters, kv_reuse="1"), UntimedPolicy)


def verify(
    bag: Bag,
    sources: Mapping[str, Source],
    policy: PolicyLike,
    chunks: Sequence[ChunkRecord],
    tolerance: float = 0.0,
    on_change: Sequence[str] = (),
) -> Comparison:
    """Compute every chunk again and compare its actions.

    Chunks with a KV age are left out (they also depend on an earlier observation).

    `on_change` is the parameter on_change_joints of the run that made them.

    Raises:
        BagError: nothing to compare; a chunk does not name its samples, or one of them is not in
            the bag or unusable.

    """
    todo = [chunk for chunk in chunks if chunk.kv_age == 0]
    if not todo:
        raise BagError(
            f"none of {len(chunks)} recorded chunks can be computed again"
            + (": all reuse the KV cache of an earlier one" if chunks else "")
        )
    for chunk in todo:
        if JOINT_STATES not in chunk.inputs:
            raise BagError(f"chunk {chunk.chunk_id} does not say which {JOINT_STATES} it used")
    samples = _Samples(todo, JointStateMerger(policy.robot.state_names, on_change=on_change))
    names = by_topic({n: s for n, s in sources.items() if n != PROMPT})
    differences: list[Difference] = []
    largest = 0.0
    waiting = list(todo)
    for message in _and_end(bag.messages(names)):
        if message is not None and not samples.take(message, names[message.topic]):
            continue
        for chunk in [c for c in waiting if samples.complete(c, last=message is None)]:
            waiting.remove(chunk)
            try:
                distance, text = _again(chunk, samples.kept, sources, policy, tolerance)
            except ValueError as error:  # a sample, or what the chunk says of itself
                raise BagError(
                    f"chunk {chunk.chunk_id} cannot be computed again: {error}"
                ) from error
            largest = max(largest, distance)
            if text:
                differences.append(Difference(chunk.observation_ns, text, chunk.chunk_id))
            samples.release(chunk)
    if waiting:
        chunk = waiting[0]
        unreadable = samples.broken.get(chunk.inputs[JOINT_STATES])
        if unreadable is not None:
            raise BagError(f"chunk {chunk.chunk_id} cannot be computed again: {unreadable}")
        absent = ", ".join(f"{n} at {s / 1e9:.6f} s" for n, s in sorted(chunk.inputs.items()))
        raise BagError(
            f"{bag.path} lacks samples of {len(waiting)} of {len(todo)} chunks; the first is "
            f"chunk {chunk.chunk_id}, which used {absent}"
        )
    return Comparison(len(todo), 0, 0, largest, differences)


class _Samples:
    """Samples that chunks name, from when they are read until no chunk needs them.

    Attributes:
        kept: by input and stamp (ns): the image, or the states in the order of arrival.
        broken: why joint states could not be read, by stamp.

    """

    def __init__(self, chunks: Sequence[ChunkRecord], joints: JointStateMerger) -> None:
        self.kept: dict[tuple[str, int], list[Any]] = {}
        self.broken: dict[int, Exception] = {}
        self._uses = Counter(key for chunk in chunks for key in chunk.inputs.items())
        self._joints = joints
        self._joints_ns = 0

    def take(self, message: BagMessage, names: Sequence[str]) -> bool:
        """Keep what chunks use of a message; whether a chunk may have become complete."""
        if list(names) == [JOINT_STATES]:
            return self._take_joints(message)
        stamp_ns = header_stamp_ns(message.raw)
        if stamp_ns is None:
            return False
        keys = [(name, stamp_ns) for name in names]
        keys = [key for key in keys if self._uses[key] and key not in self.kept]
        self.kept.update({key: [message] for key in keys})
        return bool(keys)

    def _take_joints(self, message: BagMessage) -> bool:
        try:
            merged = _merge(self._joints, message)
        except (BagError, conversion.ConversionError) as error:
            self.broken[header_stamp_ns(message.raw) or 0] = error
            return False
        if merged is None:
            return False
        key = (JOINT_STATES, merged.stamp_ns)
        self._joints_ns = merged.stamp_ns
        if self._uses[key]:
            self.kept.setdefault(key, []).append(merged.positions.astype(np.float32))
        return True

    def complete(self, chunk: ChunkRecord, *, last: bool) -> bool:
        """Whether all samples of a chunk are there, also joint states in parts (at the end)."""
        there = chunk.inputs.items() <= self.kept.keys()
        return there and (last or self._joints_ns > chunk.inputs[JOINT_STATES])

    def release(self, chunk: ChunkRecord) -> None:
        """Drop samples that no other chunk needs."""
        for used in chunk.inputs.items():
            self._uses[used] -= 1
            if not self._uses[used]:
                del self.kept[used]


def _and_end(messages: Iterator[BagMessage]) -> Iterator[BagMessage | None]:
    """The messages, then None."""
    yield from messages
    yield None


def _merge(joints: JointStateMerger, message: BagMessage) -> MergedJoints | None:
    """State after a message; None if it gives none. Raises BagError, ConversionError."""
    decoded = message.decode()
    stamp_ns = conversion.stamp_ns(decoded.header.stamp)
    return merge_message(joints, decoded, stamp_ns=stamp_ns)


def _again(
    chunk: ChunkRecord,
    kept: Mapping[tuple[str, int], Sequence[Any]],
    sources: Mapping[str, Source],
    policy: PolicyLike,
    tolerance: float,
) -> tuple[float, str]:
    """Largest difference of the actions, and what to say about it.

    Joint states in parts give several states of the same age; the chunk used one of them.
    """
    samples = {
        name: SourceSample(kept[name, stamp][0].decode(), stamp, 0)
        for name, stamp in chunk.inputs.items()
        if name != JOINT_STATES
    }
    stamp = chunk.inputs[JOINT_STATES]
    results = []
    for state in reversed(kept[JOINT_STATES, stamp]):
        samples[JOINT_STATES] = SourceSample(state, stamp, 0)
        results.append(_compute(chunk, samples, sources, policy, tolerance))
        if not results[-1][1]:
            break
    return min(results)


def _compute(
    chunk: ChunkRecord,
    samples: Mapping[str, SourceSample],
    sources: Mapping[str, Source],
    policy: PolicyLike,
    tolerance: float,
) -> tuple[float, str]:
    roles = tuple(r for r in policy.robot.camera_roles if camera_source(r) in samples)
    job = Job(
        generation=0,
        snapshot=Snapshot(dict(samples)),
        images=converters(sources, roles),
        joints=JOINT_STATES,
        prompt=chunk.prompt,
        seed=chunk.seed,
        denoise_steps=chunk.denoise_steps,
    )
    actions = np.asarray(inference.run(policy, job).chunk.actions, np.float32)
    if actions.shape != chunk.data.shape:
        return float("inf"), f"recorded data is {chunk.data.shape}, computed {actions.shape}"
    if np.array_equal(actions, chunk.data):
        return 0.0, ""
    distance = float(np.abs(actions.astype(np.float64) - chunk.data).max())
    if distance <= tolerance:
        return distance, ""
    return distance, f"computed again, the actions are off by {distance:.3g}"
