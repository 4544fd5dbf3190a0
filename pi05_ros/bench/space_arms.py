"""Arms made of spheres, with kinematics and distances of their own, to check the space guard by.

Nothing here uses the executor's kinematics or collision libraries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pi05_ros.execution.limits import JointLimits

RADIUS_M = 0.05
LINK_M = 0.2
_PLACES_M = (0.05, 0.15)
_RANGE_RAD = 2.6
_TOOL_M = 0.1
WALL_X_M = 0.75
BOX_CENTER_M, BOX_SIZE_M = np.array([0.45, -0.45, 0.55]), np.array([0.3, 0.3, 0.3])
STOP_M, MARGIN_M, TOOL_M_PER_S = 0.02, 0.1, 0.8


@dataclass(frozen=True)
class SphereArms:
    """One arm of up to 7 joints, or two that share the joints.

    Attributes:
        joints: all together.
        arms: 1 or 2; two stand 0.7 m apart.

    """

    joints: int = 7
    arms: int = 1

    @property
    def each(self) -> int:
        """Joints of one arm."""
        return self.joints // self.arms

    @property
    def names(self) -> tuple[str, ...]:
        """Joint names, arm after arm."""
        return tuple(f"arm{a}_joint{i}" for a in range(self.arms) for i in range(self.each))

    def limits(self, jerk_time_s: float = 0.0) -> JointLimits:
        """Limits of the joints, with jerk limits if a time to full acceleration is given."""
        n = self.joints
        acceleration = np.linspace(8.0, 14.0, n)
        jerk = acceleration / jerk_time_s if jerk_time_s else None
        return JointLimits(
            self.names,
            np.full(n, -_RANGE_RAD),
            np.full(n, _RANGE_RAD),
            np.linspace(1.5, 2.5, n),
            acceleration,
            jerk,
        )

    def urdf(self) -> str:
        """Robot description: a chain per arm, two spheres per link, a bare tool link."""
        parts = ['<robot name="spheres"><link name="base"/>']
        for a in range(self.arms):
            parent = "base"
            for i in range(self.each):
                x, y, z = self._base(a) if i == 0 else (0.0, 0.0, LINK_M)
                axis = "0 0 1" if i % 2 == 0 else "0 1 0"
                spheres = "".join(
                    f'<collision><origin xyz="0 0 {place}"/><geometry>'
                    f'<sphere radius="{RADIUS_M}"/></geometry></collision>'
                    for place in _PLACES_M
                )
                parts.append(
                    f'<link name="arm{a}_link{i}">{spheres}</link>'
                    f'<joint name="arm{a}_joint{i}" type="revolute"><parent link="{parent}"/>'
                    f'<child link="arm{a}_link{i}"/><origin xyz="{x} {y} {z}"/>'
                    f'<axis xyz="{axis}"/><limit lower="{-_RANGE_RAD}" upper="{_RANGE_RAD}" '
                    'velocity="3" effort="1"/></joint>'
                )
                parent = f"arm{a}_link{i}"
            parts.append(
                f'<link name="arm{a}_tool"/><joint name="arm{a}_mount" type="fixed">'
                f'<parent link="{parent}"/><child link="arm{a}_tool"/>'
                f'<origin xyz="0 0 {LINK_M + _TOOL_M}"/></joint>'
            )
        return "".join([*parts, "</robot>"])

    def space(self) -> dict[str, Any]:
        """Content of a space file: a wall, a box, the links themselves, a speed of the tool."""
        return {
            "space": {
                "margin_m": MARGIN_M,
                "stop_m": STOP_M,
                "tool": {"frame": "arm0_tool", "max_speed_m_per_s": TOOL_M_PER_S},
                "planes": [{"name": "wall", "normal": [-1, 0, 0], "offset_m": -WALL_X_M}],
                "boxes": [
                    {
                        "name": "second_box",
                        "size_m": BOX_SIZE_M.tolist(),
                        "position_m": BOX_CENTER_M.tolist(),
                    }
                ],
            }
        }

    def _base(self, arm: int) -> tuple[float, float, float]:
        return (0.0, 0.7 * (arm - (self.arms - 1) / 2), 0.1)

    def centers(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sphere centers ``[joints, 2, 3]`` and the first arm's tool point ``[3]``."""
        found = np.zeros((self.joints, len(_PLACES_M), 3))
        tool = np.zeros(3)
        for a in range(self.arms):
            place, turn = np.array(self._base(a)), np.eye(3)
            for i in range(self.each):
                k = a * self.each + i
                if i:
                    place = place + turn @ np.array([0, 0, LINK_M])
                c, s = np.cos(positions[k]), np.sin(positions[k])
                if i % 2 == 0:
                    turn = turn @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
                else:
                    turn = turn @ np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
                for j, height in enumerate(_PLACES_M):
                    found[k, j] = place + turn @ np.array([0, 0, height])
            if a == 0:
                tool = place + turn @ np.array([0, 0, LINK_M + _TOOL_M])
        return found, tool

    def clearances(self, positions: np.ndarray) -> tuple[float, float, float]:
        """Smallest distance (m) to the wall, to the box, and between links that may touch."""
        centers = self.centers(positions)[0]
        wall = float(np.min(WALL_X_M - centers[..., 0])) - RADIUS_M
        outside = np.maximum(np.abs(centers - BOX_CENTER_M) - BOX_SIZE_M / 2, 0)
        box = float(np.linalg.norm(outside, axis=-1).min()) - RADIUS_M
        own = np.inf
        for k in range(self.joints):
            for m in range(k + 1, self.joints):
                if m == k + 1 and m % self.each:
                    continue  # neighbors
                apart = centers[k][:, None] - centers[m][None]
                own = min(own, float(np.linalg.norm(apart, axis=-1).min()) - 2 * RADIUS_M)
        return wall, box, own
