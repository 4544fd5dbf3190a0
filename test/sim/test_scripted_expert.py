"""The scripted expert does each task and only that one; wrong names are refused."""

from __future__ import annotations

import numpy as np
import pytest

from pi05_ros.sim.arm.scripted_expert import expert_target
from pi05_ros.sim.arm.tasks import MAX_STEPS, TASKS, Referee, task_by_name
from pi05_ros.sim.arm.world import World


@pytest.mark.parametrize("name", list(TASKS))
def test_expert_succeeds_on_unseen_seeds_and_does_nothing_else(name):
    world, task, done = World(), TASKS[name], 0
    for seed in range(40):
        world.reset(seed)
        referee = Referee()
        while referee.steps < MAX_STEPS and not referee.done(name):
            world.step(expert_target(world, task))
            referee.watch(world)
        done += referee.done(name)
        assert set(referee.done_at) <= {name}
    assert done >= 39


def test_a_still_arm_does_no_task():
    world = World()
    for seed in range(10):
        world.reset(seed)
        referee = Referee()
        for _ in range(40):
            world.step(world.targets)
            referee.watch(world)
        assert referee.done_at == {}


def test_pick_counts_when_the_block_has_stayed_up_in_the_gripper():
    world = World()
    world.reset(0)
    for offset, done in ((np.zeros(3), True), (np.array([0.06, 0, 0]), False)):
        referee = Referee()
        for step in range(6):
            joint = world.data.joint("red")
            joint.qpos[:3] = world.tip + offset
            joint.qvel[:] = 0
            world.step(world.targets, 0.005)
            referee.watch(world)
            assert referee.done("pick_red") == (done and step >= 3)


def test_tasks_are_found_by_name_or_prompt():
    assert task_by_name("pick_red") is task_by_name("pick up the red block")
    with pytest.raises(ValueError, match="pick_red, pick_green, push_blue"):
        task_by_name("dance")


def test_expert_answers_finite_joints_from_anywhere():
    world = World()
    rng = np.random.default_rng(0)
    for seed in range(30):
        world.reset(seed)
        world.set_joints(rng.uniform(world.lower, world.upper))
        for task in TASKS.values():
            assert np.isfinite(expert_target(world, task)).all()
