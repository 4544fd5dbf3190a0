"""Recorded demonstrations as a LeRobot dataset, at the control rate.

Each recording becomes one episode. At time k / fps after its start a row holds the newest image of
every camera, the newest joint states and the command in force: nothing comes from later. Without
recorded commands the action is the joint state of the next row. Where a person had the arm, the
action is what they commanded. Values are those of the robot (rad, m); tasks are the prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pi05_ros.bags.bag import Bag, BagError
from pi05_ros.bags.cdr_messages import NS
from pi05_ros.errors import InvalidValueError
from pi05_ros.policy.robots.profile import RobotProfile
from pi05_ros.replay.demonstration import Demonstration, read_demonstration
from pi05_ros.replay.faults.frozen_cameras import StillImages
from pi05_ros.replay.handovers import FAILURE, SUCCESS, HandOvers, read_handovers
from pi05_ros.replay.run import choose
from pi05_ros.workflows.episode_media import ChannelStatistics, EpisodeVideo
from pi05_ros.workflows.lerobot_dataset import (
    DatasetLayout,
    EpisodeRecord,
    LeRobotWriter,
    flags_of,
)

MAX_AGE_NS = NS // 2
"""An input that is older at a row ends nothing, but is counted and told."""
STATISTICS_EVERY = 8  # frames


@dataclass(frozen=True)
class DatasetRequest:
    """What to export.

    Attributes:
        bags: recordings, one episode each.
        out: folder of the dataset.
        robot: profile whose joints, cameras and rate are used.
        version: "3.0" or "2.1".
        mapping, namespace: topics of the inputs, as in `pi05 replay`.
        task: replaces the prompts; needed where a recording has none.
        human_actions: where a person had the arm, their targets are the actions; else the commands
            that the executor made of them.

    """

    bags: Sequence[Path]
    out: Path
    robot: RobotProfile
    version: str
    mapping: Mapping[str, str]
    namespace: str = ""
    task: str = ""
    human_actions: bool = True


def export_dataset(request: DatasetRequest, say: Callable[[str], None]) -> LeRobotWriter:
    """Write the dataset; recordings that are in it already are skipped.

    Raises:
        BagError: a recording lacks what is needed.
        InvalidValueError: the profile's rate is not a whole number, or `out` holds something else.

    """
    rate = request.robot.control_hz
    if rate is None or abs(rate - round(rate)) > 1e-9 or rate < 1:
        raise InvalidValueError(
            f"control_hz of robot {request.robot.name} is {rate}; a dataset needs a whole number"
        )
    writer: LeRobotWriter | None = None
    for path in request.bags:
        source = str(path.resolve())
        with Bag(path) as bag:
            robot = request.robot
            chosen = choose(bag, robot, request.mapping, request.namespace)
            demo = read_demonstration(
                bag, chosen.sources, chosen.roles, robot.state_names, robot.action_names
            )
            if demo.actions.names != robot.action_names:
                lacking = sorted(set(robot.action_names) - set(demo.actions.names))
                raise BagError(
                    f"{path}: the actions {', '.join(lacking)} are no joints of the state; only "
                    "joint positions can be exported"
                )
            hands = read_handovers(bag, robot.action_names)
            rows = _Rows(demo, round(rate), request.task, hands, request.human_actions)
            if writer is None:
                layout = DatasetLayout(
                    request.version,
                    round(rate),
                    robot.name,
                    robot.state_names,
                    robot.action_names,
                    {feature_of(role): demo.size(role) for role in demo.roles},
                    flags_of(request.out),
                )
                writer = LeRobotWriter(request.out, layout)
            if source in writer.sources:
                say(f"{path}: in the dataset already")
                continue
            _add(writer, demo, rows, source)
            torn = "" if bag.whole else "; the recording is not whole"
            say(f"{path}: {len(rows.times)} rows{rows.note()}{torn}")
    if writer is None:
        raise InvalidValueError("no recordings")
    writer.finish()
    return writer


def feature_of(role: str) -> str:
    """LeRobot's name of a camera."""
    return f"observation.images.{role}"


