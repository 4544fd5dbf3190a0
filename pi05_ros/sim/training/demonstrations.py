"""Demonstrations of the scripted expert: images, states and the actions that follow them.

To cover more than the expert's own path, half of the episodes start in a random pose and some
steps are executed wrongly on purpose (a burst). What is learnt from is never the wrong command:
frames whose chunk would contain a burst are left out, frames after it show the recovery.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pi05_ros.backends.resize import resize_with_pad_pillow
from pi05_ros.errors import InvalidValueError
from pi05_ros.sim.arm.render import RENDER_SIZE
from pi05_ros.sim.arm.scripted_expert import expert_target
from pi05_ros.sim.arm.tasks import MAX_STEPS, TASKS, ArmTask, Referee
from pi05_ros.sim.arm.world import CAMERAS, World
from pi05_ros.sim.training.disturbance import Disturbance
from pi05_ros.sim.training.shipped import CONFIG, HORIZON
from pi05_ros.sim.workers import as_done

TRAIN_SEED = 1_000_000
"""Episodes for training have seeds from here on; evaluation uses smaller ones."""
AFTER_DONE = 8
"""Frames kept after success: holding still is learnt too."""
FACTS = "demonstrations.json"
"""Written last: a directory without it is not complete."""
_TASKS = tuple(TASKS.values())


@dataclass(frozen=True)
class Frame:
    """One step of an episode and what the expert did from there on.

    Attributes:
        images: uint8 ``[V, S, S, 3]``, base and wrist, as the model takes them.
        state: measured joints and gripper ``[7]``.
        actions: commanded joint targets of this and the next steps ``[H, 7]``.

    """

    images: np.ndarray
    state: np.ndarray
    actions: np.ndarray


def observe(world: World, size: int = CONFIG.vision.image_size) -> np.ndarray:
    """Images of all cameras, uint8 ``[V, size, size, 3]``."""
    return np.stack(
        [
            resize_with_pad_pillow(world.render(camera, RENDER_SIZE, RENDER_SIZE), size)
            for camera in CAMERAS
        ]
    )


def episode(world: World, task: ArmTask, seed: int, disturbed: bool = True) -> list[Frame]:
    """Run the expert once; empty if it failed.

    Args:
        world: reset here.
        task: which task of the arm.
        seed: of the scene, the start pose and the bursts.
        disturbed: with random start poses and bursts, as for training.

    """
    world.reset(seed)
    disturbance = Disturbance.draw(seed) if disturbed else Disturbance()
    disturbance.place(world)
    referee = Referee()
    seen: list[tuple[int, np.ndarray, np.ndarray]] = []
    commands: list[np.ndarray] = []
    end = MAX_STEPS
    step = 0
    while step < end + HORIZON:
        if step < end and not disturbance.within(step, HORIZON):
            seen.append((step, observe(world), world.joint_positions))
        command = expert_target(world, task)
        commands.append(command)
        world.step(disturbance.executed(step, command))
        referee.watch(world)
        step += 1
        if end == MAX_STEPS and referee.done(task.name):
            end = min(MAX_STEPS, step + AFTER_DONE)
    if not referee.done(task.name):
        return []
    return [
        Frame(
            images,
            state.astype(np.float32),
            np.stack(commands[k : k + HORIZON]).astype(np.float32),
        )
        for k, images, state in seen
    ]


def collect(world: World, seeds: range) -> Iterator[tuple[int, Frame]]:
    """Frames of one episode per seed, tasks in turn, with the index of the task."""
    for seed in seeds:
        index = seed % len(_TASKS)
        for frame in episode(world, _TASKS[index], seed):
            yield index, frame


def _write_part(job: tuple[range, str, str | None]) -> int:
    seeds, name, renderer = job
    world = World(renderer)
    frames = list(collect(world, seeds))
    path = Path(name)
    if not frames:  # the expert failed in all of them
        world.close()
        return 0
    np.save(path.with_suffix(".images.npy"), np.stack([f.images for _, f in frames]))
    np.save(path.with_suffix(".states.npy"), np.stack([f.state for _, f in frames]))
    np.save(path.with_suffix(".actions.npy"), np.stack([f.actions for _, f in frames]))
    np.save(path.with_suffix(".tasks.npy"), np.array([i for i, _ in frames], dtype=np.int64))
    world.close()
    return len(frames)


def generate(
    directory: Path, episodes: int, workers: int, renderer: str | None = None, first: int = 0
) -> int:
    """Write ``episodes`` demonstrations below ``directory`` and return the number of frames.

    Args:
        directory: made where needed; gets part-<i>.{images,states,actions,tasks}.npy and
            demonstrations.json.
        episodes: seeds TRAIN_SEED + first and following.
        workers: processes.
        renderer: see `make_renderer`.
        first: offset of the first seed.

    What an earlier run has left is removed first.

    Raises:
        ValueError: less than one episode or worker.
        ChildProcessError: a worker process died.

    """
    if episodes < 1 or workers < 1:
        raise InvalidValueError(
            f"{episodes} episodes, {workers} workers; accepted: 1 or more of each"
        )
    directory.mkdir(parents=True, exist_ok=True)
    (directory / FACTS).unlink(missing_ok=True)
    for old in directory.glob("part-*.npy"):
        old.unlink()
    parts = max(workers, episodes // 200)
    edges = TRAIN_SEED + first + np.linspace(0, episodes, parts + 1).astype(int)
    jobs = [
        (range(int(a), int(b)), str(directory / f"part-{i:03d}.x"), renderer)
        for i, (a, b) in enumerate(itertools.pairwise(edges))
        if b > a
    ]
    if workers == 1:
        frames = sum(_write_part(job) for job in jobs)
    else:
        frames = sum(as_done(_write_part, jobs, workers))
    facts = {
        "episodes": episodes,
        "frames": frames,
        "horizon": HORIZON,
        "first_seed": int(edges[0]),
    }
    (directory / FACTS).write_text(json.dumps(facts) + "\n", encoding="utf-8")
    return frames


@dataclass(frozen=True)
class Demonstrations:
    """All frames of a directory: images uint8 ``[N, V, S, S, 3]``, states ``[N, 7]``, actions
    ``[N, H, 7]``, tasks ``[N]`` (index into TASKS).
    """

    images: np.ndarray
    states: np.ndarray
    actions: np.ndarray
    tasks: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence[Demonstrations]) -> Demonstrations:
        """Frames of several, one after the other."""
        return cls(
            np.concatenate([part.images for part in parts]),
            np.concatenate([part.states for part in parts]),
            np.concatenate([part.actions for part in parts]),
            np.concatenate([part.tasks for part in parts]),
        )

    @classmethod
    def read(cls, directory: Path) -> Demonstrations:
        """Read what `generate` wrote; FileNotFoundError if nothing is there."""
        parts = sorted(directory.glob("part-*.tasks.npy"))
        if not parts:
            raise FileNotFoundError(f"no demonstrations in {directory}; generate them first")
        columns = []
        for kind in ("images", "states", "actions", "tasks"):
            files = [p.with_name(p.name.replace(".tasks.", f".{kind}.")) for p in parts]
            columns.append(np.concatenate([np.load(f) for f in files]))
        return cls(*columns)
