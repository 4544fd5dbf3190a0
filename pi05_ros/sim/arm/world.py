"""The simulated table: one arm, three blocks, two cameras, stepped at the control rate.

Joint order everywhere: joint1..joint6 in radians, then the gripper (0 open .. 1 closed).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pi05_ros.errors import InvalidValueError
from pi05_ros.sim.arm.kinematics import inverse
from pi05_ros.sim.arm.render import Renderer, make_renderer, mujoco

MODEL_PATH = Path(__file__).with_name("arm.xml")
JOINT_NAMES = ("joint1", "joint2", "joint3", "joint4", "joint5", "joint6", "gripper")
CAMERAS = ("base", "wrist")
BLOCKS = ("red", "green", "blue")
CONTROL_HZ = 20.0
CONTROL_DT = 1.0 / CONTROL_HZ
FINGER_TRAVEL = 0.038
"""Meters each finger moves between open and closed."""
BLOCK_HALF = 0.02
"""Half of a block's edge, meters; also its height when it lies on the table."""

AREA_X = (0.24, 0.38)
AREA_Y = (-0.15, 0.05)
"""Where blocks start, meters. The goal strip for pushing begins at y = 0.10."""
BLOCK_GAP = 0.085
"""Smallest distance between the centers of two blocks at the start: room for a finger."""
HOME_TIP = (0.24, -0.04, 0.18)
"""Middle of the start positions of the tip."""


class World:
    """MuJoCo model and state with the robot's view of it: joints in, images and joints out."""

    def __init__(self, renderer: str | None = None, sharing: World | None = None) -> None:
        """Load the model; the renderer (see `make_renderer`) is made at the first image.

        With ``sharing`` the model and the renderer of another world are used: many worlds, one
        GL context, one thread.
        """
        self.model: Any = (
            sharing.model if sharing else mujoco.MjModel.from_xml_path(str(MODEL_PATH))
        )
        self.data: Any = mujoco.MjData(self.model)
        self.rng = np.random.default_rng(0)
        self._sharing = sharing
        self._renderer_name = renderer
        self._renderer: Renderer | None = None
        joints = [self.model.joint(name).id for name in JOINT_NAMES[:6]]
        fingers = [self.model.joint(name).id for name in ("finger_left", "finger_right")]
        self._q = self.model.jnt_qposadr[joints]
        self._v = self.model.jnt_dofadr[joints]
        self._finger_q = self.model.jnt_qposadr[fingers]
        self._finger_v = self.model.jnt_dofadr[fingers]
        self._tip = self.model.site("tip").id
        self.lower = np.append(self.model.jnt_range[joints, 0], 0.0)
        self.upper = np.append(self.model.jnt_range[joints, 1], 1.0)
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Put blocks and arm at positions that are a function of the seed alone."""
        self.rng = np.random.default_rng(seed)
        mujoco.mj_resetData(self.model, self.data)
        placed: list[np.ndarray] = []
        while len(placed) < len(BLOCKS):
            spot = np.array([self.rng.uniform(*AREA_X), self.rng.uniform(*AREA_Y)])
            if all(np.linalg.norm(spot - other) > BLOCK_GAP for other in placed):
                placed.append(spot)
        for name, spot in zip(BLOCKS, placed, strict=True):
            self.place_block(name, spot, yaw=self.rng.uniform(-0.25, 0.25))
        tip = np.array(HOME_TIP) + self.rng.uniform(-1, 1, 3) * (0.03, 0.06, 0.03)
        self.set_joints(np.append(inverse(tip), 0.0))

    def place_block(self, name: str, spot: np.ndarray, yaw: float = 0.0) -> None:
        """Lay a block on the table at ``spot`` [x, y]."""
        joint = self.data.joint(name)
        joint.qpos[:] = [spot[0], spot[1], BLOCK_HALF, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]
        joint.qvel[:] = 0

    def set_joints(self, joints: np.ndarray) -> None:
        """Put the arm at ``joints`` [7] at rest, targets included (no motion in between)."""
        self.data.qpos[self._q] = joints[:6]
        self.data.qvel[self._v] = 0
        self.data.qpos[self._finger_q] = joints[6] * FINGER_TRAVEL
        self.data.qvel[self._finger_v] = 0
        self.data.ctrl[:6] = joints[:6]
        self.data.ctrl[6:] = joints[6] * FINGER_TRAVEL
        mujoco.mj_forward(self.model, self.data)

    def step(self, target: np.ndarray, duration: float = CONTROL_DT) -> None:
        """Simulate ``duration`` seconds while the position targets go linearly to ``target`` [7].

        Targets beyond the joint limits are clipped; ValueError if not 7 finite numbers.
        """
        goal = np.asarray(target, dtype=np.float64)
        if goal.shape != (7,) or not np.isfinite(goal).all():
            raise InvalidValueError(f"target must be 7 finite numbers, got {target!r}")
        goal = np.clip(goal, self.lower, self.upper)
        ctrl = np.concatenate([goal[:6], np.repeat(goal[6] * FINGER_TRAVEL, 2)])
        start = self.data.ctrl.copy()
        n = max(1, round(duration / self.model.opt.timestep))
        for i in range(n):
            self.data.ctrl[:] = start + (ctrl - start) * ((i + 1) / n)
            mujoco.mj_step(self.model, self.data)
        mujoco.mj_forward(self.model, self.data)

    @property
    def time(self) -> float:
        """Simulated seconds since reset."""
        return float(self.data.time)

    @property
    def joint_positions(self) -> np.ndarray:
        """Measured joints and gripper, float64 ``[7]``."""
        fingers = self.data.qpos[self._finger_q].mean() / FINGER_TRAVEL
        return np.append(self.data.qpos[self._q], np.clip(fingers, 0.0, 1.0))

    @property
    def joint_velocities(self) -> np.ndarray:
        """Measured velocities (rad/s; gripper in 1/s), float64 ``[7]``."""
        return np.append(
            self.data.qvel[self._v], self.data.qvel[self._finger_v].mean() / FINGER_TRAVEL
        )

    @property
    def targets(self) -> np.ndarray:
        """Position targets in force, float64 ``[7]``."""
        return np.append(self.data.ctrl[:6], self.data.ctrl[6] / FINGER_TRAVEL)

    @property
    def tip(self) -> np.ndarray:
        """Point between the finger tips, meters ``[3]``."""
        return self.data.site_xpos[self._tip].copy()

    def block(self, name: str) -> np.ndarray:
        """Center of a block, meters ``[3]``."""
        return self.data.body(name).xpos.copy()

    @property
    def pictures(self) -> str:
        """OpenGL, or ray where rays are cast: success rates of the two are not alike."""
        return "ray" if self.renderer.backend == "ray" else "OpenGL"

    @property
    def renderer(self) -> Renderer:
        """The renderer in use; made at the first call, in the calling thread."""
        if self._sharing is not None:
            return self._sharing.renderer
        if self._renderer is None:
            self._renderer = make_renderer(self.model, self._renderer_name)
        return self._renderer

    def render(self, camera: str, width: int = 224, height: int = 224) -> np.ndarray:
        """Image of "base" or "wrist", uint8 RGB ``[height, width, 3]``."""
        return self.renderer.render(self.data, camera, width, height)

    def close(self) -> None:
        """Free the GL context."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
