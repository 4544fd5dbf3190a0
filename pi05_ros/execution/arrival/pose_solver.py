"""Chunks of end-effector poses as chunks of joints, checked on arrival."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from pi05_ros.execution.kinematics.pose_ik import PoseFollower, PoseSettings, Target
from pi05_ros.execution.kinematics.robot_model import KinematicsError, Pose, RobotModel
from pi05_ros.execution.kinematics.rotations import RotationError, to_matrices
from pi05_ros.execution.limit_sources.joint_limits import JointLimits, LimitsError
from pi05_ros.execution.limit_sources.urdf_limits import read_urdf
from pi05_ros.execution.timed_chunk import ChunkRefusedError
from pi05_ros.policy.interface import ActionMeaning
from pi05_ros.policy.pose_groups import AXES_TOOL, NO_ROTATION, PoseGroup

MAX_POSE_STEPS = 500
"""Longest chunk of poses: each step is solved when the chunk arrives."""
_LENGTHS = ("", "radian", "metre")


T = TypeVar("T")


def run_through(steps: Generator[None, None, T]) -> T:
    """What a generator returns."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: T = end.value
            return found


@dataclass(frozen=True)
class PoseRows:
    """Joints for a chunk of poses.

    Attributes:
        positions: ``[k, n]`` in the order of the executor's joints; only joints that follow poses
            are set. ``k`` is less than the horizon if a pose cannot be reached.
        pace: ``[k]``, part of the speed at each step.
        problem: what is wrong with step ``k``, else empty.

    """

    positions: np.ndarray
    pace: np.ndarray
    problem: str


