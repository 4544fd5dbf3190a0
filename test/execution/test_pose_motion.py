"""Chunks of poses with everything else that limits motion: space, jerk limits; and in slices."""

import numpy as np
import pytest
from pose_chunks import group, message

from pi05_ros.bench.space_arms import STOP_M, SphereArms
from pi05_ros.execution.arrival.chunk_intake import ChunkIntake
from pi05_ros.execution.arrival.pose_solver import PoseSolver
from pi05_ros.execution.arrival.wire import read_chunk
from pi05_ros.execution.executor import Executor, ExecutorSettings
from pi05_ros.execution.kinematics.pose_ik import PoseSettings
from pi05_ros.execution.space.scene import Scene
from pi05_ros.execution.space.space_file import space_from_mapping
from pi05_ros.execution.space.space_guard import SpaceGuard
from pi05_ros.execution.strategies import make_strategy
from pi05_ros.policy.interface import ActionMeaning

pytest.importorskip("pinocchio")
ARM = SphereArms(7)
BENT = np.array([0.0, -0.6, 0.0, 1.0, 0.0, 0.5, 0.0])
HAND = group(tool="arm0_tool", axes="base")
DELTA = ActionMeaning.TASK_DELTA


def towards(x, y, z, turn=0.0, steps=16):
    """Deltas that go on into one direction: m, and rad about z, per step."""
    return np.tile([x, y, z, 0.0, 0.0, turn], (steps, 1))


class Cell:
    """An arm that does as it is told, a policy that speaks in poses, and a recorder."""

    def __init__(self, way="off", rate_hz=50, space=False, **options):
        if space:
            pytest.importorskip("coal")
        self.limits = ARM.limits(0.0 if way == "off" else 0.1)
        options = {"period_s": 1 / rate_hz, "jerk_limiting": way, **options}
        settings = ExecutorSettings(**options)
        guard = None
        if space:
            spec = space_from_mapping(ARM.space())
            scene = Scene(ARM.urdf(), ARM.names, spec)
            guard = SpaceGuard(scene, spec, range(7), settings.period_s)
        self.core = Executor(self.limits, make_strategy("rtc"), settings, guard)
        self.solver = PoseSolver(self.limits, ARM.urdf(), PoseSettings())
        self.dt, self.k, self.place = 1 / rate_hz, 0, BENT.copy()
        self.path = [self.place]
        self.taken = []
        self.intake = ChunkIntake(
            self.core, lambda: self.solver, lambda _, chunk: self.taken.append(chunk)
        )

    @property
    def now(self):
        return 10**9 + round(self.k * self.dt * 1e9)

    def chunk(self, table, number, **given):
        return message(
            [HAND],
            [table],
            DELTA,
            start_ns=self.now,
            chunk_id=number,
            random_weights=False,
            **given,
        )

    def run(self, seconds, table=None):
        for _ in range(round(seconds / self.dt)):
            self.core.measure(self.place, self.now)
            if table is not None and self.k % round(0.2 / self.dt) == 0:
                left = self.intake.take(self.chunk(table, self.k), self.now)
                while left:
                    left = self.intake.go_on(self.now)
            self.place = self.tick()
        return self.place

    def tick(self):
        command = self.core.tick(self.now)
        self.k += 1
        place = self.place if command.positions is None else command.positions
        self.path.append(place)
        return place

    def within_limits(self):
        rows = np.array([self.path[0], *self.path])
        v = np.diff(rows, axis=0) / self.dt
        a = np.diff(v, axis=0) / self.dt
        j = np.diff(a, axis=0) / self.dt
        limits = self.limits
        assert (np.abs(v) <= limits.velocity * (1 + 1e-6) + 1e-9).all()
        assert (np.abs(a) <= limits.acceleration * (1 + 1e-6) + 1e-7).all()
        assert (np.abs(j) <= limits.jerk_limits * (1 + 1e-6) + 1e-4).all()
        assert (rows >= limits.lower).all()
        assert (rows <= limits.upper).all()


