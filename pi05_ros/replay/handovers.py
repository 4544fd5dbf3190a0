"""When a person had the arm in a recording, what they commanded, and how the task went.

Read from what the executor and the task node say: `.../executor_status` (or the Bool
`.../intervention`), `.../teleop`, `.../status` of the task node. Times are stamps, or log times
where a message has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pi05_ros.bags.bag import Bag, BagError
from pi05_ros.bags.cdr_messages import BOOL, EXECUTOR_STATUS, JOINT_STATE, TASK_STATUS, to_ns
from pi05_ros.bags.timeline import header_stamp_ns

TRAJECTORY = "trajectory_msgs/msg/JointTrajectory"
TARGET_AGE_NS = 500_000_000
"""A person's target is in force for this long, the executor's default teleop_timeout_s."""
SUCCESS, FAILURE = "success", "failure"


@dataclass(frozen=True)
class HandOvers:
    """Of one recording.

    Attributes:
        changes: (time ns, whether a person has the arm from then on), ascending.
        targets: (time ns, joint -> position) that the person commanded, ascending.
        outcome: "success", "failure", or "unknown".

    """

    changes: list[tuple[int, bool]] = field(default_factory=list)
    targets: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    outcome: str = "unknown"

    def intervention(self, times: np.ndarray) -> np.ndarray:
        """Whether a person has the arm at times ``[T]`` ns, bool ``[T]``."""
        found = np.zeros(len(times), bool)
        if self.changes:
            stamps = np.array([stamp for stamp, _ in self.changes])
            flags = np.array([flag for _, flag in self.changes])
            index = np.searchsorted(stamps, times, "right") - 1
            found = np.where(index >= 0, flags[np.maximum(index, 0)], False)
        return np.asarray(found, bool)

    def humanize(
        self, times: np.ndarray, names: Sequence[str], actions: np.ndarray
    ) -> tuple[np.ndarray, int]:
        """Actions ``[T, n]`` with the person's targets where a person has the arm.

        Joints that the person does not name keep the command.

        Returns:
            The actions and the number of rows that hold a person's target.

        """
        found, count = actions.copy(), 0
        stamps = np.array([stamp for stamp, _ in self.targets])
        for row in np.flatnonzero(self.intervention(times)):
            index = int(np.searchsorted(stamps, times[row], "right")) - 1
            if index < 0 or times[row] - stamps[index] > TARGET_AGE_NS:
                continue
            target = self.targets[index][1]
            columns = [(names.index(joint), value) for joint, value in target.items()]
            for column, value in columns:
                found[row, column] = value
            count += bool(columns)
        return found, count


def read_handovers(bag: Bag, joints: Sequence[str]) -> HandOvers:
    """Hand-overs of a recording; of several robots, those of the first topics by name."""
    status = _topic(bag, "/executor_status", (EXECUTOR_STATUS,))
    flag = _topic(bag, "/intervention", (BOOL,))
    teleop = _topic(bag, "/teleop", (JOINT_STATE, TRAJECTORY))
    task = _topic(bag, "/status", (TASK_STATUS,))
    changes: list[tuple[int, bool]] = []
    flags: list[tuple[int, bool]] = []
    targets: list[tuple[int, dict[str, float]]] = []
    outcome = bag.custom.get("outcome", "")
    for message in bag.messages([topic for topic in (status, flag, teleop, task) if topic]):
        try:
            content = message.decode()
        except BagError:
            continue
        if message.topic == status:
            changes.append((to_ns(content.stamp) or message.log_ns, bool(content.intervention)))
        elif message.topic == flag:
            flags.append((message.log_ns, bool(content.data)))
        elif message.topic == task:
            outcome = content.outcome or outcome
        else:
            found = _target(content, message.msgtype, joints)
            stamp = header_stamp_ns(message.raw)
            if found:
                targets.append((message.log_ns if not stamp or stamp < 0 else stamp, found))
    # A status of another release cannot be decoded; the Bool says the same, without a stamp.
    changes = changes or flags
    changes.sort(key=lambda change: change[0])
    targets.sort(key=lambda target: target[0])
    return HandOvers(changes, targets, outcome if outcome in (SUCCESS, FAILURE) else "unknown")


def _topic(bag: Bag, ending: str, types: tuple[str, ...]) -> str:
    names = sorted(
        topic.name
        for topic in bag.topics.values()
        if topic.name.endswith(ending) and topic.msgtype in types and topic.count
    )
    return names[0] if names else ""


def _target(content: object, msgtype: str, joints: Sequence[str]) -> dict[str, float]:
    """Joints of ours and where a person wants them; empty if that cannot be used."""
    if msgtype == JOINT_STATE:
        names, positions = content.name, content.position  # type: ignore[attr-defined]
    else:
        points = content.points  # type: ignore[attr-defined]
        names = content.joint_names  # type: ignore[attr-defined]
        positions = points[-1].positions if points else []
    if len(names) != len(positions):
        return {}
    found = {n: float(p) for n, p in zip(names, positions, strict=True) if n in joints}
    return found if np.isfinite(list(found.values())).all() else {}
