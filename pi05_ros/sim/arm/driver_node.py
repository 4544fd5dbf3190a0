"""ROS driver of the simulated arm: publishes its sensors, takes commands as ros2_control would.

Out: `base_camera/image_raw`, `wrist_camera/image_raw` (or `.../compressed`), `joint_states`,
`prompt` (latched, the task's words), `~/task_done` (latched Bool), `/clock` on request.
In: `joint_trajectory_controller/joint_trajectory`, `forward_position_controller/commands`,
`gripper_controller/commands`; in lock-step also `pi05_policy/action_chunk` and `/diagnostics`.
Service `~/reset` starts the next seed.
"""

from __future__ import annotations

import io
import sys
import time
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from PIL import Image as Picture
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Bool, Float64MultiArray, String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from pi05_ros.execution.executor import FOLLOWING, HOLDING
from pi05_ros.msg import ActionChunk
from pi05_ros.ros import process, qos
from pi05_ros.ros.messages import time_msg
from pi05_ros.ros.parameter_server import declare
from pi05_ros.ros.topic_fit import TopicFit
from pi05_ros.runtime.inputs.conversion import stamp_ns
from pi05_ros.sim.arm.delay_line import DelayLine
from pi05_ros.sim.arm.driver_parameters import DriverParameters
from pi05_ros.sim.arm.lock_step import LockStep
from pi05_ros.sim.arm.tasks import Referee, task_by_name
from pi05_ros.sim.arm.trajectory import JointPlan
from pi05_ros.sim.arm.world import CAMERAS, CONTROL_DT, JOINT_NAMES, World

JPEG_QUALITY = 95
MAX_FUTURE_S = 10.0
"""Trajectories stamped farther ahead are refused."""
CLOCK_REPEAT_S = 0.05
"""While time stands still it is published again this often: readers take it best effort."""
HELD_SPIN_S = 0.01
PACE_EVERY_S = 20.0
"""Real time between two lines about the pace of simulated time."""
SENSOR = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)


