"""Demonstrations for training from a LeRobot dataset, such as `pi05 dataset` writes.

Every row is a frame, unless those with interventions are left out. Behind the last row of an
episode its command holds, so that standing still after the task is learnt too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pi05_ros.backends.resize import resize_with_pad_pillow
from pi05_ros.bags.cdr_messages import JOINT_STATE
from pi05_ros.bags.lerobot_files import LeRobotFiles
from pi05_ros.bags.lerobot_recording import COMMANDS, DatasetRecording
from pi05_ros.bags.topics import JOINT_STATES, PROMPT
from pi05_ros.errors import InvalidValueError
from pi05_ros.policy.robots.profile_yaml import load_profile
from pi05_ros.runtime.inputs.conversion import image_to_rgb
from pi05_ros.sim.arm.tasks import TASKS, task_by_name
from pi05_ros.sim.arm.world import CAMERAS
from pi05_ros.sim.training.demonstrations import Demonstrations
from pi05_ros.sim.training.shipped import CONFIG, HORIZON

_TASKS = tuple(TASKS)
HAND = "intervention"
"""Column of the dataset: a person had the arm."""


def read_dataset(root: Path, leave_out_interventions: bool = False) -> Demonstrations:
    """All episodes of a dataset, v3.0 or v2.1, of the simulated arm.

    Args:
        root: folder of the dataset.
        leave_out_interventions: leave out frames in whose chunk a person had the arm. So are the
            wrong steps of disturbed recordings left out, in which the column is true.

    Raises:
        BagError: it cannot be read, or its columns are not the arm's.
        InvalidValueError: it lacks actions or a camera, a task is none of the arm's, or no frame
            is left.

    """
    parts = list(read_episodes(root, leave_out_interventions))
    if not sum(len(part.tasks) for part in parts):
        raise InvalidValueError(f"{root}: a person had the arm in the chunks of all frames")
    return Demonstrations.joined(parts)


def read_episodes(root: Path, leave_out_interventions: bool = False) -> Iterator[Demonstrations]:
    """`read_dataset`, one episode after the other."""
    files = LeRobotFiles(root)
    for episode in files.episodes:
        data = _read_episode(root / f"episode_{episode.index}")
        if leave_out_interventions:
            hands = files.columns(episode, (HAND,))[HAND] > 0
            ends = np.concatenate((np.zeros(1, int), np.cumsum(hands)))  # human rows before a row
            rows = np.arange(len(hands))
            kept = ends[np.minimum(rows + HORIZON, len(hands))] == ends[rows]
            data = Demonstrations(
                data.images[kept], data.states[kept], data.actions[kept], data.tasks[kept]
            )
        yield data


def _read_episode(path: Path) -> Demonstrations:
    robot = load_profile("sim_arm")
    cameras = [f"/{camera}_camera/image_raw" for camera in CAMERAS]
    seen: dict[str, list[np.ndarray]] = {}
    tasks: list[int] = []
    with DatasetRecording(path, robot) as episode:
        for topic in (f"/{COMMANDS}", *cameras):
            if topic not in episode.topics:
                raise InvalidValueError(
                    f"{path} has no {topic}; training needs actions and all cameras"
                )
        task = -1
        for message in episode.messages():
            decoded = message.decode()
            if message.topic == f"/{PROMPT}":
                task = _TASKS.index(task_by_name(decoded.data).name)
            elif message.topic in cameras:
                picture = resize_with_pad_pillow(image_to_rgb(decoded), CONFIG.vision.image_size)
                seen.setdefault(message.topic, []).append(picture)
            elif message.msgtype == JOINT_STATE:
                seen.setdefault(message.topic, []).append(decoded.position)
                if message.topic == f"/{JOINT_STATES}":
                    tasks.append(task)
    done = np.asarray(seen[f"/{COMMANDS}"], np.float32)
    steps = np.minimum(np.arange(len(done))[:, None] + np.arange(HORIZON), len(done) - 1)
    return Demonstrations(
        np.stack([np.stack(seen[topic]) for topic in cameras], axis=1),
        np.asarray(seen[f"/{JOINT_STATES}"], np.float32),
        done[steps],
        np.array(tasks),
    )
