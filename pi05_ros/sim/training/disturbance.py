"""What goes wrong in a demonstration on purpose, so that the way back is seen.

Half of the episodes start in a random pose; in most of them some steps (a burst) are executed
wrongly. A wrong command is never learnt from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from pi05_ros.sim.arm.kinematics import inverse
from pi05_ros.sim.arm.world import World


@dataclass(frozen=True)
class Disturbance:
    """Of one episode.

    Attributes:
        bursts: step -> shift of the joints ``[6]`` and, where it is wrong too, the gripper.
        start: pose at the start ``[7]``; None: that of the scene.

    """

    bursts: Mapping[int, tuple[np.ndarray, float | None]] = field(default_factory=dict)
    start: np.ndarray | None = None

    @classmethod
    def draw(cls, seed: int) -> Disturbance:
        """The one of a seed."""
        rng = np.random.default_rng([seed, 1])
        bursts = _bursts(rng)
        return cls(bursts, _random_pose(rng) if rng.random() < 0.5 else None)

    def place(self, world: World) -> None:
        """Put the arm where the episode starts."""
        if self.start is not None:
            world.set_joints(self.start)

    def within(self, first: int, count: int) -> bool:
        """Whether one of ``count`` steps from ``first`` on goes wrong."""
        return any(step in self.bursts for step in range(first, first + count))

    def executed(self, step: int, command: np.ndarray) -> np.ndarray:
        """What the arm does at a step instead of ``command`` ``[7]``."""
        if step not in self.bursts:
            return command
        shift, gripper = self.bursts[step]
        return np.append(command[:6] + shift, command[6] if gripper is None else gripper)


def _bursts(rng: np.random.Generator) -> dict[int, tuple[np.ndarray, float | None]]:
    steps: dict[int, tuple[np.ndarray, float | None]] = {}
    for _ in range(rng.choice(3, p=(0.35, 0.4, 0.25))):
        start, length = int(rng.integers(0, 34)), int(rng.integers(2, 7))
        shift = rng.normal(0, 1, 6) * (0.12, 0.08, 0.08, 0.0, 0.06, 0.12)
        gripper = float(rng.integers(0, 2)) if rng.random() < 0.25 else None
        steps.update(dict.fromkeys(range(start, start + length), (shift, gripper)))
    return steps


def _random_pose(rng: np.random.Generator) -> np.ndarray:
    tip = rng.uniform((0.20, -0.22, 0.08), (0.42, 0.20, 0.22))
    pose = inverse(tip) + np.append(rng.normal(0, 0.05, 5) * (1, 1, 1, 0, 1), rng.normal(0, 0.1))
    return np.append(pose, rng.integers(0, 2))
