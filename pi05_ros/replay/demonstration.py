"""Windows of a recorded demonstration: what the policy would see, and what the demonstrator did.

Times are header stamps (log times where a stamp is 0). The demonstrator's actions are the recorded
commands (`.../joint_commands`, sensor_msgs/JointState) or, without them, the measured joint states
that followed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pi05_ros.bags.bag import Bag, BagError
from pi05_ros.bags.cdr_messages import JOINT_STATE
from pi05_ros.bags.timeline import header_stamp_ns
from pi05_ros.bags.topics import JOINT_STATES, PROMPT, Source, by_topic
from pi05_ros.replay.offline import converters
from pi05_ros.runtime.inputs import conversion
from pi05_ros.runtime.inputs.joint_states import JointStateMerger, merge_message

COMMANDS = "joint_commands"


@dataclass(frozen=True)
class RecordedJoints:
    """Joint values over time: stamps ``[T]`` ns, ascending, and values ``[T, n]``."""

    names: tuple[str, ...]
    stamps: np.ndarray
    values: np.ndarray

    def at(self, times_ns: np.ndarray) -> np.ndarray:
        """Newest values at times ``[K]`` as ``[K, n]``; NaN before the first and after the end."""
        index = np.searchsorted(self.stamps, times_ns, "right") - 1
        found = self.values[np.clip(index, 0, len(self.values) - 1)].copy()
        step = np.median(np.diff(self.stamps)) if len(self.stamps) > 1 else 0
        found[(index < 0) | (times_ns > self.stamps[-1] + step)] = np.nan
        return np.asarray(found)


@dataclass
class Demonstration:
    """One bag, read but for its images.

    Attributes:
        state: measured joints in the policy's order.
        actions: what the demonstrator commanded, or measured joints.
        commanded: whether `actions` are commands.
        frames: camera role -> stamps (ns) of its frames, ascending.
        prompts: (stamp, text), ascending.

    """

    bag: Bag
    sources: Mapping[str, Source]
    roles: tuple[str, ...]
    state: RecordedJoints
    actions: RecordedJoints
    commanded: bool
    frames: dict[str, list[int]]
    prompts: list[tuple[int, str]] = field(default_factory=list)

    def prompt_at(self, time_ns: int) -> str | None:
        """Newest prompt; the first one before that."""
        if not self.prompts:
            return None
        index = bisect_right([stamp for stamp, _ in self.prompts], time_ns) - 1
        return self.prompts[max(index, 0)][1]

    def newest(self, role: str, time_ns: int) -> int | None:
        """Stamp of the newest frame of a camera at a time."""
        stamps = self.frames[role]
        index = bisect_right(stamps, time_ns) - 1
        return stamps[index] if index >= 0 else None

    def pick(self, count: int, span_ns: int) -> list[int]:
        """Up to `count` times, evenly spread over frames that `span_ns` of actions follow."""
        end = int(self.actions.stamps[-1]) - span_ns
        start = int(max(self.state.stamps[0], self.actions.stamps[0]))
        times = [t for t in self.frames[self.roles[0]] if start <= t <= end]
        times = [t for t in times if all(self.newest(role, t) is not None for role in self.roles)]
        chosen = np.unique(np.linspace(0, len(times) - 1, min(count, len(times))).round())
        return [times[int(index)] for index in chosen]

    def stream(self, role: str, stamps: set[int]) -> Iterator[tuple[int, np.ndarray | None]]:
        """Frames of one camera in the order of the recording; None for one that is unreadable."""
        name, convert = converters(self.sources, self.roles)[role]
        left = set(stamps)
        for message in self.bag.messages([self.sources[name].topic]):
            stamp = _stamp(message.raw, message.log_ns)
            if stamp not in left:
                continue
            left.remove(stamp)
            try:
                yield stamp, convert(message.decode())
            except (BagError, conversion.ConversionError):
                yield stamp, None

    def size(self, role: str) -> tuple[int, int]:
        """Height and width of the first readable frame."""
        for _, image in self.stream(role, set(self.frames[role])):
            if image is not None:
                return image.shape[0], image.shape[1]
        raise BagError(f"{self.bag.path} has no readable frame of the camera {role}")

    def images(self, wanted: Mapping[str, Sequence[int]]) -> dict[tuple[str, int], np.ndarray]:
        """Frames by camera role and stamp, ``[H, W, 3]`` uint8; those that do not decode lack."""
        convert = converters(self.sources, self.roles)
        roles = {name: role for role, (name, _) in convert.items()}
        topics = by_topic({name: self.sources[name] for name in roles})
        keys = {(role, stamp) for role, stamps in wanted.items() for stamp in stamps}
        found: dict[tuple[str, int], np.ndarray] = {}
        for message in self.bag.messages(topics):
            stamp = _stamp(message.raw, message.log_ns)
            for name in topics[message.topic]:
                key = roles[name], stamp
                if key in keys and key not in found:
                    try:
                        found[key] = convert[key[0]][1](message.decode())
                    except (BagError, conversion.ConversionError):
                        continue
        return found


def read_demonstration(
    bag: Bag,
    sources: Mapping[str, Source],
    roles: tuple[str, ...],
    state_names: Sequence[str],
    action_names: Sequence[str],
) -> Demonstration:
    """Read joints, commands, prompts and the stamps of the frames.

    Raises:
        BagError: the bag lacks joint states or frames.

    """
    commands = [
        topic.name
        for topic in bag.topics.values()
        if topic.name.endswith(f"/{COMMANDS}") and topic.msgtype == JOINT_STATE and topic.count
    ]
    topics = by_topic(sources)
    joints = sources[JOINT_STATES].topic
    state = _Track(state_names)
    known = [name for name in action_names if name in state_names]
    measured, commanded = _Track(known), _Track(known)
    frames: dict[str, list[int]] = {role: [] for role in roles}
    cameras = {name: role for role, (name, _) in converters(sources, roles).items()}
    prompts: list[tuple[int, str]] = []
    latest = 0
    for message in bag.messages([*topics, *commands[:1]]):
        stamp = _stamp(message.raw, message.log_ns)
        if PROMPT not in topics.get(message.topic, ()):
            latest = max(latest, stamp)
        if message.topic == joints:
            state.take(message, stamp)
            measured.take(message, stamp)
        elif message.topic in commands[:1]:
            commanded.take(message, stamp)
        for name in topics.get(message.topic, ()):
            if name == PROMPT:
                # It has no stamp: it holds for what is stamped later than what came before it.
                prompts.append((latest + 1, str(message.decode().data)))
            elif name in cameras:
                frames[cameras[name]].append(stamp)
    for role, stamps in frames.items():
        if not stamps:
            raise BagError(f"{bag.path} has no frames of the camera {role}")
        stamps.sort()
    if not state.stamps:
        raise BagError(f"{bag.path} has no joint states of {', '.join(state_names)}")
    told = bool(commanded.stamps)
    actions = commanded if told else measured
    return Demonstration(
        bag, sources, roles, state.track(), actions.track(), told, frames, prompts
    )


class _Track:
    """Collects joint values."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.merger = JointStateMerger(names)
        self.stamps: list[int] = []
        self.values: list[np.ndarray] = []

    def take(self, message: Any, stamp_ns: int) -> None:
        try:
            merged = merge_message(self.merger, message.decode(), stamp_ns=stamp_ns)
        except (BagError, conversion.ConversionError):
            return
        if merged is not None:
            self.stamps.append(max(merged.stamps_ns))
            self.values.append(merged.positions)

    def track(self) -> RecordedJoints:
        order = np.argsort(self.stamps, kind="stable")
        stamps = np.asarray(self.stamps, np.int64)[order]
        return RecordedJoints(self.names, stamps, np.asarray(self.values)[order])


def _stamp(raw: bytes, log_ns: int) -> int:
    """Header stamp, or the log time if there is none."""
    stamp = header_stamp_ns(raw)
    return log_ns if stamp is None or stamp <= 0 else stamp
