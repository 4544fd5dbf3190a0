"""Joint states of several publishers and in parts, merged per joint.

`joint_states` is shared: arm, gripper, lift and wheels may each have a publisher of their own.
`JointStateMerger` keeps the newest value of every wanted joint with the stamp of the message that
brought it. The age of the whole is that of its oldest joint. Publishers that disagree about the
same joint are detected and named. Nothing here needs rclpy.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pi05_ros.errors import InvalidValueError
from pi05_ros.runtime.inputs.conversion import ConversionError
from pi05_ros.runtime.inputs.joint_plausibility import (
    MAX_SPEED,
    NS,
    WINDOW_NS,
    JointConflict,
    JointValue,
    WatchedJoint,
)

MAX_SEEN = 64  # names and name orders that are remembered
_DEGREES = 180 / math.pi
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_TAKEN = "taken"
_FAULTS = {
    "joint_not_finite": "joint state is not finite: {}",
    "out_of_order": "stamp is older than that of the value before it: {}",
}


@dataclass(frozen=True)
class MergedJoints:
    """State of all wanted joints.

    Attributes:
        positions: ``[n]`` float64 in the order of the wanted joints.
        velocities: ``[n]`` float64, NaN where the newest message of a joint had none.
        stamps_ns: stamp of each joint's value.
        stamp_ns: oldest of them, joints that are published on change left out.

    """

    positions: np.ndarray
    velocities: np.ndarray
    stamps_ns: tuple[int, ...]
    stamp_ns: int


class JointStateMerger:
    """Newest value per joint, whichever message brought it.

    Args:
        names: wanted joints; the order of all arrays.
        on_change: those of them that are published only when they change. They do not count
            for `MergedJoints.stamp_ns` and survive `reset`.
        max_speeds: per joint, rad/s or m/s; a value that could only be reached faster is a jump.
        continuous: per joint whether it may step by a whole turn; units are then known to be rad
            or m. None: any may, and units are guessed.
        believe_after_ns: a jump counts only after the values before it have been silent for so
            long; until then the joint keeps its value and its stamp. 0: at once.
        future_ns: a kept stamp that lies farther ahead of the clock is replaced by any other.

    Attributes:
        counts: messages by what they were: "merged", "without_wanted_joint", "without_position".
        faults: per reason ("out_of_order", "joint_not_finite"), messages of which a joint could
            not be used.
        jumps: per joint, values that it cannot have reached by moving.

    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        on_change: Sequence[str] = (),
        max_speeds: Sequence[float] | None = None,
        continuous: Sequence[bool] | None = None,
        believe_after_ns: int = 0,
        future_ns: int = NS // 20,
    ) -> None:
        self.names = tuple(names)
        unknown = [name for name in on_change if name not in self.names]
        if unknown:
            raise InvalidValueError(
                f"no such joint: {', '.join(unknown)}; joints are {', '.join(self.names)}"
            )
        if on_change and set(on_change) == set(self.names):
            raise InvalidValueError("at least one joint must be published regularly")
        self.on_change = tuple(on_change)
        self.believe_after_ns = believe_after_ns
        self.future_ns = future_ns
        self.counts: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.jumps: Counter[str] = Counter()
        self.last_fault = ""
        self._regular = [i for i, name in enumerate(self.names) if name not in self.on_change]
        speeds = max_speeds if max_speeds is not None else [MAX_SPEED] * len(self.names)
        pairs = zip(self.names, speeds, strict=True)
        self._joints = [WatchedJoint(name, speed) for name, speed in pairs]
        if continuous is not None:
            for joint, turns in zip(self._joints, continuous, strict=True):
                joint.turns, joint.guess_unit = turns, False
        self._orders: dict[tuple[str, ...], list[tuple[int, int]]] = {}
        self._seen: dict[str, None] = {}  # names of messages, in the order of appearance

    def reset(self, *, keep_on_change: bool = True) -> None:
        """Forget all values; those published on change only if the clock itself went back."""
        for joint in self._joints:
            if not (keep_on_change and joint.name in self.on_change):
                joint.value = None
            joint.other = joint.conflict = None
            joint.returns.clear()

    def offer(
        self,
        names: Sequence[str],
        positions: Sequence[float],
        velocities: Sequence[float] = (),
        *,
        stamp_ns: int,
        now_ns: int | None = None,
        publisher: str | None = None,
    ) -> MergedJoints | None:
        """Merge one message.

        Args:
            names, positions, velocities: as in sensor_msgs/JointState; velocities may be empty.
            stamp_ns: of the message.
            now_ns: the clock that stamps are compared with; default the stamp.
            publisher: who sent it, if known.

        Returns:
            the state of all joints; None if the message changed none, or one is still missing.

        Raises:
            ConversionError: "joint_count", "joint_duplicate", "malformed": the message cannot be
                read. One without a wanted joint is never a fault.

        """
        now_ns = stamp_ns if now_ns is None else now_ns
        try:
            order = self._order(names)
            if not order:
                self.counts["without_wanted_joint"] += 1
                return None
            if not len(positions):  # of velocities or efforts alone
                self.counts["without_position"] += 1
                return None
            if len(positions) != len(names):
                raise ConversionError(
                    "joint_count",
                    f"joint state has {len(names)} names and {len(positions)} positions",
                )
            speeds = velocities if len(velocities) == len(names) else None
            values = [
                (
                    self._joints[joint],
                    JointValue(
                        float(positions[index]),
                        math.nan if speeds is None else float(speeds[index]),
                        stamp_ns,
                        publisher,
                    ),
                )
                for index, joint in order
            ]
        except ConversionError:
            raise
        except Exception as error:
            text = f"{type(error).__name__}: {str(error)[:200]}"
            raise ConversionError("malformed", f"joint state: {text}") from error
        self.counts["merged"] += 1
        fates = [(joint.name, self._take(joint, value, now_ns)) for joint, value in values]
        for code, text in _FAULTS.items():
            bad = [name for name, fate in fates if fate == code]
            if bad:
                self.faults[code] += 1
                self.last_fault = text.format(", ".join(bad))
        return self.merged() if any(fate == _TAKEN for _, fate in fates) else None

    def merged(self) -> MergedJoints | None:
        """State of all joints; None while one is missing."""
        values = [joint.value for joint in self._joints if joint.value is not None]
        if len(values) < len(self._joints) or not values:
            return None
        stamps = tuple(value.stamp_ns for value in values)
        return MergedJoints(
            np.array([value.position for value in values], np.float64),
            np.array([value.velocity for value in values], np.float64),
            stamps,
            min(stamps[index] for index in self._regular),
        )

    def wants(self, names: Sequence[str]) -> bool:
        """Whether a message of these joints has one that is wanted; counted if it has none."""
        try:
            wanted = bool(self._order(names))
        except (ConversionError, TypeError):
            return True  # `offer` says what is wrong with it
        self.counts["without_wanted_joint"] += not wanted
        return wanted

    @property
    def missing(self) -> tuple[str, ...]:
        """Joints that no message has brought."""
        return tuple(joint.name for joint in self._joints if joint.value is None)

    def describe_missing(self) -> str:
        """Sentence about `missing` and what the messages hold; empty if no joint is missing."""
        if not self.missing:
            return ""
        shown = ", ".join(name[:40] for name in list(self._seen)[:16])
        text = f"joint states lack {', '.join(self.missing)}; they have {shown or 'no names'}"
        if all(name in self._seen for name in self.missing):  # as after a jump of the clock
            text = f"no position has come of {', '.join(self.missing)}"
        if self.counts["without_position"]:
            text += f" ({self.counts['without_position']} messages hold no positions)"
        return text

    def oldest(self) -> tuple[str, int] | None:
        """Name and stamp of the oldest joint that is published regularly."""
        known = [(v.stamp_ns, i) for i in self._regular if (v := self._joints[i].value)]
        if not known:
            return None
        stamp_ns, index = min(known)
        return self.names[index], stamp_ns

    def on_change_stamps(self) -> dict[str, int]:
        """Stamp of each joint that is published on change and known."""
        return {
            joint.name: joint.value.stamp_ns
            for joint in self._joints
            if joint.value is not None and joint.name in self.on_change
        }

    def conflicts(self, now_ns: int) -> tuple[JointConflict, ...]:
        """Joints about which publishers have disagreed within the last second."""
        return tuple(
            joint.conflict
            for joint in self._joints
            if joint.conflict is not None and now_ns - joint.conflict_ns <= WINDOW_NS
        )

    def _order(self, names: Sequence[str]) -> list[tuple[int, int]]:
        """Pairs (index in the message, index of the joint) of the wanted joints it names."""
        key = tuple(names)
        known = self._orders.get(key)
        if known is not None:
            return known
        for name in key:
            if len(self._seen) < MAX_SEEN:
                self._seen[str(name)] = None
        double = [name for name, count in Counter(key).items() if count > 1]
        ambiguous = [name for name in self.names if name in double]
        if ambiguous:
            raise ConversionError(
                "joint_duplicate", f"joint state names {', '.join(ambiguous)} more than once"
            )
        where = {name: index for index, name in enumerate(key)}
        order = [(where[n], joint) for joint, n in enumerate(self.names) if n in where]
        if len(self._orders) < MAX_SEEN:
            self._orders[key] = order
        return order

    def _take(self, joint: WatchedJoint, new: JointValue, now_ns: int) -> str:
        """Accept a value unless it is unusable, older than the joint's, or not believed yet."""
        if not (math.isfinite(new.position) and abs(new.position) <= _FLOAT32_MAX):
            return "joint_not_finite"
        if joint.guess_unit and abs(new.position) > 4 * math.pi:
            joint.unit = _DEGREES
        kept = joint.value
        if kept is None:
            joint.value = new
            return _TAKEN
        late = new.stamp_ns < kept.stamp_ns <= now_ns + self.future_ns
        jumped = not joint.near(new, kept)
        if jumped:
            self.jumps[joint.name] += 1
            joint.judge(kept, new, late, now_ns)
        if late:
            return "out_of_order"
        if jumped and new.stamp_ns - kept.stamp_ns < self.believe_after_ns:
            joint.other = new
            return "jump"
        if jumped:
            joint.other = kept
        joint.value = new
        return _TAKEN


def merge_message(
    merger: JointStateMerger,
    message: Any,
    *,
    stamp_ns: int,
    now_ns: int | None = None,
    publisher: str | None = None,
) -> MergedJoints | None:
    """`JointStateMerger.offer` of a sensor_msgs/JointState."""
    try:
        names, positions, velocities = message.name, message.position, message.velocity
    except AttributeError as error:
        raise ConversionError("malformed", f"joint state: {error}") from error
    return merger.offer(
        names, positions, velocities, stamp_ns=stamp_ns, now_ns=now_ns, publisher=publisher
    )
