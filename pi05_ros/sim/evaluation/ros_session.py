"""Episodes through real ROS topics: driver, policy and executor as processes of their own.

This process only watches and referees: it starts episodes by the nodes' services and reads
`sim_arm/task_done`, the chunks and the commands. Time is simulated, in lock-step with the nodes,
unless real time is asked for.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image
from std_msgs.msg import Bool
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from pi05_ros.msg import ActionChunk
from pi05_ros.resources import config_dir
from pi05_ros.ros import qos
from pi05_ros.ros.processes.bring_up import bring_up
from pi05_ros.ros.processes.children import Child, ChildError, Children, ros_environment
from pi05_ros.runtime.inputs.conversion import image_to_rgb, stamp_ns
from pi05_ros.sim.evaluation.evaluate import LIMITS_FILE
from pi05_ros.sim.evaluation.ros_grid import RosJob
from pi05_ros.sim.evaluation.session_results import RosSession, split

EPISODE_S = 15.0
"""Time an episode may take, on the clock of the nodes."""
BRAKE_S = 0.5
"""Time that the arm is given to come to rest between episodes, on the clock of the nodes."""
STANDSTILL_S = 60.0
"""Real time after which simulated time that stands still ends a session."""
MAX_FILM = 600
"""Images that are kept; later ones are not filmed."""
SERVICE_S = 30.0
DRAIN_S = 0.05
"""Time to read what has queued up meanwhile."""
_CONFIGURE_S = 120.0
_RESTART = ("pi05_executor/stop", "sim_arm/reset", "pi05_policy/reset", "pi05_executor/resume")
_STAGES = ("queue", "preprocess", "vision", "prefill", "denoise", "model", "total")


class SessionWatcher(Node):
    """Watches the topics of a session; keyword arguments are those of rclpy's Node."""

    def __init__(self, session: RosSession, **kwargs: Any) -> None:
        super().__init__("referee", **kwargs)
        self.session = session
        self.task_done = False
        self.watching = False
        self.heard = False
        """Whether the policy has answered at all."""
        self._waiting: ActionChunk | None = None
        self._waiting_since_s = 0.0
        self.create_subscription(Image, "base_camera/image_raw", self._on_image, qos.FILM)
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
        self._waiting_since_s = time.monotonic()
        for stage in _STAGES:
            value = float(getattr(message.timings, f"{stage}_ms"))
            self.session.stages_ms.setdefault(stage, []).append(value)

    def _on_command(self, _: JointTrajectory) -> None:
        if self._waiting is None:
            return
        chunk, self._waiting = self._waiting, None
        if self.session.real_time:
            now_ns, published_ns = self.now_ns, stamp_ns(chunk.published_stamp)
            input_ms = (published_ns - stamp_ns(chunk.observation_stamp)) / 1e6
            input_ms -= chunk.timings.total_ms
            output_ms = (now_ns - published_ns) / 1e6
        else:
            input_ms = float("nan")
            output_ms = 1e3 * (time.monotonic() - self._waiting_since_s)
        parts = split(chunk, input_ms, output_ms)
        whole = np.nan_to_num(input_ms) + chunk.timings.total_ms + output_ms
        self.session.to_command_ms.append(float(whole))
        for part, value in parts.items():
            self.session.split_ms.setdefault(part, []).append(value)

    @property
    def now_ns(self) -> int:
        """The clock of the nodes."""
        return int(self.get_clock().now().nanoseconds)


def run_session(
    checkpoint: str,
    job: RosJob,
    logs: Path,
    renderer: str | None = None,
    progress: Callable[[int, bool], None] = lambda seed, done: None,
) -> RosSession:
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
    session = RosSession(real_time=job.real_time)
    # Ctrl-C is ours: rclpy's handlers would end the context under the executor.
    rclpy.init(args=[], domain_id=domain, signal_handler_options=SignalHandlerOptions.NO)
    node = watcher(session)
    executor = SingleThreadedExecutor()
    try:
        with Children(environment, logs) as children:
            start_nodes(children, checkpoint, job, renderer)
            bring_up(node, "/pi05_policy", _CONFIGURE_S, lambda: None)
            executor.add_node(node)
            watch_episodes(node, executor, job.seeds, children.check, progress)
    finally:
        executor.shutdown()
        node.destroy_node()
        rclpy.shutdown()
    return session


