"""Which fault a comparison with demonstrations names, for faults planted on the simulated arm.

    PYTHONPATH=. python scripts/fault_naming.py [--seeds 20] [--input-seeds 3] [--first-seed 0]

The shipped policy answers recordings of the scripted expert. Faults of the actions are planted in
its chunks, faults of the inputs in what it is shown, faults of the recording in its images.
Prints a Markdown table: how often the fault was named first. Needs the extra sim.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pi05_ros.policy import Observation, Policy
from pi05_ros.replay.against_demonstration import compare_bags
from pi05_ros.replay.convention_faults import best, column_hypotheses
from pi05_ros.sim.arm.tasks import TASKS
from pi05_ros.sim.arm.world import World
from pi05_ros.sim.training.record import record_episode
from pi05_ros.sim.training.shipped import CHECKPOINT
from pi05_ros.tables import markdown_table

JOINTS = np.array([1, 1, 1, 1, 1, 1, 0])
GRIPPER = 1 - JOINTS
Plant = Callable[[np.ndarray, np.ndarray], np.ndarray]  # chunks [N, H, 7], state [N, 1, 7]


def only(column: int, change: Callable[[np.ndarray], np.ndarray]) -> Plant:
    """A fault of one column."""

    def plant(p: np.ndarray, s: np.ndarray) -> np.ndarray:
        p = p.copy()
        p[..., column] = change(p[..., column])
        return p

    return plant


def joints(change: Plant) -> Plant:
    """A fault of the joints alone."""
    return lambda p, s: np.where(JOINTS, change(p, s), p)


def order(*columns: int) -> Plant:
    """Columns in another order."""
    return lambda p, s: p[..., list(columns)]


ACTIONS: dict[str, tuple[str, Plant]] = {
    "sign of joint2": ("sign", only(1, lambda v: -v)),
    "joint3 off by 0.5 rad": ("offset", only(2, lambda v: v + 0.5)),
    "joint2 twice as large": ("scale", only(1, lambda v: 2 * v)),
    "joints in degrees": ("degrees", joints(lambda p, s: np.rad2deg(p))),
    "joint1 and joint2 exchanged": ("swapped_columns", order(1, 0, 2, 3, 4, 5, 6)),
    "joints rotated by one": ("column_order", order(1, 2, 4, 3, 5, 0, 6)),
    "joint2 in place of joint3": ("repeated_column", order(0, 1, 1, 3, 4, 5, 6)),
    "gripper reversed": ("gripper", only(6, lambda v: 1 - v)),
    "gripper in percent": ("unit", only(6, lambda v: 100 * v)),
    "gripper off by 0.4": ("offset", only(6, lambda v: v + 0.4)),
    "gripper half as far": ("scale", only(6, lambda v: 0.5 * v)),
    "gripper from -1 to 1": ("range", only(6, lambda v: 2 * v - 1)),
    "relative read as absolute": ("delta_as_absolute", joints(lambda p, s: p - s)),
    "absolute read as relative": ("absolute_as_delta", joints(lambda p, s: p + s)),
    "relative added up step by step": (
        "cumulated_delta", joints(lambda p, s: s + np.cumsum(p - s, axis=1)),
    ),
    "step by step added to the state": (
        "step_delta", joints(lambda p, s: s + np.diff(p - s, axis=1, prepend=0.0)),
    ),
    "relative to an older state": (
        "wrong_base", joints(lambda p, s: p + np.roll(s, 3, axis=0) - s),
    ),
    "other statistics": (
        "normalization",
        lambda p, s: np.where(JOINTS, s + 0.4 * (p - s) + 0.05, 0.5 * p + 0.4),
    ),
    "joint2 and joint3 exchanged, a sign reversed": (
        "swapped_columns",
        lambda p, s: p[..., [0, 2, 1, 3, 4, 5, 6]] * (1 - 2 * (np.arange(7) == 1)),
    ),
    "all columns in reverse order": ("column_order", order(6, 5, 4, 3, 2, 1, 0)),
    "joint1 off by a turn": ("turns", only(0, lambda v: v + 2 * np.pi)),
    "velocities read as positions": (
        "velocity", joints(lambda p, s: 20 * np.diff(p, axis=1, prepend=s)),
    ),
    "steps read as positions": ("step_delta", joints(lambda p, s: np.diff(p, axis=1, prepend=s))),
    "gripper stands still": ("constant_column", only(6, lambda v: 0 * v)),
    "motion cut off at 0.05 rad": (
        "cut_off", joints(lambda p, s: s + np.clip(p - s, -0.05, 0.05)),
    ),
    "gripper reversed, in percent": ("range", only(6, lambda v: 100 * (1 - v))),
    "gripper relative read as absolute": (
        "delta_as_absolute", lambda p, s: p - s * (np.arange(7) == 6),
    ),
    "joint2 in degrees": ("degrees", only(1, np.rad2deg)),
    "a column of joint2 from the state of joint3": (
        "wrong_base", lambda p, s: p + (s[..., 2:3] - s[..., 1:2]) * (np.arange(7) == 1),
    ),
}  # fmt: skip


def images(change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> Any:
    """A fault of the images."""
    return lambda o: dataclasses.replace(o, images=change(dict(o.images)))


def state(change: Callable[[np.ndarray], np.ndarray]) -> Any:
    """A fault of the state."""
    return lambda o: dataclasses.replace(o, state=change(np.array(o.state)).astype(np.float32))


def crop(image: np.ndarray, share: float) -> np.ndarray:
    """Middle of an image."""
    side = image.shape[0]
    cut = round(side * (1 - share) / 2)
    return np.ascontiguousarray(image[cut : side - cut, cut : side - cut])


def each(change: Callable[[np.ndarray], np.ndarray]) -> Any:
    """The same fault in both images."""
    return images(lambda i: {k: np.ascontiguousarray(change(v)) for k, v in i.items()})


INPUTS: dict[str, tuple[str, Callable[[Observation], Observation]]] = {
    "cameras exchanged": (
        "swapped_cameras", images(lambda i: {"base": i["wrist"], "wrist": i["base"]}),
    ),
    "base image on both slots": (
        "one_image", images(lambda i: {"base": i["base"], "wrist": i["base"]}),
    ),
    "wrist image on both slots": (
        "one_image", images(lambda i: {"base": i["wrist"], "wrist": i["wrist"]}),
    ),
    "images mirrored": ("mirrored_image", each(lambda v: v[:, ::-1])),
    "images upside down": ("flipped_image", each(lambda v: v[::-1])),
    "images turned by 180 degrees": ("rotated_image", each(lambda v: v[::-1, ::-1])),
    "images turned by 90 degrees": ("rotated_image", each(np.rot90)),
    "images in BGR": ("color_order", each(lambda v: v[..., ::-1])),
    "images cropped to 0.6": ("cropped_image", each(lambda v: crop(v, 0.6))),
    "state in degrees": ("state_degrees", state(lambda s: np.where(JOINTS, np.rad2deg(s), s))),
    "state of joint2 with the wrong sign": (
        "state_sign", state(lambda s: s * np.array([1, -1, 1, 1, 1, 1, 1])),
    ),
    "state of joint2 and joint3 exchanged": (
        "state_columns", state(lambda s: s[[0, 2, 1, 3, 4, 5, 6]]),
    ),
}  # fmt: skip


class FrozenCameras:
    """A world some of whose cameras give one image from a step to another."""

    def __init__(self, world: World, cameras: tuple[str, ...], first: int, last: int) -> None:
        self._world, self._cameras = world, cameras
        self._first, self._last = first, last
        self._step = 0
        self._held: dict[str, np.ndarray] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._world, name)

    def step(self, command: np.ndarray) -> None:
        """See `World.step`."""
        self._world.step(command)
        self._step += 1

    def render(self, camera: str, width: int, height: int) -> np.ndarray:
        """See `World.render`."""
        if camera not in self._cameras or not self._first <= self._step <= self._last:
            return self._world.render(camera, width, height)
        if camera not in self._held:
            self._held[camera] = self._world.render(camera, width, height)
        return self._held[camera]


RECORDED: dict[str, tuple[str, tuple[tuple[str, ...], int, int]]] = {
    "base camera frozen in the recordings": ("frozen_camera", (("base",), 0, 1000)),
    "wrist camera frozen in the recordings": ("frozen_camera", (("wrist",), 0, 1000)),
    "base camera frozen after 0.5 s": ("frozen_camera", (("base",), 10, 1000)),
    "both cameras frozen from 0.3 s to 1 s": ("frozen_camera", (("base", "wrist"), 6, 20)),
}


class Misled:
    """A policy whose inputs have a fault."""

    def __init__(self, policy: Any, mislead: Callable[[Observation], Observation]) -> None:
        self._policy, self._mislead = policy, mislead
        self.info, self.robot = policy.info, policy.robot

    def infer(self, observation: Observation, **options: Any) -> Any:
        """See `Policy.infer`."""
        return self._policy.infer(self._mislead(observation), **options)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--input-seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    args = parser.parse_args()
    policy: Any = Policy.load(CHECKPOINT, robot="sim_arm", threads=1)
    counts: dict[str, list[str]] = {}
    accused = 0
    world = World()
    tasks = list(TASKS.values())[:2]
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.seeds):
            seed = args.first_seed + number
            bags = [Path(folder) / f"{seed}-{task.name}" for task in tasks]
            for task, bag in zip(tasks, bags, strict=True):
                record_episode(world, task, seed, bag)
            sound = compare_bags(bags, policy, {}, count=16)
            accused += bool(sound.faults) or not sound.agrees
            w = sound.windows
            for name, (_, plant) in ACTIONS.items():
                wrong = dataclasses.replace(w, chunks=plant(w.chunks, w.state[:, None]))
                found = best(wrong, list(column_hypotheses(wrong)))
                counts.setdefault(name, []).append(found[0].kind if found else "none")
            for name, (_, mislead) in INPUTS.items():
                if number < args.input_seeds:
                    faults = compare_bags(bags, Misled(policy, mislead), {}, count=16).faults  # type: ignore[arg-type]
                    counts.setdefault(name, []).append(faults[0].kind if faults else "none")
            for place, (name, (_, frozen)) in enumerate(RECORDED.items()):
                broken = [Path(folder) / f"{place}-{bag.name}" for bag in bags]
                for task, bag in zip(tasks, broken, strict=True):
                    camera: Any = FrozenCameras(world, *frozen)
                    record_episode(camera, task, seed, bag)
                faults = compare_bags(broken, policy, {}, count=16).faults
                counts.setdefault(name, []).append(faults[0].kind if faults else "none")
            print(f"seed {seed}", file=sys.stderr, flush=True)
    world.close()
    rows = []
    kinds = {n: k for table in (ACTIONS, INPUTS, RECORDED) for n, (k, _) in table.items()}  # type: ignore[attr-defined]
    for name, kind in kinds.items():
        said = counts.get(name, [])
        others = sorted({word for word in said if word != kind})
        rows.append((name, f"`{kind}`", f"{said.count(kind)} of {len(said)}", ", ".join(others)))
    print(markdown_table(("planted", "named", "first", "else"), rows))
    print(f"sound: accused in {accused} of {args.seeds}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
