"""Columns of actions that are the pose of a link: which link, seen from where, written how.

Used by robot profiles and by the executor; the fields are those of PoseGroup.msg.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

NO_ROTATION, ROTATION_VECTOR = "none", "rotation_vector"
QUATERNION_XYZW, QUATERNION_WXYZ = "quaternion_xyzw", "quaternion_wxyz"
ROT6D_COLUMNS, ROT6D_ROWS = "rot6d_columns", "rot6d_rows"
# Three rotations about axes of which no two that follow each other are the same.
EULER = tuple(
    f"euler_{''.join(axes)}_{kind}"
    for axes in itertools.product("xyz", repeat=3)
    if axes[0] != axes[1] and axes[1] != axes[2]
    for kind in ("intrinsic", "extrinsic")
)
ROTATION_COLUMNS: dict[str, int] = {
    NO_ROTATION: 0,
    ROTATION_VECTOR: 3,
    QUATERNION_XYZW: 4,
    QUATERNION_WXYZ: 4,
    ROT6D_COLUMNS: 6,
    ROT6D_ROWS: 6,
    **dict.fromkeys(EULER, 3),
}
"""Ways to write a rotation, and how many numbers each takes."""
AXES_BASE, AXES_TOOL = "base", "tool"
MAX_GROUPS = 8


@dataclass(frozen=True)
class PoseGroup:
    """Columns that are one link's pose or its changes.

    Attributes:
        name: for people.
        frame: link from which it is seen.
        tool: link whose pose it is.
        columns: names: x, y, z, then the rotation.
        rotation: one of ROTATION_COLUMNS.
        axes: of changes: AXES_BASE (moved and turned along and about the axes of ``frame``) or
            AXES_TOOL (of ``tool``); empty for poses.

    """

    name: str
    frame: str
    tool: str
    columns: tuple[str, ...]
    rotation: str
    axes: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, see `of`."""
        return {
            "name": self.name,
            "frame": self.frame,
            "tool": self.tool,
            "columns": list(self.columns),
            "rotation": self.rotation,
            "axes": self.axes,
        }

    @staticmethod
    def of(values: Mapping[str, Any]) -> PoseGroup:
        """The inverse of `as_dict`."""
        return PoseGroup(**{**values, "columns": tuple(values["columns"])})

    def message_fields(self) -> dict[str, Any]:
        """Fields of pi05_ros/PoseGroup, see `of_message`."""
        fields = self.as_dict()
        fields["frame_id"], fields["tool_frame_id"] = fields.pop("frame"), fields.pop("tool")
        return fields

    @staticmethod
    def of_message(message: Any) -> PoseGroup:
        """From anything with the fields of pi05_ros/PoseGroup."""
        return PoseGroup(
            name=message.name,
            frame=message.frame_id,
            tool=message.tool_frame_id,
            columns=tuple(message.columns),
            rotation=message.rotation,
            axes=message.axes,
        )


def pose_groups_fault(
    groups: Sequence[PoseGroup],
    names: Sequence[str],
    meanings: Sequence[IntEnum],
    units: Sequence[IntEnum],
) -> str | None:
    """Why groups do not fit the columns of a chunk or profile, or None.

    Args:
        groups: as given.
        names, meanings, units: one per column: `ActionMeaning` and `ActionUnit`, on the robot's
            side.

    """
    if len(groups) > MAX_GROUPS:
        return f"there are {len(groups)} pose groups; accepted: up to {MAX_GROUPS}"
    taken: dict[str, str] = {}
    tools: set[str] = set()
    for group in groups:
        fault = _fault(group, names, meanings, units)
        if fault is not None:
            return f"pose group {group.name!r:.80}: {fault}"
        for column in group.columns:
            if column in taken:
                return f"column {column!r} is in pose groups {taken[column]!r} and {group.name!r}"
            taken[column] = group.name
        if group.tool in tools:
            return f"two pose groups move the link {group.tool!r}"
        tools.add(group.tool)
    for name, meaning in zip(names, meanings, strict=True):
        if meaning.name in ("TASK_POSE", "TASK_FROM_START") and name not in taken:
            return (
                f"column {name!r} has meaning {meaning.name.lower()} and is in no pose group, "
                "which says of which link it is and how rotations are written"
            )
    return None


def _fault(
    group: PoseGroup,
    names: Sequence[str],
    meanings: Sequence[IntEnum],
    units: Sequence[IntEnum],
) -> str | None:
    for key, value in (("frame", group.frame), ("tool", group.tool)):
        if not value:
            return f"{key} is empty; accepted: the name of a link"
    if group.frame == group.tool:
        return f"frame and tool are both {group.frame!r:.80}"
    if group.rotation not in ROTATION_COLUMNS:
        return f"rotation is {group.rotation!r:.80}; accepted: {', '.join(ROTATION_COLUMNS)}"
    count = 3 + ROTATION_COLUMNS[group.rotation]
    if len(group.columns) != count or len(set(group.columns)) != count:
        return (
            f"it has {len(group.columns)} columns ({', '.join(group.columns)[:200]}); rotation "
            f"{group.rotation} takes {count} different ones"
        )
    rows = []
    for column in group.columns:
        if column not in names:
            return f"column {column!r:.80} is none of {', '.join(names)[:300]}"
        rows.append(list(names).index(column))
    kinds = {meanings[row].name for row in rows}
    if len(kinds) != 1 or not kinds <= {"TASK_POSE", "TASK_DELTA", "TASK_FROM_START"}:
        return (
            f"its columns have the meanings {', '.join(sorted(k.lower() for k in kinds))}; "
            "accepted: task_pose, task_delta or task_from_start for all"
        )
    wanted = AXES_BASE, AXES_TOOL
    if kinds == {"TASK_POSE"} and group.axes:
        return f"axes is {group.axes!r:.80}, which is for changes; accepted: none for task_pose"
    if kinds != {"TASK_POSE"} and group.axes not in wanted:
        return f"axes is {group.axes!r:.80}; accepted: {', '.join(wanted)}"
    angles = group.rotation == ROTATION_VECTOR or group.rotation in EULER
    for place, (column, row) in enumerate(zip(group.columns, rows, strict=True)):
        unit = "METRE" if place < 3 else "RADIAN" if angles else "DIMENSIONLESS"
        if units[row].name != unit:
            return (
                f"column {column!r} is in {units[row].name.lower()}; accepted: {unit.lower()}, "
                "in the chunk"
            )
    return None
