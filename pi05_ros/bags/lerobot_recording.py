"""A LeRobot dataset, or one episode of it, as if it were a bag.

Rows become messages: images, joint states and commands with the time of the row as stamp and log
time, the task as prompt. So replay, comparison and view read datasets without knowing of them.
Episodes are more than an hour apart, a gap that offline replay leaps over.

Columns are joined with the robot profile by name, else by place. A dataset that `pi05 dataset`
wrote holds the robot's values; any other holds those a policy is trained on, and the profile's
map leads back to the robot.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from pi05_ros.bags.bag import Bag, BagError, BagMessage, TopicInfo
from pi05_ros.bags.cdr_messages import (
    IMAGE,
    JOINT_STATE,
    NS,
    STRING,
    encode,
    image_message,
    joint_state_message,
    string_message,
)
from pi05_ros.bags.lerobot_files import EpisodeFiles, LeRobotFiles, is_dataset, split_episode
from pi05_ros.bags.topics import JOINT_STATES, PROMPT
from pi05_ros.policy.interface import ActionMeaning
from pi05_ros.policy.robots.profile import RobotProfile
from pi05_ros.policy.robots.units import UnitMap

START_NS = 1_000 * NS
GAP_NS = 3_700 * NS
"""Between two episodes: more than offline replay takes for a pause of one recording."""
COMMANDS = "joint_commands"
STATE, ACTION = "observation.state", "action"
HAND = ("wrist", "hand", "gripper")


class DatasetRecording(Bag):
    """A dataset opened for reading.

    Args:
        path: folder of the dataset, or DATASET/episode_N.
        robot: whose joints and cameras are wanted.

    Raises:
        BagError: the dataset cannot be read, or does not fit the robot.

    """

    def __init__(self, path: Path, robot: RobotProfile) -> None:
        self.path = Path(path)
        root, number = split_episode(self.path)
        self._files = files = LeRobotFiles(root)
        self._episodes = [e for e in files.episodes if number is None or e.index == number]
        if not self._episodes:
            raise BagError(f"{root} has no episode {number}; it has {len(files.episodes)}")
        notes: list[str] = []
        self._names = robot.state_names
        self._state = _join(files, STATE, robot.state_names, notes)
        absolute = all(meaning is ActionMeaning.ABSOLUTE for meaning in robot.action_meanings)
        self._action: list[int] = []
        if absolute and ACTION in files.features:
            self._action = _join(files, ACTION, robot.action_names, notes)
            self._action_names = robot.action_names
        elif not absolute:
            notes.append(
                f"actions of {robot.name} are not all positions: what the joints did next stands "
                "for the demonstrator's actions"
            )
        same: tuple[UnitMap, ...] = ()
        self._state_maps = same if files.ours else robot.state_maps
        self._action_maps = same if files.ours else robot.action_maps
        if not files.ours and not all(m.identity for m in robot.state_maps):
            notes.append(
                "values are taken for those a policy is trained on, and mapped to the robot's by "
                f"the profile {robot.name}"
            )
        if abs(files.fps - robot.control_hz) > 1e-6:
            notes.append(f"{files.fps:g} rows per second; control_hz is {robot.control_hz:g}")
        self._features = _camera_topics(files.images, robot, notes)
        self.notes = tuple(notes)
        rows = sum(episode.length for episode in self._episodes)
        self.topics = {topic: TopicInfo(topic, IMAGE, rows) for topic in self._features}
        self.topics[f"/{JOINT_STATES}"] = TopicInfo(f"/{JOINT_STATES}", JOINT_STATE, rows)
        if self._action:
            self.topics[f"/{COMMANDS}"] = TopicInfo(f"/{COMMANDS}", JOINT_STATE, rows)
        if files.tasks:
            count = len(self._episodes)
            self.topics[f"/{PROMPT}"] = TopicInfo(f"/{PROMPT}", STRING, count)

    def messages(self, topics: Iterable[str] | None = None) -> Iterator[BagMessage]:
        """Messages of the named topics (None: all), row by row."""
        wanted = set(self.topics if topics is None else topics)
        start_ns = START_NS
        for episode in self._episodes:
            yield from self._episode(episode, wanted, start_ns)
            start_ns += GAP_NS + round(episode.length * NS / self._files.fps)

    def _episode(
        self, episode: EpisodeFiles, wanted: set[str], start_ns: int
    ) -> Iterator[BagMessage]:
        names = (STATE, *((ACTION,) if self._action else ()), "timestamp", "task_index")
        columns = self._files.columns(episode, names)
        times_s = columns["timestamp"]
        if len(times_s) == 0 or (np.diff(times_s) <= 0).any():
            raise BagError(f"{episode.table}: timestamps of {episode.index} do not ascend")
        state = _mapped(columns[STATE][:, self._state], self._state_maps)
        actions = (
            _mapped(columns[ACTION][:, self._action], self._action_maps)
            if (self._action)
            else state
        )
        frames = {
            topic: self._files.frames(episode, feature, times_s)
            for topic, feature in self._features.items()
            if topic in wanted
        }
        told: str | None = None
        for row, time_s in enumerate(times_s):
            now = start_ns + round(float(time_s) * NS)
            task = self._files.tasks.get(int(columns["task_index"][row]), "")
            if f"/{PROMPT}" in wanted and task != told:
                told = task
                yield BagMessage(f"/{PROMPT}", STRING, now, encode(string_message(task)))
            for topic, images in frames.items():
                image = next(images)
                yield BagMessage(topic, IMAGE, now, encode(image_message(image, now)))
            for topic, joints, values in (
                (f"/{JOINT_STATES}", self._names, state[row]),
                (f"/{COMMANDS}", self._action_names if self._action else (), actions[row]),
            ):
                if topic in wanted and topic in self.topics:
                    message = joint_state_message(list(joints), values, now)
                    yield BagMessage(topic, JOINT_STATE, now, encode(message))

    @property
    def seconds(self) -> float:
        """Time that is recorded, without the gaps between episodes."""
        return sum(episode.length for episode in self._episodes) / self._files.fps

    @property
    def custom(self) -> dict[str, str]:
        """Nothing."""
        return {}

    def close(self) -> None:
        """Nothing is kept open."""


def open_recording(path: Path, robot: RobotProfile) -> Bag:
    """A bag, or a LeRobot dataset read for a robot.

    Raises:
        BagError: it is neither, or cannot be read.

    """
    return DatasetRecording(path, robot) if is_dataset(path) else Bag(path)


def episodes_in(path: Path) -> list[Path]:
    """Every episode of a dataset as a recording of its own; other paths as they are."""
    root, number = split_episode(path)
    if number is not None or not is_dataset(path):
        return [path]
    return [root / f"episode_{episode.index}" for episode in LeRobotFiles(root).episodes]


def _join(files: LeRobotFiles, feature: str, wanted: Sequence[str], notes: list[str]) -> list[int]:
    """Place in the dataset of each column of the robot."""
    names = files.names(feature)
    plain = [name.removesuffix(".pos").lower() for name in names]
    asked = [name.removesuffix(".pos").lower() for name in wanted]
    if len(set(plain)) == len(plain) and set(asked) <= set(plain):
        return [plain.index(name) for name in asked]
    if len(names) == len(wanted):
        notes.append(
            f"{feature} has the columns {', '.join(names)}, taken in this order for "
            f"{', '.join(wanted)}"
        )
        return list(range(len(wanted)))
    raise BagError(
        f"{files.root}: {feature} has {len(names)} columns ({', '.join(names)}); the robot has "
        f"{len(wanted)} ({', '.join(wanted)})"
    )


def _mapped(values: np.ndarray, maps: Sequence[UnitMap]) -> np.ndarray:
    """Policy's values ``[T, n]`` as the robot's."""
    values = np.ascontiguousarray(values)
    for column, unit_map in enumerate(maps):
        values[:, column] = unit_map.to_robot(values[:, column])
    return values


def _camera_topics(
    images: Sequence[str], robot: RobotProfile, notes: list[str]
) -> Mapping[str, str]:
    """Topic -> feature: each feature under its own name, and as the camera it is taken for."""
    topics = {f"/{feature}": feature for feature in images}
    left = list(images)
    lacking = []
    for camera in robot.cameras:
        known = (camera.role, f"{camera.role}_camera", camera.slot, camera.source)
        fits = [f for f in left if f in known or f.rpartition(".")[2] in known]
        if not fits:
            lacking.append(camera)
            continue
        left.remove(fits[0])
        topics[f"/{camera.role}_camera/image_raw"] = fits[0]
    for camera in lacking:
        hand = camera.role.startswith("wrist")
        fits = [f for f in left if any(word in f.rpartition(".")[2] for word in HAND) == hand]
        if fits:
            left.remove(fits[0])
            topics[f"/{camera.role}_camera/image_raw"] = fits[0]
            notes.append(
                f"{fits[0]} is taken for the {camera.role} camera; "
                f"--map {camera.role}_camera=FEATURE names another"
            )
    return topics
