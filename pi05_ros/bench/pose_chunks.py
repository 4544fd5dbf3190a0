"""CPU time of solving chunks of poses for an arm of 7 joints, of the slices in which the node does
that, and of the control periods after.

python -m pi05_ros.bench.pose_chunks
"""

from __future__ import annotations

import sys
import time

import numpy as np

from pi05_ros.execution.arrival.chunk_intake import LEAST_SLICE_S
from pi05_ros.execution.arrival.pose_solver import PoseSolver
from pi05_ros.execution.executor import Executor, ExecutorSettings
from pi05_ros.execution.kinematics.rotations import log
from pi05_ros.execution.limits import limits_from_urdf
from pi05_ros.execution.strategies import make_strategy
from pi05_ros.execution.timed_chunk import TimedChunk
from pi05_ros.policy.interface import ActionMeaning
from pi05_ros.policy.pose_groups import AXES_BASE, ROTATION_VECTOR, PoseGroup
from pi05_ros.tables import markdown_table

# Origins (x, y, z, roll) of the joints of an arm with the proportions of a Franka.
ORIGINS = (
    (0, 0, 0.333, 0), (0, 0, 0, -1.5708), (0, -0.316, 0, 1.5708), (0.0825, 0, 0, 1.5708),
    (-0.0825, 0.384, 0, -1.5708), (0, 0, 0, 1.5708), (0.088, 0, 0, 1.5708),
)  # fmt: skip
CENTER = np.array([0.0, -0.4, 0.0, -2.0, 0.0, 1.6, 0.8])
STEPS = (10, 16, 50)
STEP_NS = 50_000_000
CHUNKS = 60
RATE_HZ = 500
COLUMNS = ("x", "y", "z", "rx", "ry", "rz")


def arm_of_seven() -> str:
    """URDF of the arm."""
    joints = "".join(
        f'<link name="link{i}"/><joint name="joint{i}" type="revolute">'
        f'<parent link="{f"link{i - 1}" if i else "base"}"/><child link="link{i}"/>'
        f'<origin xyz="{x} {y} {z}" rpy="{roll} 0 0"/><axis xyz="0 0 1"/>'
        '<limit lower="-2.8" upper="2.8" velocity="2" effort="80"/></joint>'
        for i, (x, y, z, roll) in enumerate(ORIGINS)
    )
    return f'<robot name="seven"><link name="base"/>{joints}</robot>'


def measure(steps: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Milliseconds of CPU time per chunk ``[CHUNKS]``, per slice and per control period."""
    urdf = arm_of_seven()
    limits = limits_from_urdf(urdf)
    solver = PoseSolver(limits, urdf)
    group = PoseGroup("hand", "base", "link6", COLUMNS, ROTATION_VECTOR, AXES_BASE)
    executor = Executor(limits, make_strategy("rtc"), ExecutorSettings(period_s=1 / RATE_HZ))
    rng = np.random.default_rng(seed)
    place, phase = CENTER.copy(), rng.uniform(0, 6, 7)
    solved: list[float] = []
    slices: list[float] = []
    ticks: list[float] = []
    now = 10**9
    for number in range(1, CHUNKS + 1):
        executor.measure(place, now)
        s = now / 1e9 + np.arange(steps + 1)[:, None] * STEP_NS / 1e9
        path = CENTER + 0.4 * np.sin(s + phase)
        path[0] = place
        poses = [solver.model.pose(row, group.tool, group.frame) for row in path]
        turns = np.array([pose.rotation for pose in poses])
        changes = np.hstack(
            [
                np.diff([pose.position for pose in poses], axis=0),
                log(turns[1:] @ turns[:-1].transpose(0, 2, 1)),
            ]
        )
        columns = {name: changes[:, i] for i, name in enumerate(COLUMNS)}
        work = solver.solve_slowly([group], [ActionMeaning.TASK_DELTA], columns, place, {})
        first, rows = len(slices), None
        while rows is None:
            began = time.thread_time()
            try:
                while time.thread_time() - began < LEAST_SLICE_S:
                    next(work)
            except StopIteration as end:
                rows = end.value
            slices.append((time.thread_time() - began) * 1e3)
        solved.append(sum(slices[first:]))
        chunk = TimedChunk(
            now, STEP_NS, rows.positions, "bench", number, summed=(True,) * 7, pace=rows.pace
        )
        executor.offer(chunk, now)
        for _ in range(RATE_HZ // 5):
            now += 1_000_000_000 // RATE_HZ
            executor.measure(place, now)
            began = time.thread_time()
            command = executor.tick(now)
            ticks.append((time.thread_time() - began) * 1e3)
            if command.positions is not None:
                place = command.positions
    return np.array(solved), np.array(slices), np.array(ticks)


def main() -> int:
    """Print a table of chunk lengths."""
    rows = []
    for steps in STEPS:
        shown = [
            f"{value:.2f}" for times in measure(steps) for value in np.percentile(times, [50, 99])
        ]
        rows.append([steps, *shown])
    head = ["steps", *(f"{w} p{p} ms" for w in ("chunk", "slice", "tick") for p in (50, 99))]
    print(markdown_table(head, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
