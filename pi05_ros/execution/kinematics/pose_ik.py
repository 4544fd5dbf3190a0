"""Joints for poses: damped least squares from where the arm is, within the joint limits.

The solution is followed along straight lines from pose to pose, so that it stays on the branch of
the present posture: an arm never jumps to another elbow or wrist.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pi05_ros.execution.kinematics.robot_model import Pose, RobotModel
from pi05_ros.execution.kinematics.rotations import exp, log

ARM_M = 0.2
"""Meters that weigh as much as one rad."""
STRIDE_M, STRIDE_RAD = 0.05, 0.2
"""Poses farther apart than this get others in between."""
MAX_STRIDES = 60
SWING_RAD = 0.6
"""No joint turns farther than this in one stride; that would be another branch."""
MAX_HALVINGS = 5
_MAX_ITERATIONS = 30
_MOST_PER_ITERATION = 0.3
_CONVERGED = 1e-6
_AT_LIMIT = 1e-9


@dataclass(frozen=True)
class PoseSettings:
    """How exactly poses are reached and where the arm slows down.

    Attributes:
        tolerance_m, tolerance_rad: a pose that cannot be reached this closely is out of reach.
        slow_below: smallest singular value of the Jacobian, in m per rad with rotations weighed
            by `ARM_M`, below which the arm slows down in proportion.
        slowest: part of the speed that is left at a singularity.

    """

    tolerance_m: float = 1e-3
    tolerance_rad: float = 0.01
    slow_below: float = 0.01
    slowest: float = 0.1


@dataclass(frozen=True)
class Target:
    """A link and where it shall be.

    Attributes:
        frame, base: the link, and the one it is seen from.
        pose: wanted.
        turned: whether the rotation counts.

    """

    frame: str
    base: str
    pose: Pose
    turned: bool = True


@dataclass(frozen=True)
class Reached:
    """Where following a pose ended.

    Attributes:
        positions: joints ``[n]`` of the model.
        pace: part of the speed at which the arm should be there.
        problem: why it ended before the pose, else empty.

    """

    positions: np.ndarray
    pace: float
    problem: str = ""


class PoseFollower:
    """Follows poses with some joints of a robot.

    Args:
        model: of the robot; its joints are the order of all arrays.
        free: rows of the joints that may move.
        lower, upper: their limits, for all joints of the model ``[n]``.
        settings: tolerances.
        budget: strides that may be made in all; then it goes no farther.

    """

    def __init__(
        self,
        model: RobotModel,
        free: Sequence[int],
        lower: np.ndarray,
        upper: np.ndarray,
        settings: PoseSettings | None = None,
        budget: int = 1000,
    ) -> None:
        self._budget = budget
        self._at: tuple[np.ndarray, list[Pose]] | None = None  # where the arm was last
        self._model = model
        self._free = list(free)
        self._lower, self._upper = lower, upper
        self._settings = settings or PoseSettings()

    def poses(self, positions: np.ndarray, targets: Sequence[Target]) -> list[Pose]:
        """Poses of the targets' links at joint positions ``[n]``."""
        if self._at is None or not np.array_equal(positions, self._at[0]):
            self._model.update(positions)
            self._at = positions, [self._model.placed(t.frame, t.base) for t in targets]
        return self._at[1]

    def follow(self, start: np.ndarray, targets: Sequence[Target]) -> Reached:
        """Move from joint positions ``[n]``, in a straight line, to where targets are."""
        positions, here = start, self.poses(start, targets)
        done, step = 0.0, 1.0 / min(max(map(_strides, here, targets)), MAX_STRIDES)
        halvings, pace = 0, 1.0
        while done < 1 - 1e-12:
            share = min(1.0, done + step)
            self._budget -= 1
            if self._budget < 0:
                return Reached(positions, pace, "it moves too far to be solved in time")
            between = targets if share >= 1 else [
                _between(pose, target, share) for pose, target in zip(here, targets, strict=True)
            ]  # fmt: skip
            found, pace, problem = self._solve(positions, between)
            swing = np.abs(found - positions)[self._free]
            if not problem and swing.max(initial=0.0) > SWING_RAD:
                if halvings < MAX_HALVINGS:
                    step, halvings = step / 2, halvings + 1
                    continue
                worst = int(np.argmax(swing))
                problem = (
                    f"{self._model.joints[self._free[worst]]} would swing by {swing[worst]:.2f} "
                    "rad: the arm is at a singularity"
                )
            if problem:
                return Reached(positions, pace, problem)
            positions, done = found, share
        self._at = positions, [target.pose for target in targets]
        return Reached(positions, pace)

    def _rows(self, target: Target) -> np.ndarray:
        jacobian = self._model.jacobian_of(target.frame, target.base)[:, self._free]
        if not target.turned:
            return jacobian[:3]
        jacobian[3:] *= ARM_M
        return jacobian

    def _error(self, target: Target) -> np.ndarray:
        """Weighed distance ``[3 or 6]`` to a target, after an update of the model."""
        pose = self._model.placed(target.frame, target.base)
        move: np.ndarray = target.pose.position - pose.position
        if not target.turned:
            return move
        turn = self._model.log(target.pose.rotation @ pose.rotation.T)
        return np.concatenate([move, ARM_M * turn])

    def _solve(
        self, start: np.ndarray, targets: Sequence[Target]
    ) -> tuple[np.ndarray, float, str]:
        """Joints ``[n]`` for poses nearby, the pace there, and why not quite, or empty."""
        model, free = self._model, self._free
        # A joint that is outside its limits may stay there, but goes no farther out.
        lower = np.minimum(self._lower, start)[free]
        upper = np.maximum(self._upper, start)[free]
        positions = best = start
        best_size, stalled = np.inf, 0
        errors: list[np.ndarray] = []
        rows: list[np.ndarray] = []
        for _ in range(_MAX_ITERATIONS):
            model.update(positions)
            now = [self._error(target) for target in targets]
            error = now[0] if len(now) == 1 else np.concatenate(now)
            size = float(error @ error)
            stalled = 0 if size < 0.9 * best_size else stalled + 1
            if size < best_size:
                best, best_size, errors = positions, size, now
            if rows and (size < _CONVERGED**2 or stalled > 4):
                break
            rows = [self._rows(target) for target in targets]
            stacked = rows[0] if len(rows) == 1 else np.vstack(rows)
            change = _damped(stacked, error, positions[free], lower, upper)
            largest = max(change.max(), -change.min())
            if largest > _MOST_PER_ITERATION:
                change *= _MOST_PER_ITERATION / largest
            positions = positions.copy()
            positions[free] = np.minimum(np.maximum(positions[free] + change, lower), upper)
        for target, off, jacobian in zip(targets, errors, rows, strict=True):
            problem = self._problem(target, off, jacobian, best[free], lower, upper)
            if problem:
                return best, 1.0, problem
        return best, self._pace(rows), ""

    def _pace(self, rows: Sequence[np.ndarray]) -> float:
        """Part of the speed: 1 away from singularities."""
        settings = self._settings
        if settings.slow_below <= 0:
            return 1.0
        least = min(_smallest(part) for part in rows)
        return min(1.0, max(settings.slowest, least / settings.slow_below))

    def _problem(
        self,
        target: Target,
        error: np.ndarray,
        jacobian: np.ndarray,
        values: np.ndarray,
        lower: np.ndarray,
        upper: np.ndarray,
    ) -> str:
        away = float(np.sqrt(error[:3] @ error[:3]))
        turn = float(np.sqrt(error[3:] @ error[3:])) / ARM_M
        if away <= self._settings.tolerance_m and turn <= self._settings.tolerance_rad:
            return ""
        x, y, z = target.pose.position
        return (
            f"{target.frame} at ({x:.3f}, {y:.3f}, {z:.3f}) m from {target.base} is out of "
            f"reach: {1e3 * away:.1f} mm and {turn:.3f} rad remain; "
            f"{self._blame(values, lower, upper, jacobian)}"
        )

    def _blame(
        self, values: np.ndarray, lower: np.ndarray, upper: np.ndarray, jacobian: np.ndarray
    ) -> str:
        """Which joints are at their limits; if none is, which one is nearest to losing its use."""
        names = [self._model.joints[row] for row in self._free]
        held = [
            f"{name} at its limit {value:.3f}"
            for name, value, low, high in zip(names, values, lower, upper, strict=True)
            if value <= low + _AT_LIMIT or value >= high - _AT_LIMIT
        ]
        if held:
            return ", ".join(held)
        directions = np.linalg.svd(jacobian, full_matrices=False)[2]
        worst = names[int(np.argmax(np.abs(directions[-1])))]
        return f"the arm is stretched out or singular, mostly {worst}"


