"""Action chunks of poses, without ROS."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from pi05_ros.execution.kinematics.robot_model import Pose, RobotModel
from pi05_ros.execution.kinematics.rotations import from_matrices
from pi05_ros.policy.interface import ActionMeaning, ActionUnit
from pi05_ros.policy.pose_groups import EULER, ROTATION_COLUMNS

STEP_NS = 50_000_000


def time_of(ns: int) -> SimpleNamespace:
    return SimpleNamespace(sec=ns // 10**9, nanosec=ns % 10**9)


def group(name="hand", frame="base", tool="link6", rotation="rotation_vector", axes=""):
    count = ROTATION_COLUMNS.get(rotation, 3)
    return SimpleNamespace(
        name=name,
        frame_id=frame,
        tool_frame_id=tool,
        columns=[f"{name}_{c}" for c in ("x", "y", "z", *(f"r{i}" for i in range(count)))],
        rotation=rotation,
        axes=axes,
    )


def message(groups, tables, meaning=ActionMeaning.TASK_POSE, joints=None, start_ns=10**9, **given):
    """A chunk of poses, one table ``[H, columns]`` per group, and joints name -> ``[H]``."""
    joints = joints or {}
    names, units = [], []
    for item in groups:
        angles = item.rotation == "rotation_vector" or item.rotation in EULER
        rest = ActionUnit.RADIAN if angles else ActionUnit.DIMENSIONLESS
        names += item.columns
        units += [ActionUnit.METRE] * 3 + [rest] * (len(item.columns) - 3)
    count = len(names)
    data = np.hstack([*tables, *[np.reshape(values, (-1, 1)) for values in joints.values()]])
    return SimpleNamespace(
        **{
            "header": SimpleNamespace(stamp=time_of(start_ns), frame_id=""),
            "published_stamp": time_of(start_ns),
            "step": time_of(STEP_NS),
            "steps_past": 0,
            "horizon": len(data),
            "names": [*names, *joints],
            "data": data.astype(np.float32).reshape(-1),
            "meaning": [int(meaning)] * count + [0] * len(joints),
            "unit": [int(unit) for unit in units] + [int(ActionUnit.RADIAN)] * len(joints),
            "policy_id": "test",
            "chunk_id": 1,
            "pose_groups": list(groups),
            **given,
        }
    )


def poses_of(model: RobotModel, path: np.ndarray, tool: str, frame: str = "base") -> list[Pose]:
    return [model.pose(row, tool, frame) for row in path]


def written(start: Pose, poses: list[Pose], rotation: str, meaning: ActionMeaning, axes: str):
    """Numbers ``[H, columns]`` of poses, as a group with these properties gives them."""
    rows, turns, last = [], [], start
    for pose in poses:
        if meaning == ActionMeaning.TASK_POSE:
            change = pose
        elif axes == "tool":
            change = last.inverse() @ pose
        else:
            change = Pose(pose.position - last.position, pose.rotation @ last.rotation.T)
        rows.append(change.position)
        turns.append(change.rotation)
        if meaning == ActionMeaning.TASK_DELTA:
            last = pose
    return np.hstack([np.array(rows), from_matrices(np.array(turns), rotation)])
