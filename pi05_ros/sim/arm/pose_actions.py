"""The policy's joint actions as LIBERO's end-effector deltas, and back by the executor's path.

Shows what is lost on the way: 7 numbers in -1 to 1 as robosuite's controller takes them (0.05 m
and 0.5 rad per 1 along and about the axes of the base, gripper -1 open), float32 on the wire, and
the inverse kinematics of the executor.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from pi05_ros.execution.arrival.pose_solver import PoseSolver
from pi05_ros.execution.arrival.wire import read_chunk
from pi05_ros.execution.kinematics.rotations import log
from pi05_ros.execution.limits import JointLimits
from pi05_ros.execution.timed_chunk import ChunkRefusedError, TimedChunk
from pi05_ros.policy.robots.profile_yaml import load_profile

BASE, TIP = "base", "tip"
PROFILE = "libero_poses"


def arm_urdf() -> str:
    """Robot description of the simulated arm."""
    return Path(__file__).with_name("arm.urdf").read_text(encoding="utf-8")


class PoseActions:
    """Converts chunks of the simulated arm.

    Args:
        limits: of the arm and its gripper.

    Attributes:
        refused, shortened: chunks that were refused, or that end early; ``reason`` of the last.
        clipped: values beyond -1 to 1 among ``values``.

    """

    def __init__(self, limits: JointLimits) -> None:
        self._limits = limits
        self._solver = PoseSolver(limits, arm_urdf())
        profile = load_profile(PROFILE)
        (group,) = profile.pose_groups
        self._group = dataclasses.replace(group, frame=BASE, tool=TIP)
        self._profile = profile
        self.refused = self.shortened = self.clipped = self.values = 0
        self.reason = ""

    def model_numbers(self, actions: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Joint actions ``[H, 7]`` that begin at joints ``[7]``, as ``[H, 7]`` of LIBERO."""
        model = self._solver.model
        poses = [model.pose(row[:6], TIP, BASE) for row in (state, *actions)]
        places = np.array([pose.position for pose in poses])
        turns = np.array([pose.rotation for pose in poses])
        changes = log(turns[1:] @ turns[:-1].transpose(0, 2, 1))
        numbers = np.hstack(
            [np.diff(places, axis=0) / 0.05, changes / 0.5, 2 * actions[:, 6:] - 1]
        )
        self.values += numbers.size
        self.clipped += int(np.count_nonzero(np.abs(numbers[:, :6]) > 1))
        return np.clip(numbers, -1.0, 1.0)

    def chunk(
        self, actions: np.ndarray, state: np.ndarray, start_ns: int, step_ns: int
    ) -> TimedChunk | None:
        """Joints ``[H, 7]`` by way of LIBERO's numbers; None if the executor refuses them."""
        numbers = self.model_numbers(np.asarray(actions, np.float64), state).astype(np.float32)
        profile, group = self._profile, self._group
        columns = [
            unit_map.command(numbers[:, i]) for i, unit_map in enumerate(profile.action_maps)
        ]
        message = SimpleNamespace(
            header=SimpleNamespace(stamp=_time(start_ns), frame_id=""),
            published_stamp=_time(start_ns),
            step=_time(step_ns),
            steps_past=0,
            horizon=len(numbers),
            names=list(profile.action_names),
            data=np.stack(columns, axis=1).astype(np.float32).reshape(-1),
            meaning=[int(meaning) for meaning in profile.action_meanings],
            unit=[int(unit) for unit in profile.command_units],
            policy_id="eval",
            chunk_id=0,
            pose_groups=[SimpleNamespace(**group.message_fields())],
        )
        try:
            found = read_chunk(message, self._limits, lambda _: state, lambda: self._solver)
        except ChunkRefusedError as error:
            self.refused, self.reason = self.refused + 1, str(error)
            return None
        if found.cut:
            self.shortened, self.reason = self.shortened + 1, found.cut
        return found


def _time(ns: int) -> SimpleNamespace:
    return SimpleNamespace(sec=ns // 1_000_000_000, nanosec=ns % 1_000_000_000)
