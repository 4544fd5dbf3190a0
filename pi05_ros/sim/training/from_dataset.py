"""Demonstrations for training from a LeRobot dataset, such as `pi05 dataset` writes.

Every row is a frame. Behind the last row of an episode its command holds, so that standing still
after the task is learnt too.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pi05_ros.backends.resize import resize_with_pad_pillow
from pi05_ros.bags.cdr_messages import JOINT_STATE
from pi05_ros.bags.lerobot_recording import COMMANDS, DatasetRecording, episodes_in
from pi05_ros.bags.topics import JOINT_STATES, PROMPT
from pi05_ros.errors import InvalidValueError
from pi05_ros.policy.robots.profile_yaml import load_profile
from pi05_ros.runtime.inputs.conversion import image_to_rgb
from pi05_ros.sim.arm.tasks import TASKS, task_by_name
from pi05_ros.sim.arm.world import CAMERAS
from pi05_ros.sim.training.demonstrations import Demonstrations
from pi05_ros.sim.training.shipped import CONFIG, HORIZON

_TASKS = tuple(TASKS)


def read_dataset(root: Path) -> Demonstrations:
    """All episodes of a dataset, v3.0 or v2.1, of the simulated arm.

    Raises:
        BagError: it cannot be read, or its columns are not the arm's.
        InvalidValueError: it lacks actions or a camera, or a task is none of the arm's.

    """
    robot = load_profile("sim_arm")
    images, states, actions, tasks = [], [], [], []
    cameras = [f"/{camera}_camera/image_raw" for camera in CAMERAS]
    for path in episodes_in(root):
        with DatasetRecording(path, robot) as episode:
            for topic in (f"/{COMMANDS}", *cameras):
                if topic not in episode.topics:
                    raise InvalidValueError(
                        f"{path} has no {topic}; training needs actions and all cameras"
                    )
            seen: dict[str, list[np.ndarray]] = {}
            task = -1
            for message in episode.messages():
                decoded = message.decode()
                if message.topic == f"/{PROMPT}":
                    task = _TASKS.index(task_by_name(decoded.data).name)
                elif message.topic in cameras:
                    picture = resize_with_pad_pillow(
                        image_to_rgb(decoded), CONFIG.vision.image_size
                    )
                    seen.setdefault(message.topic, []).append(picture)
                elif message.msgtype == JOINT_STATE:
                    seen.setdefault(message.topic, []).append(decoded.position)
                    if message.topic == f"/{JOINT_STATES}":
                        tasks.append(task)
        done = np.asarray(seen[f"/{COMMANDS}"], np.float32)
        steps = np.minimum(np.arange(len(done))[:, None] + np.arange(HORIZON), len(done) - 1)
        images.append(np.stack([np.stack(seen[topic]) for topic in cameras], axis=1))
        states.append(np.asarray(seen[f"/{JOINT_STATES}"], np.float32))
        actions.append(done[steps])
    return Demonstrations(
        np.concatenate(images), np.concatenate(states), np.concatenate(actions), np.array(tasks)
    )