def _smallest(rows: np.ndarray) -> float:
    """Smallest singular value."""
    gram = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
    return float(np.sqrt(max(0.0, np.linalg.eigvalsh(gram)[0])))


def _damped(
    rows: np.ndarray, error: np.ndarray, values: np.ndarray, lower: np.ndarray, upper: np.ndarray
) -> np.ndarray:
    """Step of the joints; those that would leave their limits are left out and it is redone."""
    damping = float(error @ error) + 1e-10
    usable = np.ones(len(values), dtype=bool)
    change = np.zeros(len(values))
    for _ in range(len(values)):
        part = rows if usable.all() else rows[:, usable]
        square = part @ part.T
        square.flat[:: len(square) + 1] += damping
        change = np.zeros(len(values))
        change[usable] = part.T @ np.linalg.solve(square, error)
        out = usable & (
            ((values <= lower + _AT_LIMIT) & (change < 0))
            | ((values >= upper - _AT_LIMIT) & (change > 0))
        )
        if not out.any():
            break
        usable &= ~out
        change[out] = 0.0
        if not usable.any():
            break
    return change


def _strides(pose: Pose, target: Target) -> int:
    away = float(np.linalg.norm(target.pose.position - pose.position)) / STRIDE_M
    if target.turned:
        cosine = (np.trace(target.pose.rotation @ pose.rotation.T) - 1) / 2
        away = max(away, float(np.arccos(np.clip(cosine, -1, 1))) / STRIDE_RAD)
    return max(1, int(np.ceil(min(away, MAX_STRIDES))))


def _between(pose: Pose, target: Target, share: float) -> Target:
    """A pose on the straight line to a target."""
    position = pose.position + share * (target.pose.position - pose.position)
    turn = log((target.pose.rotation @ pose.rotation.T)[None])
    rotation = exp(share * turn)[0] @ pose.rotation
    return Target(target.frame, target.base, Pose(position, rotation), target.turned)