@pytest.mark.parametrize("way", ["off", "path", "ruckig"])
def test_poses_that_lead_into_wall_and_box_end_before_them(way):
    if way == "ruckig":
        pytest.importorskip("ruckig")
    cell = Cell(way, rate_hz=20, space=True)
    for direction in ([0.02, 0, 0], [0.0, -0.02, -0.01], [-0.02, 0.01, 0.01], [0.02, -0.02, 0]):
        cell.run(1.2, towards(*direction))
    cell.within_limits()
    assert np.ptp(cell.path, axis=0).max() > 0.2
    clear = np.array([ARM.clearances(row) for row in cell.path])
    assert clear.min() >= STOP_M - 1e-6
    assert clear[:, :2].min() < STOP_M + 0.1  # and it was near


@pytest.mark.parametrize("way", ["off", "path", "ruckig"])
def test_where_poses_ask_for_it_the_arm_slows_down(way):
    if way == "ruckig":
        pytest.importorskip("ruckig")
    travelled = []
    for pace in (1.0, 0.2):
        cell = Cell(way)
        read = read_chunk(
            cell.chunk(towards(0.0, 0.0, -0.008), 1),
            cell.limits,
            lambda _: BENT,
            lambda cell=cell: cell.solver,
        )
        read.pace[:] = pace
        cell.core.measure(cell.place, cell.now)
        cell.core.offer(read, cell.now)
        cell.run(0.6)
        cell.within_limits()
        travelled.append(np.abs(cell.path[-1] - BENT).max())
    assert 0.05 * travelled[0] < travelled[1] < 0.5 * travelled[0]


def test_a_chunk_in_slices_is_the_chunk_at_once():
    cell = Cell(rate_hz=500)
    cell.core.measure(BENT, cell.now)
    asked = cell.chunk(towards(0.004, 0.002, -0.004, 0.01, steps=40), 7)
    whole = read_chunk(asked, cell.limits, cell.core.measured_at, lambda: cell.solver)
    left, slices = cell.intake.take(asked, cell.now), 1
    while left:
        assert cell.core.accepted == 0
        left, slices = cell.intake.go_on(cell.now), slices + 1
    assert 1 < slices <= 41
    (taken,) = cell.taken
    np.testing.assert_array_equal(taken.positions, whole.positions)
    np.testing.assert_array_equal(taken.pace, whole.pace)
    assert not cell.intake.go_on(cell.now)


def test_while_poses_are_solved_joints_pass_and_the_newest_poses_wait():
    cell = Cell(rate_hz=500)
    cell.core.measure(BENT, cell.now)
    first, second, third = (cell.chunk(towards(0, 0, -0.004, steps=60), k) for k in (1, 2, 3))
    assert cell.intake.take(first, cell.now)
    assert cell.intake.take(second, cell.now)
    assert cell.intake.take(third, cell.now)
    assert cell.core.refused == {"busy": 1}
    rows = np.tile(BENT, (4, 1))
    joints = message([], [np.zeros((4, 0))], joints=dict(zip(ARM.names, rows.T, strict=True)))
    joints.random_weights, joints.chunk_id, joints.policy_id = False, 1, "another"
    joints.header.stamp = first.header.stamp
    assert cell.intake.take(joints, cell.now)
    assert cell.core.accepted == 1
    while cell.intake.go_on(cell.now):
        pass
    assert cell.core.gate.chunk_id == 3
    assert cell.core.accepted == 3


@pytest.mark.parametrize("forget", ["stop", "resume", "halt", "hold", "jump"])
def test_poses_that_came_before_a_stop_are_not_followed_after_it(forget):
    cell = Cell(rate_hz=500)
    cell.core.measure(BENT, cell.now)
    cell.core.tick(cell.now)
    assert cell.intake.take(cell.chunk(towards(0, 0, -0.004, steps=60), 1), cell.now)
    core = cell.core
    if forget in ("stop", "resume"):
        core.stop("operator") if forget == "stop" else core.resume()
    elif forget == "jump":
        cell.k = -400
        core.tick(cell.now)
    else:
        setattr(
            *((core.interlocks, "halted") if forget == "halt" else (core, "hold_chunks")), True
        )
        core.tick(cell.now)
        core.interlocks.halted = core.hold_chunks = False
    while cell.intake.go_on(cell.now):
        pass
    core.resume()
    assert core.accepted == 0
    assert not core.strategy.reaches(cell.now)
