"""The demo's input: a short bag of the simulated arm moving a block, written in seconds.

Two 640x480 cameras at 30 Hz, joint states at 100 Hz, the prompt, /clock; stamps are simulated
time. The motion is a fixed sweep by inverse kinematics, not a policy.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pi05_ros.bags.bag import Bag, BagError, BagWriter
from pi05_ros.bags.cdr_messages import (
    NS,
    clock_message,
    image_message,
    joint_state_message,
    string_message,
)
from pi05_ros.small_files import FileError, read_bytes

if TYPE_CHECKING:
    from pi05_ros.sim.arm.world import World

VERSION = 1  # raise when the content changes, so that cached bags are written again
START_NS = 100 * NS
STEP_NS = 10_000_000  # physics, joint states and /clock
KEY = "pi05_demo"
PROMPT = "put the red block on the light field"


@dataclass(frozen=True)
class SceneOptions:
    """What the bag shows.

    Attributes:
        seconds: length.
        width, height: of both cameras.
        camera_hz: frames per second of each camera.
        seed: start positions.
        renderer: "egl", "osmesa", "ray", or None for the first that works.

    """

    seconds: float = 10.0
    width: int = 640
    height: int = 480
    camera_hz: float = 30.0
    seed: int = 3
    renderer: str | None = None


@dataclass(frozen=True)
class DemoBag:
    """Where the bag is and how its images were made."""

    path: Path
    renderer: str
    note: str
    cached: bool


def make_demo_bag(path: Path, options: SceneOptions, fresh: bool = False) -> DemoBag:
    """Write the bag, or keep the one that is there if it was made with the same options.

    Args:
        path: folder of the bag.
        options: what it shows.
        fresh: write it in any case.

    Raises:
        BagError: the place is taken by something else.
        pi05_ros.sim.arm.render.RenderError: the wanted renderer does not work.

    """
    from pi05_ros.sim.arm.world import MODEL_PATH, World

    world = World(options.renderer)
    world.model.vis.quality.offsamples = 0  # antialiasing costs three times the rest
    try:
        renderer = world.renderer
        model = hashlib.sha256(MODEL_PATH.read_bytes()).hexdigest()
        wanted = json.dumps(
            {**asdict(options), "renderer": renderer.backend, "model": model, "version": VERSION},
            sort_keys=True,
        )
        if not fresh and _key_of(path) == wanted:
            return DemoBag(path, renderer.backend, renderer.note, cached=True)
        if path.exists() and not _made_here(path):
            raise BagError(f"{path} is there and not the demo's own bag; give another --out")
        with BagWriter(path, custom={KEY: wanted}) as bag:
            _record(bag, world, options)
        return DemoBag(path, renderer.backend, renderer.note, cached=False)
    finally:
        world.close()


def _key_of(path: Path) -> str | None:
    """Options of the bag at that place; None if there is no whole bag of ours."""
    try:
        with Bag(path) as bag:
            return bag.custom.get(KEY)
    except BagError:
        return None


def _made_here(path: Path) -> bool:
    """Whether a bag, perhaps a damaged one, was written by `make_demo_bag`."""
    metadata = path / "metadata.yaml"
    try:
        return KEY.encode() in read_bytes(metadata)
    except FileError:
        return False


def _record(bag: BagWriter, world: World, options: SceneOptions) -> None:
    """Run the scene and write what its sensors say."""
    from pi05_ros.sim.arm.world import CAMERAS, JOINT_NAMES

    world.reset(options.seed)
    targets = _motion(world, options.seconds)
    frame_ns = NS / options.camera_hz
    bag.write("/prompt", START_NS, string_message(PROMPT))
    frames = 0
    for step in range(round(options.seconds * NS / STEP_NS)):
        now_ns = START_NS + step * STEP_NS
        bag.write("/clock", now_ns, clock_message(now_ns))
        state = joint_state_message(list(JOINT_NAMES), world.joint_positions, now_ns)
        bag.write("/joint_states", now_ns, state)
        while frames * frame_ns < (step + 1) * STEP_NS:
            stamp_ns = START_NS + round(frames * frame_ns)
            for camera in CAMERAS:
                pixels = world.render(camera, options.width, options.height)
                message = image_message(pixels, stamp_ns, f"{camera}_camera")
                bag.write(f"/{camera}_camera/image_raw", stamp_ns, message)
            frames += 1
        world.step(targets(step * STEP_NS / NS), STEP_NS / NS)


def _motion(world: World, seconds: float) -> Callable[[float], np.ndarray]:
    """Joint targets over time: reach for the red block, grasp, carry it to the field, return."""
    from pi05_ros.sim.arm.kinematics import inverse

    red = world.block("red")
    home = np.append(world.tip, 0.0)
    field = np.array([0.30, 0.19])
    waypoints = np.array(
        [  # share of the time, tip x y z, gripper
            [0.00, *home],
            [0.18, red[0], red[1], 0.10, 0.0],
            [0.30, red[0], red[1], 0.018, 0.0],
            [0.38, red[0], red[1], 0.018, 1.0],
            [0.50, red[0], red[1], 0.14, 1.0],
            [0.66, *field, 0.14, 1.0],
            [0.76, *field, 0.03, 1.0],
            [0.82, *field, 0.03, 0.0],
            [0.90, *field, 0.14, 0.0],
            [1.00, *home],
        ]
    )
    times = waypoints[:, 0] * seconds

    def targets(now: float) -> np.ndarray:
        index = int(np.clip(np.searchsorted(times, now, "right") - 1, 0, len(times) - 2))
        share = (now - times[index]) / (times[index + 1] - times[index])
        share = float(np.clip(share, 0.0, 1.0))
        smooth = share * share * (3 - 2 * share)
        point = waypoints[index, 1:] + smooth * (waypoints[index + 1, 1:] - waypoints[index, 1:])
        return np.append(inverse(point[:3]), point[3])

    return targets
