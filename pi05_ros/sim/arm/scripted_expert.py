"""Scripted expert: where the arm should be a twentieth of a second from now.

It is a pure function of the world and keeps no memory, so any state of the arm, also one that the
expert would never reach, has a right answer. That is what makes its demonstrations cover
recoveries.
"""

from __future__ import annotations

import numpy as np

from pi05_ros.sim.arm.kinematics import inverse
from pi05_ros.sim.arm.tasks import PUSHED_Y, ArmTask
from pi05_ros.sim.arm.world import World

STEP = 0.022
"""Farthest the commanded tip leads the measured one, meters."""
HOVER = 0.09
GRASP_Z = 0.022
LIFT_Z = 0.15
PUSH_Z = 0.028
BEHIND = 0.052
"""Distance of the closed fingers behind the block before they push, meters."""


def expert_target(world: World, task: ArmTask) -> np.ndarray:
    """Joint targets [7] for the next control step of ``task``."""
    move = _pick if task.kind == "pick" else _push
    goal, gripper = move(world, task.block)
    tip = world.tip
    way = goal - tip
    distance = np.linalg.norm(way)
    if distance > STEP:
        way *= STEP / distance
    return np.append(inverse(tip + way), gripper)


def _pick(world: World, name: str) -> tuple[np.ndarray, float]:
    block, tip, opening = world.block(name), world.tip, world.joint_positions[6]
    aside = float(np.hypot(*(tip - block)[:2]))
    held = aside < 0.018 and abs(tip[2] - block[2]) < 0.022 and opening > 0.40
    if held and abs(world.joint_velocities[6]) < 0.5:
        return np.array([tip[0], tip[1], LIFT_Z]), 1.0
    if held or (aside < 0.007 and tip[2] < block[2] + 0.008):
        return np.array([block[0], block[1], GRASP_Z]), 1.0
    if opening > 0.15 and tip[2] < HOVER - 0.02:
        return np.array([tip[0], tip[1], HOVER]), 0.0
    return _funnel(tip, block[:2], GRASP_Z, aside), 0.0


def _push(world: World, name: str) -> tuple[np.ndarray, float]:
    block, tip = world.block(name), world.tip
    if block[1] > PUSHED_Y + 0.015:
        return np.array([tip[0], tip[1], 0.12]), 1.0
    start = np.array([block[0], block[1] - BEHIND])
    off_line = abs(tip[0] - block[0])
    behind = tip[1] < block[1] - 0.022
    if behind and off_line < 0.014 and tip[2] < PUSH_Z + 0.015 and tip[1] > start[1] - 0.02:
        return np.array([block[0], block[1], PUSH_Z]), 1.0
    aside = float(np.hypot(*(tip[:2] - start)))
    return _funnel(tip, start, PUSH_Z, aside), 1.0


def _funnel(tip: np.ndarray, spot: np.ndarray, floor: float, aside: float) -> np.ndarray:
    """Goal above ``spot`` that sinks to ``floor`` as the tip comes over it.

    Far from the spot the tip first rises to the hover height, so that it passes over blocks.
    """
    height = floor + np.clip((aside - 0.005) * 6.0, 0.0, HOVER - floor)
    if aside > 0.03 and tip[2] < HOVER - 0.025:
        return np.array([tip[0], tip[1], HOVER + 0.02])
    return np.array([spot[0], spot[1], height])