class DriverNode(Node):
    """Node `sim_arm`; keyword arguments are those of rclpy's Node.

    The world advances by `tick`, once per period of `joint_rate_hz`, in wall time. Stamps are
    wall time too, or simulated seconds since the node's start with `publish_clock`. In lock-step
    simulated time is never faster than real time, and waits for the other nodes (`may_step`).
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("sim_arm", **kwargs)
        self._p = declare(self, DriverParameters)
        self.task = task_by_name(self._p.task)
        self.world = World(self._p.renderer or None)
        self.referee = Referee()
        self.seed = self._p.seed
        self._elapsed_ns = 0
        self._step_ns = round(1e9 / self._p.joint_rate_hz)
        self._pictures = 0
        self._watch_every = max(1, round(CONTROL_DT * self._p.joint_rate_hz))
        self._ticks = 0
        self.refused = 0
        kind, suffix = (
            (CompressedImage, "image_raw/compressed")
            if self._p.compressed
            else (Image, "image_raw")
        )
        self._cameras = {
            camera: self.create_publisher(kind, f"{camera}_camera/{suffix}", SENSOR)
            for camera in CAMERAS
        }
        self._states = self.create_publisher(JointState, "joint_states", SENSOR)
        self._prompt = self.create_publisher(String, "prompt", qos.LATCHED)
        self._done = self.create_publisher(Bool, "~/task_done", qos.LATCHED)
        simulated = self._p.publish_clock or self._p.lock_step
        self._clock_out = self.create_publisher(Clock, "/clock", 10) if simulated else None
        self._lock: LockStep | None = None
        if self._p.lock_step:
            self._make_lock()
        self.create_subscription(
            JointTrajectory,
            "joint_trajectory_controller/joint_trajectory",
            self._on_trajectory,
            10,
        )
        self.create_subscription(
            Float64MultiArray, "forward_position_controller/commands", self._on_forward, 10
        )
        self.create_subscription(
            Float64MultiArray, "gripper_controller/commands", self._on_gripper, 10
        )
        TopicFit(self).look_each_second()
        self.create_service(Trigger, "~/reset", self._on_reset)
        self.start(self.seed)
        backend = self.world.renderer.backend
        note = self.world.renderer.note
        self.get_logger().info(f"renderer {backend}" + (f": {note}" if note else ""))

    @property
    def catch_up(self) -> int:
        """Periods of real time that may be made up for; none in lock-step: they were waits."""
        return 5 if self._lock is None else 0

    def start(self, seed: int) -> None:
        """Begin the episode of a seed."""
        self.seed = seed
        self.world.reset(seed)
        self._began_ns = self._elapsed_ns
        self.referee = Referee()
        self._plan = JointPlan(JOINT_NAMES, self.world.targets)
        self._late_commands = DelayLine[Any](self._p.simulated_command_delay_s)
        self._late_images = DelayLine[Any](self._p.simulated_camera_delay_s)
        self._reported: bool | None = None
        if self._lock is not None:
            self._lock.restart()
        if self._p.publish_prompt:
            self._prompt.publish(String(data=self.task.prompt))
        self._report()

    def tick(self) -> None:
        """Advance the world by one period and publish what is due.

        The world goes in whole steps of its own, so it may be ahead or behind by half of one.
        """
        self._elapsed_ns += self._step_ns
        self._ticks += 1
        for command in self._late_commands.due(self._elapsed_ns):
            self._follow(*command)
        behind_s = self._episode_s - self.world.time
        if behind_s > self.world.model.opt.timestep / 2:
            self.world.step(self._plan.at(self._episode_s), behind_s)
        stamp = time_msg(self._now_ns())
        if self._clock_out is not None:
            self._clock_out.publish(Clock(clock=stamp))
        state = JointState(
            name=list(JOINT_NAMES),
            position=self.world.joint_positions.tolist(),
            velocity=self.world.joint_velocities.tolist(),
        )
        state.header.stamp = stamp
        self._states.publish(state)
        pictures = int(self._elapsed_ns * self._p.image_rate_hz / 1e9 + 1e-6)
        if pictures > self._pictures:
            self._pictures = pictures
            for camera in CAMERAS:
                self._publish_image(camera, stamp)
        for camera, message in self._late_images.due(self._elapsed_ns):
            message.header.stamp = stamp
            self._cameras[camera].publish(message)
        if self._ticks % self._watch_every == 0:
            self.referee.watch(self.world)
            self._report()

    def _make_lock(self) -> None:
        rate_hz = self._p.chunk_rate_hz
        period_ns = round(1e9 / rate_hz) if rate_hz else 0
        self._lock = LockStep(period_ns, self._step_ns, self._p.lock_step_wait_s)
        self._held_mono_s = 0.0
        self._pace_from = (time.monotonic(), self._elapsed_ns)
        self.create_subscription(
            ActionChunk, "pi05_policy/action_chunk", self._on_chunk, qos.CHUNK
        )
        self.create_subscription(
            DiagnosticArray, "/diagnostics", self._on_diagnostics, qos.DIAGNOSTICS
        )

    def may_step(self) -> bool:
        """Whether the next `tick` is due: always, except in lock-step."""
        if self._lock is None:
            return True
        mono_s = time.monotonic()
        given_up = self._lock.given_up
        if not self._lock.may_step(self._elapsed_ns, mono_s):
            if self._clock_out is not None and mono_s - self._held_mono_s >= CLOCK_REPEAT_S:
                self._held_mono_s = mono_s
                self._clock_out.publish(Clock(clock=time_msg(self._elapsed_ns)))
            return False
        if self._lock.given_up != given_up:
            self.get_logger().warning(
                f"nothing came for {self._p.lock_step_wait_s:g} s; simulated time goes on"
            )
        self._held_mono_s = mono_s
        since_s, since_ns = self._pace_from
        if mono_s - since_s >= PACE_EVERY_S:
            factor = (self._elapsed_ns - since_ns) / 1e9 / (mono_s - since_s)
            self.get_logger().info(f"real-time factor {factor:.2f}")
            self._pace_from = (mono_s, self._elapsed_ns)
        return True

    def _on_chunk(self, message: ActionChunk) -> None:
        assert self._lock is not None
        stamps = [stamp_ns(stamp) for stamp in message.input_stamps]
        self._lock.chunk(max(stamps, default=self._elapsed_ns), self._elapsed_ns)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        assert self._lock is not None
        namespace = self.get_namespace().rstrip("/")
        for status in message.status:
            if status.name == f"{namespace}/pi05_executor: executor":
                modes = [item.value for item in status.values if item.key == "mode"]
                self._lock.following(modes[:1] in ([FOLLOWING], [HOLDING]))

    @property
    def _episode_s(self) -> float:
        return (self._elapsed_ns - self._began_ns) / 1e9

    def _now_ns(self) -> int:
        """Time that stamps are in: simulated where this node publishes it, else the node's."""
        if self._clock_out is not None:
            return self._elapsed_ns
        return int(self.get_clock().now().nanoseconds)

    def _report(self) -> None:
        done = self.referee.done(self.task.name)
        if done != self._reported:
            self._reported = done
            self._done.publish(Bool(data=done))

    def _publish_image(self, camera: str, stamp: Any) -> None:
        width, height = self._p.width, self._p.height
        pixels = self.world.render(camera, width, height)
        if self._p.compressed:
            buffer = io.BytesIO()
            Picture.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY)
            message = CompressedImage(format="jpeg", data=buffer.getvalue())
        else:
            message = Image(height=height, width=width, encoding="rgb8", step=3 * width)
            message.data = pixels.tobytes()
        message.header.stamp = stamp
        message.header.frame_id = f"{camera}_camera"
        if self._p.simulated_camera_delay_s:
            self._late_images.put((camera, message), self._elapsed_ns)
        else:
            self._cameras[camera].publish(message)

    def _on_trajectory(self, message: JointTrajectory) -> None:
        """As joint_trajectory_controller: a stamp shifts the points, past ones are left out."""
        times = np.array([stamp_ns(p.time_from_start) / 1e9 for p in message.points])
        if times.size:
            self._commanded(float(times[0]))
        rows = [list(p.positions) for p in message.points]
        stamp = stamp_ns(message.header.stamp)
        if stamp:
            shift_s = (stamp - self._now_ns()) / 1e9
            if shift_s > MAX_FUTURE_S:
                self._refuse(
                    f"trajectory is to start in {shift_s:.1f} s; are the clocks the same?"
                )
                return
            times = times + shift_s
            ahead = np.flatnonzero(times >= 0.0)
            if not ahead.size:
                self._refuse(f"trajectory was over {-np.max(times, initial=shift_s):.2f} s ago")
                return
            times, rows = times[ahead[0] :], rows[ahead[0] :]
        self._command(message.joint_names, times, rows)

    def _on_forward(self, message: Float64MultiArray) -> None:
        self._commanded(CONTROL_DT)
        names = JOINT_NAMES[: 7 if len(message.data) == 7 else 6]
        self._command(names, np.array([CONTROL_DT]), [list(message.data)])

    def _on_gripper(self, message: Float64MultiArray) -> None:
        self._command(("gripper",), np.array([CONTROL_DT]), [list(message.data)])

    def _command(self, names: Any, times: np.ndarray, rows: list[list[float]]) -> None:
        if self._p.simulated_command_delay_s:
            self._late_commands.put((names, times, rows), self._elapsed_ns)
        else:
            self._follow(names, times, rows)

    def _follow(self, names: Any, times: np.ndarray, rows: list[list[float]]) -> None:
        try:
            table = np.array(rows, dtype=np.float64)
            self._plan.command(tuple(names), self._episode_s, times, table)
        except ValueError as error:
            self._refuse(str(error))

    def _commanded(self, period_s: float) -> None:
        if self._lock is not None:
            self._lock.command(self._elapsed_ns, round(1e9 * min(max(period_s, 0.0), 1.0)))

    def _refuse(self, text: str) -> None:
        self.refused += 1
        self.get_logger().warning(f"command refused: {text[:300]}", throttle_duration_sec=1.0)

    def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self.start(self.seed + 1)
        response.success, response.message = True, f"seed {self.seed}, {self.task.prompt}"
        return response


def main(args: list[str] | None = None) -> int:
    """Simulate, no faster than real time, until SIGINT or SIGTERM."""
    stop = process.start(args)
    if stop is None:
        return 2
    node = process.made(DriverNode, "sim_arm")
    if node is None:
        return 1
    executor = process.TolerantExecutor(node)
    period = node._step_ns / 1e9
    due = time.monotonic()
    held = False
    while not stop.is_set():
        executor.spin_once(HELD_SPIN_S if held else max(0.0, due - time.monotonic()))
        if time.monotonic() < due:
            continue
        held = not node.may_step()
        if not held:
            node.tick()
            # A late simulation slows down rather than jumping.
            due = max(due + period, time.monotonic() - node.catch_up * period)
    node.world.close()
    process.end(node, executor)


if __name__ == "__main__":
    sys.exit(main())
