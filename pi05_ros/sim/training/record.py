"""Demonstrations of the expert as rosbag2 folders (mcap), one per episode.

    python -m pi05_ros.sim.training.record OUT --episodes 3 [--disturbed]

Disturbed episodes are those that the shipped policy was trained on: random starts, and steps that
are executed wrongly, during which /intervention is true.

Topics: /prompt, /base_camera/image_raw, /wrist_camera/image_raw, /joint_states and /joint_commands
(JointState whose positions are the targets of the control step that follows); custom data: task,
prompt, seed, and the outcome. `pi05 replay` reads them, and so do `ros2 bag` and LeRobot's and
rosetta's converters.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from pi05_ros.bags.bag import BagWriter
from pi05_ros.bags.cdr_messages import (
    NS,
    bool_message,
    image_message,
    joint_state_message,
    string_message,
)
from pi05_ros.sim.arm.scripted_expert import expert_target
from pi05_ros.sim.arm.tasks import MAX_STEPS, TASKS, ArmTask, Referee
from pi05_ros.sim.arm.world import CAMERAS, CONTROL_DT, JOINT_NAMES, World
from pi05_ros.sim.training.demonstrations import AFTER_DONE, RENDER_SIZE
from pi05_ros.sim.training.disturbance import Disturbance

START_NS = 100 * NS
KEY = "pi05_demonstration"


def record_episode(
    world: World, task: ArmTask, seed: int, path: Path, disturbed: bool = False
) -> bool:
    """Write one episode; returns whether the expert did the task.

    The bag's custom data are "pi05_demonstration", JSON with task, prompt, seed, and "outcome",
    success or failure.

    Args:
        world: reset here.
        task: which task of the arm.
        seed: of the scene and the disturbance.
        path: of the bag.
        disturbed: with a random start and bursts, as for training.

    Raises:
        BagError: the place is taken by something that is not a bag.

    """
    world.reset(seed)
    disturbance = Disturbance.draw(seed) if disturbed else Disturbance()
    disturbance.place(world)
    wrong: bool | None = None
    referee = Referee()
    rest = AFTER_DONE
    facts = {"task": task.name, "prompt": task.prompt, "seed": seed}
    names = list(JOINT_NAMES)
    with BagWriter(path, custom={KEY: json.dumps(facts)}) as bag:
        bag.write("/prompt", START_NS, string_message(task.prompt))
        for step in range(MAX_STEPS):
            now = START_NS + round(step * CONTROL_DT * NS)
            for camera in CAMERAS:
                pixels = world.render(camera, RENDER_SIZE, RENDER_SIZE)
                message = image_message(pixels, now, f"{camera}_camera")
                bag.write(f"/{camera}_camera/image_raw", now, message)
            state = joint_state_message(names, world.joint_positions, now)
            bag.write("/joint_states", now, state)
            command = disturbance.executed(step, expert_target(world, task))
            if disturbed and wrong != (wrong := disturbance.within(step, 1)):
                bag.write("/intervention", now, bool_message(bool(wrong)))
            bag.write("/joint_commands", now, joint_state_message(names, command, now))
            world.step(command)
            referee.watch(world)
            if referee.done(task.name):
                rest -= 1
                if rest <= 0:
                    break
        bag.note("outcome", "success" if referee.done(task.name) else "failure")
    return referee.done(task.name)


def main(argv: Sequence[str] | None = None) -> int:
    """Record episodes, tasks in turn; 1 if the expert failed, 2 if it cannot record.

    Of disturbed episodes those in which the expert fails are not kept.
    """
    parser = argparse.ArgumentParser(description="record the scripted expert as mcap bags")
    parser.add_argument("out", type=Path, help="folder that gets one bag per episode")
    parser.add_argument("--episodes", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the first episode")
    parser.add_argument(
        "--disturbed",
        action="store_true",
        help="with random starts and wrong steps; what the expert fails in is not kept",
    )
    parser.add_argument("--renderer", default=None, help="egl, osmesa or ray")
    args = parser.parse_args(argv)
    if args.episodes < 1 or args.seed < 0:
        parser.error("accepted: --episodes from 1, --seed from 0")
    world = World(args.renderer)
    done = 0
    try:
        for index in range(args.episodes):
            task = list(TASKS.values())[index % len(TASKS)]
            seed = args.seed + index
            path = args.out / f"{task.name}-{seed}"
            success = record_episode(world, task, seed, path, args.disturbed)
            done += success
            if args.disturbed and not success:
                shutil.rmtree(path)
    except (ValueError, OSError) as error:
        print(f"record: {error}", file=sys.stderr)
        return 2
    finally:
        world.close()
    print(f"{done} of {args.episodes} episodes done, in {args.out}")
    return 0 if done == args.episodes or (args.disturbed and done) else 1


if __name__ == "__main__":
    raise SystemExit(main())
