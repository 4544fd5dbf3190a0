"""ActionChunk messages to timed chunks: every field is checked as the message's comments say."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import numpy as np

from pi05_ros.execution.arrival.pose_solver import PoseSolver, run_through
from pi05_ros.execution.arrival.pose_wire import TASKS, read_pose_chunk
from pi05_ros.execution.limit_sources.joint_limits import JointLimits
from pi05_ros.execution.timed_chunk import ChunkRefusedError, TimedChunk, timed_chunk

NS = 1_000_000_000


def read_chunk(
    message: Any,
    limits: JointLimits,
    measured_at: Callable[[int], np.ndarray | None],
    poses: Callable[[], PoseSolver] | None = None,
) -> TimedChunk:
    """Check an ActionChunk message and put it into the order of the limits' joints.

    Args:
        message: anything with the fields of pi05_ros/ActionChunk.
        limits: of the joints that the chunk has to name.
        measured_at: positions ``[n]`` at a time, from which deltas and velocities start.
        poses: gives what solves poses, or raises ChunkRefusedError saying why it cannot.

    Raises:
        ChunkRefusedError: as `timed_chunk`, and "step", "stamp", "steps past", "frame"; for poses
            also "pose", "rotation", "unreachable".

    """
    return run_through(read_slowly(message, limits, measured_at, poses))


def has_poses(message: Any) -> bool:
    """Whether a message is a chunk of poses, which takes time to read."""
    return bool(getattr(message, "pose_groups", ())) or any(k in TASKS for k in message.meaning)


def read_slowly(
    message: Any,
    limits: JointLimits,
    measured_at: Callable[[int], np.ndarray | None],
    poses: Callable[[], PoseSolver] | None = None,
) -> Generator[None, None, TimedChunk]:
    """`read_chunk` in small pieces: one for each step of a chunk of poses."""
    start_ns = _nanoseconds(message.header.stamp, "stamp", "header.stamp")
    published_ns = _nanoseconds(message.published_stamp, "stamp", "published_stamp")
    step_ns = _nanoseconds(message.step, "step", "step")
    if message.steps_past > message.horizon:
        raise ChunkRefusedError(
            "steps past",
            f"steps_past is {message.steps_past}; accepted: up to the horizon, {message.horizon}",
        )
    if has_poses(message):
        times = (start_ns, published_ns, step_ns)
        found = yield from read_pose_chunk(message, limits, measured_at(start_ns), times, poses)
        return found
    if message.header.frame_id:
        raise ChunkRefusedError(
            "frame",
            f"frame_id is {message.header.frame_id[:80]!r}; accepted: empty, as for all actions "
            "of joints",
        )
    return timed_chunk(
        joints=limits.names,
        names=message.names,
        data=message.data,
        horizon=message.horizon,
        step_ns=step_ns,
        start_ns=start_ns,
        meaning=list(message.meaning),
        reference=measured_at(start_ns),
        policy_id=message.policy_id,
        chunk_id=message.chunk_id,
        published_ns=published_ns,
        unit=list(message.unit),
        joint_units=limits.units,
    )


def _nanoseconds(time: Any, reason: str, name: str) -> int:
    if not 0 <= time.nanosec < NS or time.sec < 0:
        raise ChunkRefusedError(
            reason,
            f"{name} is {time.sec} s and {time.nanosec} ns; accepted: 0 s or more, nanosec below "
            f"{NS}",
        )
    return int(time.sec) * NS + int(time.nanosec)
