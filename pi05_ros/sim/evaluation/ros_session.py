"""Episodes through real ROS topics: driver, policy and executor as processes of their own.

This process only watches and referees: it starts episodes by the nodes' services and reads
`sim_arm/task_done`, the chunks and the commands.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image
from std_msgs.msg import Bool
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from pi05_ros.msg import ActionChunk
from pi05_ros.replay.live import ros_environment
from pi05_ros.resources import config_dir
from pi05_ros.ros import qos
from pi05_ros.ros.processes.bring_up import bring_up
from pi05_ros.ros.processes.children import ChildError, Children
from pi05_ros.runtime.conversion import image_to_rgb, stamp_ns
from pi05_ros.sim.evaluation import video
from pi05_ros.sim.evaluation.ros_grid import RosJob
from pi05_ros.sim.evaluation.run import LIMITS_FILE

EPISODE_S = 15.0
"""Wall time an episode may take."""
MAX_FILM = 600
"""Pictures that are kept; later ones are not filmed."""
DRAIN_S = 0.05
"""Time to read what has queued up while nobody looked."""
_CONFIGURE_S = 120.0
_RESTART = ("pi05_executor/stop", "sim_arm/reset", "pi05_policy/reset", "pi05_executor/resume")
PARTS = ("input", "queue", "convert", "vision", "prefill", "denoise", "node", "output")
"""input: oldest sample's stamp until the newest sample is received (cameras are not in step);
convert: decoding and preprocessing; node: the rest of the policy node; output: chunk published
until the next command is received, so half a control period at the least on average."""
_STAGES = ("queue", "preprocess", "vision", "prefill", "denoise", "model", "total")


@dataclass
class Session:
    """What came out of the episodes.

    Attributes:
        done: seed -> whether the task was done in time.
        seconds: duration of the successful episodes.
        to_command_ms: observation stamp -> first command after the chunk that answers it.
        stages_ms: stage of the policy node -> its times, from the chunks' own timings.
        split_ms: parts of ``to_command_ms``, see `PARTS`; they add up to it.
        chunks: chunks received, over ``watched_s`` seconds.
        film: pictures of the base camera, all episodes one after the other.

    """

    done: dict[int, bool] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    to_command_ms: list[float] = field(default_factory=list)
    stages_ms: dict[str, list[float]] = field(default_factory=dict)
    split_ms: dict[str, list[float]] = field(default_factory=dict)
    chunks: int = 0
    watched_s: float = 0.0
    film: list[np.ndarray] = field(default_factory=list, repr=False)

    def row(self) -> dict[str, Any]:
        """Everything but the film, for JSON."""
        names = [item.name for item in fields(self) if item.name != "film"]
        return {name: getattr(self, name) for name in names}

    @property
    def text(self) -> str:
        """Summary for people."""

        def spread(values: Sequence[float]) -> str:
            known = [v for v in values if np.isfinite(v)]
            if not known:
                return "none"
            p50, p99 = np.percentile(known, [50, 99])
            return f"p50 {p50:.1f} ms, p99 {p99:.1f} ms"

        lines = [
            f"success {sum(self.done.values())} of {len(self.done)}",
            f"chunks {self.chunks / max(self.watched_s, 1e-9):.1f} per second",
            f"camera stamp -> command: {spread(self.to_command_ms)}",
            *(f"  {name}: {spread(values)}" for name, values in self.stages_ms.items()),
        ]
        return "\n".join(lines)


class Referee(Node):
    """Watches the topics of a session."""

    def __init__(self, session: Session, context: Context | None = None) -> None:
        super().__init__("referee", context=context)
        self.session = session
        self.task_done = False
        self.watching = False
        self.heard = False
        """Whether the policy has answered at all."""
        self._waiting: ActionChunk | None = None
        self.create_subscription(Image, "base_camera/image_raw", self._on_image, qos.INPUT)
        self.create_subscription(Bool, "sim_arm/task_done", self._on_done, qos.LATCHED)
        self.create_subscription(
            ActionChunk, "pi05_policy/action_chunk", self._on_chunk, qos.CHUNK
        )
        self.create_subscription(
            JointTrajectory, "joint_trajectory_controller/joint_trajectory", self._on_command, 10
        )

    def _on_done(self, message: Bool) -> None:
        self.task_done = message.data

    def _on_image(self, message: Image) -> None:
        if len(self.session.film) < MAX_FILM:
            self.session.film.append(image_to_rgb(message).copy())

    def watch(self, on: bool) -> None:
        """Whether chunks and commands count; what waits in a queue between episodes is old."""
        self.watching = on
        self._waiting = None

    def _on_chunk(self, message: ActionChunk) -> None:
        self.heard = True
        if not self.watching:
            return
        self.session.chunks += 1
        self._waiting = message
        for stage in _STAGES:
            value = float(getattr(message.timings, f"{stage}_ms"))
            self.session.stages_ms.setdefault(stage, []).append(value)

    def _on_command(self, _: JointTrajectory) -> None:
        if self._waiting is None:
            return
        now = self.get_clock().now().nanoseconds
        observed = stamp_ns(self._waiting.observation_stamp)
        self.session.to_command_ms.append((now - observed) / 1e6)
        for part, value in split(self._waiting, now).items():
            self.session.split_ms.setdefault(part, []).append(value)
        self._waiting = None


def split(chunk: ActionChunk, command_ns: int) -> dict[str, float]:
    """Where the time from observation stamp to command went, ms by `PARTS`."""
    t = chunk.timings
    published = stamp_ns(chunk.published_stamp)
    parts = {
        "input": (published - stamp_ns(chunk.observation_stamp)) / 1e6 - t.total_ms,
        "queue": t.queue_ms,
        "convert": t.convert_ms + t.preprocess_ms,
        "vision": t.vision_ms,
        "prefill": t.prefill_ms,
        "denoise": t.denoise_ms,
    }
    known = [t.queue_ms, t.convert_ms, t.preprocess_ms, t.model_ms]
    parts["node"] = t.total_ms - sum(value for value in known if np.isfinite(value))
    parts["output"] = (command_ns - published) / 1e6
    return {part: float(value) for part, value in parts.items()}


def run_session(
    checkpoint: str,
    job: RosJob,
    logs: Path,
    renderer: str | None = None,
    progress: Callable[[int, bool], None] = lambda seed, done: None,
) -> Session:
    """Run one episode per seed.

    Args:
        checkpoint: as for the policy node.
        job: what the nodes are started with; the driver's reset service takes the next seed.
        logs: directory of the processes' logs.
        renderer: of the driver node.
        progress: called after each episode.

    Raises:
        ChildError: a process died or did not answer; the text holds the end of its log.
        BringUpError: the policy node cannot be activated.

    """
    environment, domain = ros_environment()
    session = Session()
    # Ctrl-C is ours: rclpy's handlers would end the context under the executor.
    rclpy.init(args=[], domain_id=domain, signal_handler_options=SignalHandlerOptions.NO)
    node = Referee(session)
    executor = SingleThreadedExecutor()
    try:
        with Children(environment, logs) as children:
            _start(children, checkpoint, job, renderer)
            bring_up(node, "/pi05_policy", _CONFIGURE_S, lambda: None)
            executor.add_node(node)
            watch_episodes(node, executor, job.seeds, children.check, progress)
    finally:
        executor.shutdown()
        node.destroy_node()
        rclpy.shutdown()
    return session


def watch_episodes(
    node: Referee,
    executor: SingleThreadedExecutor,
    seeds: Sequence[int],
    check: Callable[[], None],
    progress: Callable[[int, bool], None],
) -> None:
    """Watch one episode per seed into ``node.session``; the nodes run, the first scene is there.

    Args:
        node: is spun by ``executor``.
        executor: of this thread.
        seeds: consecutive, as the driver's reset service takes them.
        check: called often; what it raises ends this.
        progress: called after each episode.

    Raises:
        ChildError: a service of the nodes does not answer.

    """
    for index, seed in enumerate(seeds):
        if index:
            _restart(node, executor)
        done = _episode(node, executor, check)
        node.session.done[seed] = done
        progress(seed, done)


def write_session(session: Session, stem: Path) -> list[Path]:
    """Numbers, latency plot and video as ``stem``.json, .png and .gif; the files written.

    Raises:
        ModuleNotFoundError: matplotlib is missing; the numbers are written by then.

    """
    numbers, plot, film = (Path(f"{stem}.{ending}") for ending in ("json", "png", "gif"))
    numbers.write_text(json.dumps(session.row(), indent=1) + "\n", "utf-8")
    written = [numbers]
    if session.film:
        video.write_gif(session.film, film)
        written.append(film)
    video.latency_plot(session.to_command_ms, session.stages_ms, plot)
    return [*written, plot]


def _start(children: Children, checkpoint: str, job: RosJob, renderer: str | None) -> None:
    driver = {
        "task": job.task,
        "seed": job.seeds[0],
        "renderer": renderer or "",
        "joint_rate_hz": 60.0,
    }
    limits = {"limits_file": str(config_dir() / LIMITS_FILE), "strategy": job.strategy}
    for name, module, values in (
        ("sim_arm", "pi05_ros.sim.arm.driver_node", driver),
        ("pi05_policy", "pi05_ros.ros.policy_node", job.policy_parameters(checkpoint)),
        ("pi05_executor", "pi05_ros.ros.executor_node", limits),
    ):
        words = [f"{key}:={json.dumps(value)}" for key, value in values.items()]
        arguments = [word for item in words for word in ("-p", item)]
        children.start_module(name, module, "--ros-args", *arguments)


def _restart(node: Node, executor: SingleThreadedExecutor) -> None:
    """Stop the arm, start the next scene, forget the old one everywhere, go on."""
    for name in _RESTART:
        client = node.create_client(Trigger, name)
        if not client.wait_for_service(timeout_sec=10.0):
            raise ChildError(f"service {name} is not there")
        future = client.call_async(Trigger.Request())
        executor.spin_until_future_complete(future, timeout_sec=10.0)
        if not future.done():
            raise ChildError(f"service {name} did not answer within 10 s")
        if name.endswith("stop"):
            _spin(executor, 0.5, lambda: False)
        node.destroy_client(client)


def _episode(node: Referee, executor: SingleThreadedExecutor, check: Callable[[], None]) -> bool:
    session = node.session
    _spin(executor, DRAIN_S, lambda: False)
    node.task_done = False
    node.watch(True)
    began = time.monotonic()
    done = _spin(executor, EPISODE_S, lambda: node.task_done, check)
    node.watch(False)
    took = time.monotonic() - began
    session.watched_s += took
    if done:
        session.seconds.append(took)
    return done


def _spin(
    executor: SingleThreadedExecutor,
    seconds: float,
    until: Callable[[], bool],
    check: Callable[[], None] = lambda: None,
) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        executor.spin_once(timeout_sec=0.05)
        check()
        if until():
            return True
    return False
