"""What the simulated arm can be asked to do, and when it has done it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pi05_ros.errors import InvalidValueError
from pi05_ros.sim.arm.world import CONTROL_HZ, World

LIFTED_Z = 0.09
"""A block whose center is higher than this has been picked up, meters (it lies at 0.02)."""
HELD_M = 0.035
"""A block farther than this from the tip is in the air, not in the gripper, meters."""
PUSHED_Y = 0.10
"""A block beyond this line, on the table, has been pushed to the left: the goal strip's edge."""
HOLD_STEPS = 4
"""Consecutive control steps for which a task must look done before it counts."""
MAX_STEPS = round(8 * CONTROL_HZ)
"""Control steps an episode may take."""


@dataclass(frozen=True)
class ArmTask:
    """One instruction: the prompt, the block it is about and what must happen to it."""

    name: str
    prompt: str
    kind: str
    block: str

    def looks_done(self, world: World) -> bool:
        """Whether the world is in the asked state right now."""
        x, y, z = world.block(self.block)
        if self.kind == "pick":
            held = np.linalg.norm(world.tip - (x, y, z)) < HELD_M
            return bool(z > LIFTED_Z and held)
        return bool(y > PUSHED_Y and z < 0.05 and 0.1 < x < 0.6)


TASKS: dict[str, ArmTask] = {
    task.name: task
    for task in (
        ArmTask("pick_red", "pick up the red block", "pick", "red"),
        ArmTask("pick_green", "pick up the green block", "pick", "green"),
        ArmTask("push_blue", "push the blue block to the left", "push", "blue"),
    )
}


def task_by_name(name: str) -> ArmTask:
    """Task of that name, or of that prompt; ValueError names the accepted ones."""
    for task in TASKS.values():
        if name in (task.name, task.prompt):
            return task
    raise InvalidValueError(f"task {name!r}; accepted: {', '.join(TASKS)}")


class Referee:
    """Watches every task of an episode, so that doing the wrong one is seen as well."""

    def __init__(self) -> None:
        self._streak = dict.fromkeys(TASKS, 0)
        self.done_at: dict[str, int] = {}
        self.steps = 0

    def watch(self, world: World) -> None:
        """Look at the world after one control step."""
        self.steps += 1
        for name, task in TASKS.items():
            self._streak[name] = self._streak[name] + 1 if task.looks_done(world) else 0
            if self._streak[name] >= HOLD_STEPS:
                self.done_at.setdefault(name, self.steps)

    def done(self, name: str) -> bool:
        """Whether the task has been done in this episode."""
        return name in self.done_at