class PoseSolver:
    """Solves chunks of poses for the joints of an executor.

    Args:
        limits: of the executor's joints.
        urdf: text of the robot description.
        settings: tolerances and slow-down.

    Raises:
        KinematicsError: as `RobotModel`, or the robot description has none of the joints.

    """

    def __init__(
        self, limits: JointLimits, urdf: str, settings: PoseSettings | None = None
    ) -> None:
        try:
            known = read_urdf(urdf).commandable
        except LimitsError as error:
            raise KinematicsError(str(error)) from error
        joints = [
            name
            for name, unit in zip(limits.names, limits.units, strict=True)
            if name in known and unit in _LENGTHS
        ]
        if not joints:
            raise KinematicsError(
                f"the robot description has none of the joints {', '.join(limits.names)}; it has "
                f"{', '.join(known)}"
            )
        self.model = RobotModel(urdf, joints)
        self.limits = limits
        self.settings = settings or PoseSettings()
        self.rows = [limits.names.index(name) for name in joints]  # of the model's joints

    def moved(self, groups: Sequence[PoseGroup], given: Sequence[str]) -> tuple[str, ...]:
        """Joints that follow the poses of groups, without those that are given themselves.

        Raises:
            ChunkRefusedError: "pose": a link is not in the robot description, a joint between
                the two links is not commanded, or none is left to move.

        """
        found: list[str] = []
        for group in groups:
            try:
                drivers = self.model.drivers(group.tool, group.frame)
            except KinematicsError as error:
                raise ChunkRefusedError("pose", f"pose group {group.name!r}: {error}") from error
            foreign = [name for name in drivers if name not in self.model.joints]
            if foreign:
                raise ChunkRefusedError(
                    "pose",
                    f"pose group {group.name!r}: {', '.join(foreign)} between {group.frame} and "
                    f"{group.tool} is not among the executor's joints in rad or m",
                )
            own = [name for name in drivers if name not in given]
            if not own:
                raise ChunkRefusedError(
                    "pose",
                    f"pose group {group.name!r}: no joint is left that moves {group.tool} "
                    f"from {group.frame}",
                )
            found += [name for name in own if name not in found]
        return tuple(found)

    def solve(
        self,
        groups: Sequence[PoseGroup],
        meanings: Sequence[ActionMeaning],
        columns: Mapping[str, np.ndarray],
        start: np.ndarray,
        given: Mapping[str, np.ndarray],
    ) -> PoseRows:
        """Follow the poses from a measured posture.

        Args:
            groups: checked, see `pose_groups_fault`.
            meanings: one per group.
            columns: name -> values ``[H]`` in m and rad.
            start: joint positions ``[n]`` of the executor's joints at the chunk's stamp.
            given: joint -> positions ``[H]`` of joints that the chunk gives itself.

        Raises:
            ChunkRefusedError: "pose", "rotation": numbers that are no rotation.

        """
        return run_through(self.solve_slowly(groups, meanings, columns, start, given))

    def solve_slowly(
        self,
        groups: Sequence[PoseGroup],
        meanings: Sequence[ActionMeaning],
        columns: Mapping[str, np.ndarray],
        start: np.ndarray,
        given: Mapping[str, np.ndarray],
    ) -> Generator[None, None, PoseRows]:
        """`solve`, one step at a time; one chunk after the other."""
        horizon = len(next(iter(columns.values())))
        tracks = [
            _PoseTrack(group, kind, columns) for group, kind in zip(groups, meanings, strict=True)
        ]
        free = self.moved(groups, tuple(given))
        follower = PoseFollower(
            self.model,
            [self.model.joints.index(name) for name in free],
            self.limits.lower[self.rows],
            self.limits.upper[self.rows],
            self.settings,
            budget=horizon + MAX_POSE_STEPS // 2,
        )
        places = [
            (self.model.joints.index(name), values)
            for name, values in given.items()
            if name in self.model.joints
        ]
        here = np.array(start[self.rows], dtype=np.float64)
        targets = [track.target(Pose(np.zeros(3), np.eye(3))) for track in tracks]
        for track, pose in zip(tracks, follower.poses(here, targets), strict=True):
            track.start = track.last = pose
        rows, pace = np.zeros((horizon, len(start))), np.ones(horizon)
        rows[:] = start
        for k in range(horizon):
            for row, values in places:
                here[row] = values[k]
            targets = [track.target(track.at(k)) for track in tracks]
            reached = follower.follow(here, targets)
            if reached.problem:
                return PoseRows(rows[:k], pace[:k], f"step {k}: {reached.problem}")
            here = reached.positions.copy()
            rows[k, self.rows], pace[k] = here, reached.pace
            yield
        return PoseRows(rows, pace, "")


class _PoseTrack:
    """Poses of one group, step by step."""

    def __init__(
        self, group: PoseGroup, meaning: ActionMeaning, columns: Mapping[str, np.ndarray]
    ) -> None:
        self._group, self._meaning = group, meaning
        self._moves = np.stack([columns[name] for name in group.columns[:3]], axis=1)
        horizon = len(self._moves)
        numbers = [columns[name] for name in group.columns[3:]]
        values = np.stack(numbers, axis=1) if numbers else np.zeros((horizon, 0))
        try:
            self._turns = to_matrices(values, group.rotation)
        except RotationError as error:
            raise ChunkRefusedError(
                "rotation", f"pose group {group.name!r}, {group.rotation}: {error}"
            ) from error
        self.start = self.last = Pose(np.zeros(3), np.eye(3))

    def at(self, k: int) -> Pose:
        """Pose at a step; call it once for each, in order."""
        move, turn = self._moves[k], self._turns[k]
        if self._meaning == ActionMeaning.TASK_POSE:
            self.last = Pose(move, turn)
            return self.last
        old = self.last if self._meaning == ActionMeaning.TASK_DELTA else self.start
        if self._group.axes == AXES_TOOL:
            self.last = old @ Pose(move, turn)
        else:
            self.last = Pose(old.position + move, turn @ old.rotation)
        return self.last

    def target(self, pose: Pose) -> Target:
        """A pose as what the group's link has to reach."""
        group = self._group
        return Target(group.tool, group.frame, pose, group.rotation != NO_ROTATION)