def watcher(session: RosSession) -> SessionWatcher:
    """Node that watches a session on the clock of its nodes."""
    simulated = Parameter("use_sim_time", value=not session.real_time)
    return SessionWatcher(session, parameter_overrides=[simulated])


def watch_episodes(
    node: SessionWatcher,
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
            node.task_done = False
        done = _episode(node, executor, check)
        node.session.done[seed] = done
        progress(seed, done)


def start_nodes(
    children: Children, checkpoint: str, job: RosJob, renderer: str | None = None
) -> list[Child]:
    """Start driver, policy and executor, in this order; see `run_session`."""
    started = []
    driver = {
        "task": job.task,
        "seed": job.seeds[0],
        "renderer": renderer or "",
        "joint_rate_hz": 60.0,
        "lock_step": not job.real_time,
        "chunk_rate_hz": float(job.rate_hz),
    }
    limits = {"limits_file": str(config_dir() / LIMITS_FILE), "strategy": job.strategy}
    for name, module, values in (
        ("sim_arm", "pi05_ros.sim.arm.driver_node", driver),
        ("pi05_policy", "pi05_ros.ros.policy_node", job.policy_parameters(checkpoint)),
        ("pi05_executor", "pi05_ros.ros.executor_node", limits),
    ):
        values = {**values, "use_sim_time": not job.real_time and name != "sim_arm"}
        words = [f"{key}:={json.dumps(value)}" for key, value in values.items()]
        arguments = [word for item in words for word in ("-p", item)]
        started.append(children.start_module(name, module, "--ros-args", *arguments))
    return started


def _restart(node: SessionWatcher, executor: SingleThreadedExecutor) -> None:
    """Stop the arm, start the next scene, forget the old one everywhere, go on."""
    for name in _RESTART:
        client = node.create_client(Trigger, name)
        if not client.wait_for_service(timeout_sec=SERVICE_S):
            raise ChildError(f"service {name} is not there")
        future = client.call_async(Trigger.Request())
        executor.spin_until_future_complete(future, timeout_sec=SERVICE_S)
        if not future.done():
            raise ChildError(f"service {name} did not answer within {SERVICE_S:.0f} s")
        if name.endswith("stop"):
            _spin(node, executor, BRAKE_S, lambda: False)
        node.destroy_client(client)


def _episode(
    node: SessionWatcher, executor: SingleThreadedExecutor, check: Callable[[], None]
) -> bool:
    session = node.session
    _drain(executor)
    # The first scene began without us, and a quick policy may have done it already.
    missed = node.task_done
    node.watch(True)
    began_ns, began_s = node.now_ns, time.monotonic()
    done = _spin(node, executor, EPISODE_S, lambda: node.task_done, check)
    node.watch(False)
    took = (node.now_ns - began_ns) / 1e9
    session.watched_s += took
    session.wall_s += time.monotonic() - began_s
    if done and not missed:
        session.seconds.append(took)
    return done


def _drain(executor: SingleThreadedExecutor) -> None:
    end = time.monotonic() + DRAIN_S
    while time.monotonic() < end:
        executor.spin_once(timeout_sec=DRAIN_S)


def _spin(
    node: SessionWatcher,
    executor: SingleThreadedExecutor,
    seconds: float,
    until: Callable[[], bool],
    check: Callable[[], None] = lambda: None,
) -> bool:
    """Spin for a time on the clock of the nodes, or until it is so; whether it is."""
    began_ns = newest_ns = node.now_ns
    moved_s = time.monotonic()
    while node.now_ns - began_ns < seconds * 1e9:
        executor.spin_once(timeout_sec=0.05)
        check()
        if until():
            return True
        if node.now_ns != newest_ns:
            newest_ns, moved_s = node.now_ns, time.monotonic()
        elif time.monotonic() - moved_s > STANDSTILL_S:
            raise ChildError(f"simulated time stood still for {STANDSTILL_S:.0f} s")
    return False
