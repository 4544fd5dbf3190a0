"""ActionChunk messages with pose groups: checked, solved, and put into the joints' order."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import numpy as np

from pi05_ros.execution.arrival.pose_solver import MAX_POSE_STEPS, PoseSolver
from pi05_ros.execution.limit_sources.joint_limits import JointLimits
from pi05_ros.execution.timed_chunk import ChunkRefusedError, TimedChunk, check_sizes, timed_chunk
from pi05_ros.policy.interface import ActionMeaning, ActionUnit
from pi05_ros.policy.pose_groups import PoseGroup, pose_groups_fault

TASKS = (ActionMeaning.TASK_DELTA, ActionMeaning.TASK_POSE, ActionMeaning.TASK_FROM_START)


def read_pose_chunk(
    message: Any,
    limits: JointLimits,
    reference: np.ndarray | None,
    times: tuple[int, int, int],
    poses: Callable[[], PoseSolver] | None,
) -> Generator[None, None, TimedChunk]:
    """A chunk whose columns are poses, and perhaps joints, as a chunk of joints; step by step.

    Args:
        message: with at least one pose group, or a column with a meaning of poses.
        limits: of the executor's joints.
        reference: joint positions ``[n]`` at the chunk's stamp, or None.
        times: start, publication and step in ns.
        poses: gives what solves poses, or raises ChunkRefusedError; None: nothing does.

    Raises:
        ChunkRefusedError: as `timed_chunk`, and "pose", "rotation", "unreachable".

    """
    start_ns, published_ns, step_ns = times
    names, horizon = list(message.names), int(message.horizon)
    meaning, unit = list(message.meaning), list(message.unit)
    groups, kinds = _declared(message, names, horizon)
    if poses is None:
        raise ChunkRefusedError("pose", "nothing here solves poses")
    solver = poses()
    if reference is None:
        raise ChunkRefusedError("meaning", "poses cannot be solved before joint states are known")
    taken = {name for group in groups for name in group.columns}
    direct = [name for name in names if name not in taken]
    moved = solver.moved(groups, direct)
    _check_cover(limits, direct, moved)
    table = np.asarray(message.data, dtype=np.float64).reshape(horizon, len(names))
    columns = [names.index(name) for name in direct]
    of = limits.of(direct)
    plain = timed_chunk(
        joints=of.names,
        names=direct,
        data=table[:, columns].reshape(-1),
        horizon=horizon,
        step_ns=step_ns,
        start_ns=start_ns,
        meaning=[meaning[i] for i in columns],
        reference=reference[[limits.names.index(name) for name in direct]],
        unit=[unit[i] for i in columns],
        joint_units=of.units,
    )
    if not np.isfinite(table).all():
        raise ChunkRefusedError("not finite", "chunk holds NaN or infinite values")
    solved = yield from solver.solve_slowly(
        groups,
        [kinds[names.index(group.columns[0])] for group in groups],
        {name: table[:, names.index(name)] for name in taken},
        reference,
        {name: plain.positions[:, i] for i, name in enumerate(direct)},
    )
    if not len(solved.positions):
        raise ChunkRefusedError("unreachable", solved.problem)
    positions = solved.positions
    rows = [limits.names.index(name) for name in direct]
    positions[:, rows] = plain.positions[: len(positions)]
    summed = dict.fromkeys(limits.names, True) | dict(
        zip(direct, plain.summed, strict=True)
    )  # solved joints go on from the reference, as sums of changes do
    return TimedChunk(
        start_ns,
        step_ns,
        positions,
        message.policy_id,
        message.chunk_id,
        published_ns,
        tuple(summed[name] for name in limits.names),
        solved.pace,
        solved.problem,
    )


def _declared(
    message: Any, names: list[str], horizon: int
) -> tuple[tuple[PoseGroup, ...], list[ActionMeaning]]:
    """Pose groups of a chunk and the meaning of its columns, where they fit each other."""
    meaning, unit = list(message.meaning), list(message.unit)
    check_sizes(len(message.data), meaning, unit, horizon, len(names))
    groups = tuple(PoseGroup.of_message(item) for item in getattr(message, "pose_groups", ()))
    kinds = [ActionMeaning(value) for value in _known("meaning", meaning, len(ActionMeaning))]
    units = [ActionUnit(value) for value in _known("unit", unit, len(ActionUnit))]
    if not groups:
        loose = [n for n, kind in zip(names, kinds, strict=True) if kind in TASKS]
        raise ChunkRefusedError(
            "meaning",
            f"{', '.join(loose)[:200]} belong to an end effector, and the chunk has no "
            "pose_groups that say which link it is and how its pose is written",
        )
    if len(set(names)) != len(names):
        raise ChunkRefusedError("names", f"chunk names repeat: {names!s:.300}")
    fault = pose_groups_fault(groups, names, kinds, units)
    frame = message.header.frame_id
    if fault is None and frame and any(group.frame != frame for group in groups):
        fault = f"frame_id is {frame[:80]!r}, and a group has another"
    if fault is not None:
        raise ChunkRefusedError("pose", fault)
    if horizon > MAX_POSE_STEPS:
        raise ChunkRefusedError(
            "length", f"chunk of poses has {horizon} steps; accepted: up to {MAX_POSE_STEPS}"
        )
    return groups, kinds


def _known(word: str, values: list[int], count: int) -> list[int]:
    for value in values:
        if not 0 <= value < count:
            raise ChunkRefusedError(word, f"action {word} {value} is not known")
    return values


def _check_cover(limits: JointLimits, direct: list[str], moved: tuple[str, ...]) -> None:
    extra = sorted(set(direct) - set(limits.names))
    missing = sorted(set(limits.names) - set(direct) - set(moved))
    if extra or missing:
        raise ChunkRefusedError(
            "names",
            f"chunk's joints and poses do not move the executor's joints {list(limits.names)} "
            f"(missing {missing}, unknown {extra})",
        )
