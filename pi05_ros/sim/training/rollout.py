"""Many episodes in lockstep with one batched policy: the quick check during training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pi05_ros.sim.arm.tasks import MAX_STEPS, ArmTask, Referee
from pi05_ros.sim.arm.world import World
from pi05_ros.sim.training.demonstrations import observe

Act = Callable[[np.ndarray, np.ndarray, Sequence[str]], np.ndarray]
"""images uint8 [B, V, S, S, 3], states [B, 7], prompts -> joint targets [B, H, 7]."""


@dataclass(frozen=True)
class RolloutOutcome:
    """How one episode ended: tasks that were done, in order, and its length in steps."""

    seed: int
    done: tuple[str, ...]
    steps: int


def rollout(
    act: Act,
    task: ArmTask,
    seeds: Sequence[int],
    replan: int = 8,
    renderer: str | None = None,
    max_steps: int = MAX_STEPS,
) -> list[RolloutOutcome]:
    """Run one episode per seed; each executes ``replan`` steps of every chunk.

    Episodes end when the asked task is done; another task being done does not end them.
    """
    first = World(renderer)
    worlds = [first, *(World(sharing=first) for _ in seeds[1:])]
    referees = [Referee() for _ in seeds]
    for world, seed in zip(worlds, seeds, strict=True):
        world.reset(seed)
    active = list(range(len(seeds)))
    for _ in range(0, max_steps, replan):
        if not active:
            break
        images = np.stack([observe(worlds[i]) for i in active])
        states = np.stack([worlds[i].joint_positions for i in active])
        chunks = act(images, states, [task.prompt] * len(active))
        for row, i in enumerate(active):
            for target in chunks[row, :replan]:
                worlds[i].step(target)
                referees[i].watch(worlds[i])
                if referees[i].done(task.name):
                    break
        active = [i for i in active if not referees[i].done(task.name)]
    first.close()
    return [
        RolloutOutcome(seed, tuple(referee.done_at), referee.steps)
        for seed, referee in zip(seeds, referees, strict=True)
    ]
