"""Where the tool goes if the arm follows a chunk: poses in the base frame."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from pi05_ros.bags.chunk_record import ChunkRecord
from pi05_ros.execution.kinematics.robot_model import KinematicsError, RobotModel
from pi05_ros.policy.interface import ActionMeaning


@dataclass(frozen=True)
class ToolPose:
    """Position ``[3]`` in meters and rotation ``[3, 3]`` in the base frame."""

    position: np.ndarray
    rotation: np.ndarray

    @property
    def quaternion(self) -> tuple[float, float, float, float]:
        """x, y, z, w."""
        r = self.rotation
        # The largest of the four squares is divided by: never by nearly zero.
        squares = np.array(
            [
                1 + r[0, 0] - r[1, 1] - r[2, 2],
                1 - r[0, 0] + r[1, 1] - r[2, 2],
                1 - r[0, 0] - r[1, 1] + r[2, 2],
                1 + r[0, 0] + r[1, 1] + r[2, 2],
            ]
        )
        k = int(np.argmax(squares))
        row = (
            (squares[0], r[1, 0] + r[0, 1], r[0, 2] + r[2, 0], r[2, 1] - r[1, 2]),
            (r[1, 0] + r[0, 1], squares[1], r[2, 1] + r[1, 2], r[0, 2] - r[2, 0]),
            (r[0, 2] + r[2, 0], r[2, 1] + r[1, 2], squares[2], r[1, 0] - r[0, 1]),
            (r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1], squares[3]),
        )[k]
        x, y, z, w = np.asarray(row) / (2.0 * np.sqrt(squares[k]))
        return float(x), float(y), float(z), float(w)


@dataclass(frozen=True)
class Tool:
    """Kinematics of a tool.

    Attributes:
        joints: that decide where it is.
        frame: name of the base frame.
        source: where this is known from, for people.
        forward: pose of joint positions ``[n]``, in the order of `joints`.

    """

    joints: tuple[str, ...]
    frame: str
    source: str
    forward: Callable[[np.ndarray], ToolPose]


def urdf_tool(text: str, frame: str = "", base: str = "") -> Tool:
    """The tool of a URDF.

    Args:
        text: the URDF.
        frame: link of the tool; empty: the last link of the longest chain.
        base: link in which poses are told; empty: the root.

    Raises:
        KinematicsError: Pinocchio is missing, the URDF cannot be read, or has no such link.

    """
    model = RobotModel(text)
    if not frame:
        frame = max(model.frames, key=lambda name: len(model.movers(name, base)))
    for name in filter(None, (frame, base)):
        if name not in model.frames:
            raise KinematicsError(
                f"the URDF has no link {name!r}; it has {', '.join(model.frames)}"
            )
    movers = model.movers(frame, base)
    columns = [model.joints.index(name) for name in movers]

    def forward(positions: np.ndarray) -> ToolPose:
        values = np.zeros(len(model.joints))
        values[columns] = positions
        pose = model.pose(values, frame, base)
        return ToolPose(np.asarray(pose.position), np.asarray(pose.rotation))

    return Tool(tuple(movers), base or model.frames[0], f"link {frame} of the URDF", forward)


def chunk_positions(chunk: ChunkRecord, measured: Mapping[str, float]) -> dict[str, np.ndarray]:
    """Positions ``[H]`` that a chunk means, by joint; joints it does not place are left out."""
    found: dict[str, np.ndarray] = {}
    for j, (name, meaning) in enumerate(zip(chunk.names, chunk.meaning, strict=True)):
        values = np.asarray(chunk.data[:, j], np.float64)
        if meaning == ActionMeaning.ABSOLUTE:
            found[name] = values
        elif meaning in (ActionMeaning.DELTA, ActionMeaning.VELOCITY) and name in measured:
            step = 1.0 if meaning == ActionMeaning.DELTA else chunk.step_ns / 1e9
            found[name] = measured[name] + np.cumsum(values) * step
    return found


def tool_path(tool: Tool, chunk: ChunkRecord, measured: Mapping[str, float]) -> list[ToolPose]:
    """Poses of the tool at the steps of a chunk; empty if it does not place all its joints.

    Joints that the chunk is not about stay where they were measured.
    """
    positions = chunk_positions(chunk, measured)
    columns = []
    for name in tool.joints:
        if name in positions:
            columns.append(positions[name])
        elif name in measured and name not in chunk.names:
            columns.append(np.full(len(chunk.data), measured[name]))
        else:
            return []
    if not columns:
        return []
    return [tool.forward(row) for row in np.stack(columns, axis=1)]
