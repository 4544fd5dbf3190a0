"""ROS node around the chunk executor: action chunks in, joint commands at the control rate out.

Topics (relative unless noted): in `pi05_policy/action_chunk`, `joint_states`; out
`joint_trajectory_controller/joint_trajectory` or `forward_position_controller/commands`,
`gripper_controller/commands`, `/diagnostics`. Services `~/stop` and `~/resume`.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import rclpy
from builtin_interfaces.msg import Duration
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import ParameterException
from rclpy.node import Node
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from pi05_ros.execution.executor import (
    FOLLOWING,
    WAITING,
    Command,
    Executor,
    ExecutorSettings,
)
from pi05_ros.execution.limits import (
    JointLimits,
    LimitsError,
    limits_from_urdf,
    limits_from_yaml,
)
from pi05_ros.execution.strategies import make_strategy
from pi05_ros.execution.timed_chunk import ChunkRefusedError, timed_chunk
from pi05_ros.msg import ActionChunk
from pi05_ros.ros import process, qos
from pi05_ros.ros.executor_parameters import ExecutorParameters, declare
from pi05_ros.runtime.conversion import ConversionError, JointMap, split_ns, stamp_ns
from pi05_ros.runtime.parameters import ParameterError

SOFT_STOP_S = 2.0
"""Longest time the node keeps braking when it is asked to end."""


class ExecutorNode(Node):
    """Node `pi05_executor`; keyword arguments are those of rclpy's Node."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("pi05_executor", **kwargs)
        self.parameters = declare(self)
        p = self.parameters
        limits = _limits(p)
        settings = ExecutorSettings(
            period_s=1.0 / p.control_rate_hz,
            max_chunk_age_s=p.max_chunk_age_s,
            max_future_s=p.max_future_s,
            max_state_age_s=p.max_state_age_s,
            following_lag_s=p.following_lag_s,
            gripping=(p.gripper_joint,),
            random_weights_allowed=p.allow_random_weights,
        )
        strategy = make_strategy(p.strategy, p.replace_after, p.ensemble_decay)
        self.core = Executor(limits, strategy, settings)
        self._arm = [i for i, name in enumerate(limits.names) if name != p.gripper_joint]
        self._gripper = [i for i, name in enumerate(limits.names) if name == p.gripper_joint]
        if p.gripper_joint and not self._gripper:
            self.get_logger().warning(
                f"gripper_joint '{p.gripper_joint}' is not among the joints "
                f"({', '.join(limits.names)}): none is set apart"
            )
        self._command = Command(None, WAITING, "not started")
        self._joint_map = JointMap(limits.names)
        self._bad_states = 0
        self._last_bad_state = ""
        self._last_ns = 0
        self._latency_ms = float("nan")
        if p.output == "trajectory":
            self._out = self.create_publisher(
                JointTrajectory, "joint_trajectory_controller/joint_trajectory", 1
            )
        else:
            self._out = self.create_publisher(
                Float64MultiArray, "forward_position_controller/commands", 1
            )
        self._gripper_out = self.create_publisher(
            Float64MultiArray, "gripper_controller/commands", 1
        )
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", qos.DIAGNOSTICS)
        self.create_subscription(
            ActionChunk, "pi05_policy/action_chunk", self._on_chunk, qos.CHUNK
        )
        self.create_subscription(JointState, "joint_states", self._on_state, qos.INPUT)
        self.create_service(Trigger, "~/stop", self._on_stop)
        self.create_service(Trigger, "~/resume", self._on_resume)
        self.create_timer(settings.period_s, self.tick, clock=process.tick_clock(self))
        # Monotonic: diagnostics have to say so when simulated time stands still.
        self.create_timer(
            1.0, self.publish_diagnostics, clock=Clock(clock_type=ClockType.STEADY_TIME)
        )

    def tick(self) -> None:
        """One control period: command, and a diagnostic when the mode changes."""
        now = self.get_clock().now().nanoseconds
        if now < self._last_ns:
            self.get_logger().warning("the clock jumped back; chunks and states are forgotten")
            self.core.rewind()
        self._last_ns = now
        before, self._command = self._command, self.core.tick(now)
        self._send(self._command)
        if (before.mode, before.reason) != (self._command.mode, self._command.reason):
            self.publish_diagnostics()

    def soft_stop(self) -> None:
        """Brake with the allowed deceleration, in real time, until at rest."""
        self.core.stop("node is ending")
        until = time.monotonic() + SOFT_STOP_S
        while self.core.filter.position is not None and time.monotonic() < until:
            self.tick()
            if self.core.filter.resting:
                return
            time.sleep(self.core.settings.period_s)

    def _on_chunk(self, message: ActionChunk) -> None:
        now = self.get_clock().now().nanoseconds
        start_ns = stamp_ns(message.header.stamp)
        try:
            chunk = timed_chunk(
                joints=self.core.joints,
                names=message.names,
                data=message.data,
                horizon=message.horizon,
                step_ns=stamp_ns(message.step),
                start_ns=start_ns,
                meaning=list(message.meaning),
                reference=self.core.measured_at(start_ns),
                policy_id=message.policy_id,
                chunk_id=message.chunk_id,
            )
        except ChunkRefusedError as error:
            self.core.refuse(error)
            return
        try:
            self.core.offer(chunk, now, message.random_weights)
        except ChunkRefusedError:
            return
        self._latency_ms = (now - chunk.start_ns) / 1e6

    def _on_state(self, message: JointState) -> None:
        try:
            positions = self._joint_map.positions(message)
        except ConversionError as error:
            self._bad_states += 1
            self._last_bad_state = str(error)
            return
        now = self.get_clock().now().nanoseconds
        stamp = stamp_ns(message.header.stamp)
        # Without a stamp, or with one ahead of this clock, it is as old as its arrival.
        self.core.measure(positions, min(stamp, now) if stamp > 0 else now)

    def _on_stop(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self.core.stop("stop requested")
        response.success, response.message = True, "braking"
        return response

    def _on_resume(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self.core.resume()
        response.success, response.message = True, "following the next chunk"
        return response

    def _send(self, command: Command) -> None:
        if command.positions is None:
            return
        arm = [float(command.positions[i]) for i in self._arm]
        if self.parameters.output == "trajectory":
            sec, nanosec = split_ns(round(self.core.settings.period_s * 1e9))
            point = JointTrajectoryPoint(
                positions=arm, time_from_start=Duration(sec=sec, nanosec=nanosec)
            )
            # Stamp 0: start now. A point one period ahead is never in the past on arrival.
            names = [self.core.joints[i] for i in self._arm]
            self._out.publish(JointTrajectory(joint_names=names, points=[point]))
        else:
            self._out.publish(Float64MultiArray(data=arm))
        if self._gripper:
            values = [float(command.positions[i]) for i in self._gripper]
            self._gripper_out.publish(Float64MultiArray(data=values))

    def publish_diagnostics(self) -> None:
        """One status: what the executor does, why, and what it has refused."""
        core, command = self.core, self._command
        following = command.mode == FOLLOWING
        values = {
            "mode": command.mode,
            "reason": command.reason,
            "strategy": self.parameters.strategy,
            "accepted": core.accepted,
            "clipped_to_limits": core.clipped,
            "refused": core.refused.total(),
            **{f"refused.{reason.replace(' ', '_')}": n for reason, n in core.refused.items()},
            "last_refused": core.last_refusal,
            "bad_joint_states": self._bad_states,
            "last_bad_joint_state": self._last_bad_state,
            "observation_to_executor_ms": f"{self._latency_ms:.1f}",
        }
        status = DiagnosticStatus(
            level=DiagnosticStatus.OK if following else DiagnosticStatus.WARN,
            name=f"{self.get_fully_qualified_name()}: executor",
            message=command.mode if following else f"{command.mode}: {command.reason}",
            hardware_id=", ".join(core.joints),
            values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
        )
        array = DiagnosticArray(status=[status])
        array.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(array)


def _limits(parameters: ExecutorParameters) -> JointLimits:
    if parameters.limits_file:
        limits = limits_from_yaml(Path(os.path.expanduser(parameters.limits_file)))
    else:
        limits = limits_from_urdf(parameters.robot_description, parameters.acceleration_time_s)
    return limits.of(parameters.joints) if parameters.joints else limits


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; it brakes before it ends."""
    stop = process.start(args)
    if stop is None:
        return 2
    try:
        node = ExecutorNode()
    except (ParameterError, LimitsError, ParameterException) as error:
        print(f"pi05_executor: {error}", file=sys.stderr)
        rclpy.try_shutdown()
        return 1
    executor = process.EnduringExecutor(node)
    while not stop.is_set():
        executor.spin_once(0.1)
    node.soft_stop()
    executor.shutdown()
    node.destroy_node()
    rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
