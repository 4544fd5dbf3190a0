"""Joint commands as twists and poses of a link, for Cartesian controllers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pi05_ros.execution.kinematics.robot_model import KinematicsError, Pose, RobotModel
from pi05_ros.execution.kinematics.rotations import exp
from pi05_ros.execution.limit_sources.joint_limits import JointLimits


class ToolMotion:
    """Motion of one link as commanded, within speed limits of its own.

    Args:
        limits: of all joints of the executor, in command order.
        joints: those that this output commands.
        urdf: text of the robot description.
        frame: link from which the motion is seen, and whose axes it is in.
        tool: link that moves.
        max_linear, max_angular: m/s and rad/s; faster motion is scaled down as a whole.

    Raises:
        KinematicsError: a link or joint is not in the robot description, or a joint between the
            two links is not among ``joints``.

    """

    def __init__(
        self,
        limits: JointLimits,
        joints: Sequence[str],
        urdf: str,
        frame: str,
        tool: str,
        max_linear: float,
        max_angular: float,
    ) -> None:
        self._model = RobotModel(urdf, joints)
        self._frame, self._tool = frame, tool
        drivers = self._model.drivers(tool, frame)
        for name in drivers:
            if name not in joints:
                raise KinematicsError(
                    f"{name} moves {tool} from {frame} and is not among the joints of this output"
                )
        still = [name for name in joints if name not in drivers]
        if still:
            raise KinematicsError(f"{', '.join(still)} do not move {tool} from {frame}")
        self._rows = [limits.names.index(name) for name in joints]
        for row in self._rows:
            if limits.units[row] not in ("", "radian", "metre"):
                raise KinematicsError(f"{limits.names[row]} is in {limits.units[row]}")
        self._limits = limits
        self._max_linear, self._max_angular = max_linear, max_angular
        self._sent: Pose | None = None

    def twist(
        self,
        positions: np.ndarray,
        velocities: np.ndarray,
        measured: np.ndarray | None,
        gain: float,
    ) -> np.ndarray:
        """Linear (m/s) and angular (rad/s) velocity ``[6]`` of the link's origin.

        Args:
            positions, velocities: commanded ``[n]``, of all joints.
            measured: joint positions ``[n]``; None where they are not to be believed.
            gain: 1/s: velocity added per distance between the commanded and the measured pose.

        """
        model, rows = self._model, self._rows
        model.update(positions[rows])
        twist: np.ndarray = model.jacobian_of(self._tool, self._frame) @ velocities[rows]
        if measured is not None and gain:
            wanted = model.placed(self._tool, self._frame)
            is_at = model.pose(measured[rows], self._tool, self._frame)
            twist[:3] += gain * (wanted.position - is_at.position)
            twist[3:] += gain * model.log(wanted.rotation @ is_at.rotation.T)
        return twist * self._share(twist[:3], twist[3:], 1.0)

    def pose(self, positions: np.ndarray, period_s: float) -> Pose:
        """Commanded pose of the link; it moves no faster than allowed from the one before."""
        wanted = self._model.pose(positions[self._rows], self._tool, self._frame)
        last = self._sent
        if last is not None:
            move = wanted.position - last.position
            turn = self._model.log(wanted.rotation @ last.rotation.T)
            share = self._share(move, turn, period_s)
            if share < 1:
                wanted = Pose(
                    last.position + share * move, exp(share * turn[None])[0] @ last.rotation
                )
        self._sent = wanted
        return wanted

    def forget(self) -> None:
        """Commanding ends: the next pose is the first."""
        self._sent = None

    def _share(self, move: np.ndarray, turn: np.ndarray, seconds: float) -> float:
        """Part of a motion that is allowed within a time."""
        fast = max(
            float(np.linalg.norm(move)) / (self._max_linear * seconds),
            float(np.linalg.norm(turn)) / (self._max_angular * seconds),
        )
        return 1.0 / fast if fast > 1 else 1.0