class _Rows:
    """Times of the rows of one episode and what holds at each."""

    def __init__(
        self, demo: Demonstration, fps: int, task: str, hands: HandOvers, human_actions: bool
    ) -> None:
        starts = [demo.state.stamps[0], demo.actions.stamps[0]]
        starts += [stamps[0] for stamps in demo.frames.values()]
        prompts = [stamp for stamp, _ in demo.prompts]
        if not task and not prompts:
            raise BagError(f"{demo.bag.path} has no prompt; give the task with --task")
        if not task:
            starts.append(prompts[0])
        start = int(max(starts))
        ends = [int(demo.state.stamps[-1]), int(demo.actions.stamps[-1])]
        end = min(ends + [stamps[-1] for stamps in demo.frames.values()])
        ahead = 0 if demo.commanded else NS // fps
        count = int((end - ahead - start) * fps // NS) + 1
        if count < 2:
            raise BagError(f"{demo.bag.path} has no time in which all inputs are there")
        self.times = start + np.round(np.arange(count) * NS / fps).astype(np.int64)
        self.state = demo.state.at(self.times)
        self.actions = demo.actions.at(self.times + ahead)
        self.human = 0
        if human_actions:
            names = demo.actions.names
            self.actions, self.human = hands.humanize(self.times, names, self.actions)
        known = hands.outcome in (SUCCESS, FAILURE)
        self.flags = {
            "intervention": hands.intervention(self.times),
            "success": np.full(count, hands.outcome == SUCCESS),
            "success_known": np.full(count, known),
        }
        texts = [task or demo.prompt_at(int(t)) or "" for t in self.times]
        self.tasks = list(dict.fromkeys(texts))
        self.task = np.array([self.tasks.index(text) for text in texts])
        self.frames = {
            role: [demo.newest(role, int(t)) or 0 for t in self.times] for role in demo.roles
        }
        old = [np.asarray(stamps) < self.times - MAX_AGE_NS for stamps in self.frames.values()]
        self.stale = int(np.any(old, axis=0).sum())
        self.undecodable = 0
        self.frozen: list[str] = []

    def note(self) -> str:
        """What a reader must know of the episode, with a leading comma; empty if nothing."""
        text = f", {self.stale} with an image older than 0.5 s" if self.stale else ""
        steered = int(self.flags["intervention"].sum())
        if steered:
            text += f", {steered} of a person ({self.human} with their targets as actions)"
        if self.undecodable:
            text += f", {self.undecodable} with the image before an unreadable one"
        return "; ".join([text, *self.frozen])


def _add(writer: LeRobotWriter, demo: Demonstration, rows: _Rows, source: str) -> None:
    """Encode the videos of an episode and write its table."""
    layout, episode = writer.layout, len(writer.episodes)
    following = np.append(rows.times[1:], rows.times[-1])
    count = len(rows.times)
    stats = {}
    for name, values in (("observation.state", rows.state), ("action", rows.actions)):
        statistics = ChannelStatistics()
        statistics.add(values)
        stats[name] = statistics.result(count, (values.shape[1],))
    for role in demo.roles:
        feature = feature_of(role)
        height, width = layout.cameras[feature]
        statistics, still = ChannelStatistics(), StillImages(role, demo.state)
        with EpisodeVideo(
            writer.out / layout.video_path(episode, feature), layout.fps, height, width
        ) as video:
            for index, image in enumerate(_images(demo, rows, role, (height, width))):
                video.add(image)
                still.add(int(rows.times[index]), int(following[index]), image)
                if index % STATISTICS_EVERY == 0:
                    statistics.add(image.reshape(-1, 3) / 255.0)
        stats[feature] = statistics.result(-(-count // STATISTICS_EVERY), (3, 1, 1))
        rows.frozen += [span.text(int(rows.times[0])) for span in still.spans()]
    for name in layout.flags:
        statistics = ChannelStatistics()
        statistics.add(rows.flags[name][:, None])
        stats[name] = statistics.result(count, (1,))
    columns = {"observation.state": rows.state, "action": rows.actions, "task": rows.task}
    columns |= {name: rows.flags[name] for name in layout.flags}
    writer.add(EpisodeRecord(source, count, rows.tasks, stats), columns)


def _images(
    demo: Demonstration, rows: _Rows, role: str, size: tuple[int, int]
) -> Iterator[np.ndarray]:
    """The image of each row; one that does not decode is replaced by the one before it."""
    shown: np.ndarray | None = None
    newest = -1
    stream = demo.stream(role, set(rows.frames[role]))
    held: dict[int, np.ndarray | None] = {}
    for stamp in rows.frames[role]:
        while stamp != newest and stamp not in held:
            found = next(stream, None)
            if found is None:
                raise BagError(f"{demo.bag.path} has changed while it was read")
            held[found[0]] = found[1]
        if stamp != newest:
            image, newest = held.pop(stamp), stamp
            if image is None:
                rows.undecodable += 1
            elif image.shape[:2] != size:
                height, width = image.shape[:2]
                raise BagError(
                    f"{demo.bag.path}: images of {role} have {width}x{height} pixels, the dataset "
                    f"{size[1]}x{size[0]}"
                )
            else:
                shown = image
        if shown is None:
            raise BagError(f"{demo.bag.path}: the first image of {role} cannot be read")
        yield shown
