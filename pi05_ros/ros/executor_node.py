"""ROS node around the chunk executor: action chunks in, joint commands at the control rate out.

Topics (relative unless noted): in `pi05_policy/action_chunk`, `joint_states`; out
`joint_trajectory_controller/joint_trajectory` or `forward_position_controller/commands`,
`gripper_controller/commands`, `/diagnostics`, `~/executor_status`. Stops, permission and
teleoperation: `executor_controls`.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from sensor_msgs.msg import JointState

from pi05_ros.execution.arrival.chunk_intake import ChunkIntake
from pi05_ros.execution.executor import (
    HOLDING,
    WAITING,
    Command,
    Executor,
    ExecutorSettings,
)
from pi05_ros.execution.interlocks import InterlockSettings
from pi05_ros.execution.kinematics.pose_ik import PoseSettings
from pi05_ros.execution.limits import JointLimits
from pi05_ros.execution.outputs import CARTESIAN, Output, default_outputs, read_outputs
from pi05_ros.execution.strategies import make_strategy
from pi05_ros.execution.timed_chunk import TimedChunk
from pi05_ros.msg import ActionChunk, ExecutorStatus
from pi05_ros.policy.interface import ActionUnit
from pi05_ros.request_options import filled
from pi05_ros.ros import process, qos
from pi05_ros.ros.executor_controls import ExecutorControls
from pi05_ros.ros.executor_diagnostics import (
    ExecutorClockWatch,
    ReasonAge,
    ago,
    executor_diagnostics,
    status_message,
)
from pi05_ros.ros.executor_limits import limits_of_node
from pi05_ros.ros.executor_outputs import Outputs
from pi05_ros.ros.executor_parameters import ExecutorParameters, declare
from pi05_ros.ros.executor_parts.joint_state_input import JointStateInput
from pi05_ros.ros.executor_parts.pose_source import PoseSource
from pi05_ros.ros.executor_space import guard_of_node
from pi05_ros.ros.messages import time_msg
from pi05_ros.ros.topic_fit import TopicFit
from pi05_ros.runtime.parameter_specs import ParameterError

SETTLE_S = 0.2
"""Commands start when joint states have come for this long: a second publisher shows by then."""
SOFT_STOP_S = 2.0
"""Longest time the node keeps braking when it is asked to end."""
ACK_S = 0.5
"""Longest wait for receivers of its last commands."""


class ExecutorNode(Node):
    """Node `pi05_executor`; keyword arguments are those of rclpy's Node."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("pi05_executor", **kwargs)
        self.parameters = declare(self)
        p = self.parameters
        limits = self._read_limits(p)
        self._output_list = self._read_outputs(p, limits)
        grippers = [o.joints for o in self._output_list if o.gripper]
        settings = filled(
            ExecutorSettings,
            p,
            period_s=1.0 / p.control_rate_hz,
            gripping=tuple(name for names in grippers for name in names),
            settle_s=SETTLE_S,
            interlocks=InterlockSettings(p.require_enable, p.heartbeat_timeout_s),
            random_weights_allowed=p.allow_random_weights,
        )
        strategy = make_strategy(p.strategy, p.replace_after, p.ensemble_decay)
        self.core = Executor(limits, strategy, settings, guard_of_node(self, p, limits))
        self.core.speed_scale, self.core.hold_chunks = p.speed_scale, p.hold_chunks
        self._command = Command(None, WAITING, "not started")
        self._reason_age = ReasonAge()
        self._clock_watch = ExecutorClockWatch()
        self._clock_jumps = 0
        self._unit_assumed: set[str] = set()
        self._latency_ms = float("nan")
        self._poses = PoseSource(
            self,
            limits,
            p.robot_description,
            PoseSettings(p.pose_tolerance_m, p.pose_tolerance_rad, p.singularity_slow_below),
        )
        self._intake = ChunkIntake(self.core, self._poses.solver, self._on_taken)
        self._more_poses = self.create_guard_condition(self._solve_poses)
        urdf = ""
        if any(output.kind in CARTESIAN for output in self._output_list):
            urdf = self._poses.wait(p.robot_description_timeout_s)
        self._outputs = Outputs(self, self._output_list, self.core, urdf)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", qos.DIAGNOSTICS)
        self.create_subscription(
            ActionChunk, "pi05_policy/action_chunk", self._on_chunk, qos.CHUNK
        )
        try:
            self._joint_states = JointStateInput(
                self, self.core, [name for name in p.on_change_joints if name]
            )
        except ValueError as error:
            raise ParameterError(f"on_change_joints is {p.on_change_joints}; {error}") from error
        self._commands = self.create_publisher(JointState, "~/joint_commands", 10)
        self._status = self.create_publisher(ExecutorStatus, "~/executor_status", qos.LATCHED)
        self._controls = ExecutorControls(self, self.core, p.teleop_type, self.publish_status)
        self._fit = TopicFit(self, self._outputs.topics)
        self.create_timer(settings.period_s, self.tick, clock=process.tick_clock(self))
        self._steps_back = process.on_step_back(self, self._on_step_back)
        # Monotonic: diagnostics have to say so when simulated time stands still.
        self.create_timer(1.0, self._on_second, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def tick(self) -> None:
        """One control period: command, and a diagnostic when the mode changes."""
        now = self.get_clock().now().nanoseconds
        self._joint_states.judge(now)
        before, self._command = self._command, self.core.tick(now)
        self._notice_clock_jump()
        self._outputs.send(self._command)
        self._tell_command(now)
        self._controls.tell_intervention()
        if (before.mode, before.reason) != (self._command.mode, self._command.reason):
            self.publish_diagnostics()

    def _tell_command(self, now_ns: int) -> None:
        """The command in the joints' own units, for recorders; whatever the outputs are."""
        positions = self._command.positions
        if positions is None or not self._commands.get_subscription_count():
            return
        message = JointState(name=list(self.core.joints), position=positions.tolist())
        message.header.stamp = time_msg(now_ns)
        self._commands.publish(message)

    def _notice_clock_jump(self) -> None:
        if self.core.clock_jumps != self._clock_jumps:
            self._clock_jumps = self.core.clock_jumps
            self._joint_states.reset()
            self.get_logger().warning("the clock jumped back; chunks and states are forgotten")

    def _on_step_back(self) -> None:
        self.core.read_clock(self.get_clock().now().nanoseconds)
        self._notice_clock_jump()

    def soft_stop(self) -> None:
        """Brake with the allowed deceleration, in real time, until at rest."""
        self.core.stop("node is ending")
        until = time.monotonic() + SOFT_STOP_S
        while self.core.filter.position is not None and time.monotonic() < until:
            self.tick()
            if self.core.filter.resting:
                break
            time.sleep(self.core.settings.period_s)
        self._outputs.end(ACK_S)

    def _on_chunk(self, message: ActionChunk) -> None:
        if self._intake.take(message, self.get_clock().now().nanoseconds):
            self._more_poses.trigger()
        self._notice_clock_jump()

    def _solve_poses(self) -> None:
        """A part of a chunk of poses; what else is due comes before the next part."""
        if self._intake.go_on(self.get_clock().now().nanoseconds):
            self._more_poses.trigger()
        self._notice_clock_jump()

    def _on_taken(self, message: ActionChunk, chunk: TimedChunk) -> None:
        self._latency_ms = (self.get_clock().now().nanoseconds - chunk.start_ns) / 1e6
        self._tell_assumed_units(message)

    def _tell_assumed_units(self, message: ActionChunk) -> None:
        """Log, once per joint, that an unset unit was taken for the one its limits declare."""
        units = dict(zip(message.names, message.unit, strict=True))
        for name, declared in zip(self.core.joints, self.core.limits.units, strict=True):
            assumed = units.get(name) == ActionUnit.RADIAN and declared not in ("", "radian")
            if assumed and name not in self._unit_assumed:
                self._unit_assumed.add(name)
                self.get_logger().warning(
                    f"assumed: chunks have unit 0 (radian) for {name}, its limits declare "
                    f"{declared}; the values are taken for {declared}"
                )

    def _on_second(self) -> None:
        """Once per second of real time, also while the node's clock stands still."""
        problem = self._clock_watch.check(self.get_clock().now().nanoseconds)
        if problem:
            mode = WAITING if self._command.positions is None else HOLDING
            self._command = Command(self._command.positions, mode, problem)
        self._fit.look()
        self.publish_diagnostics()

    def publish_diagnostics(self) -> None:
        """One status: what the executor does, why, since when, and what it has refused."""
        now, states = self.get_clock().now(), self._joint_states
        command = self._command
        age_s = self._reason_age.update(command.mode, command.reason, time.monotonic())
        array = executor_diagnostics(
            self.get_fully_qualified_name(),
            self.core,
            command,
            now.nanoseconds,
            age_s,
            self._fit.text,
            {
                "strategy": self.parameters.strategy,
                "bad_joint_states": states.bad,
                "last_bad_joint_state": states.last_bad,
                "last_bad_joint_state_age_s": ago(states.last_bad_ns, now.nanoseconds),
                **{f"joint_state_jumps.{name}": n for name, n in states.jumps.items()},
                "refused.teleop": self.core.teleop.refused,
                "last_refused_teleop": self.core.teleop.last_refusal,
                "assumed_units": ", ".join(sorted(self._unit_assumed)),
                "observation_to_executor_ms": f"{self._latency_ms:.1f}",
            },
        )
        array.header.stamp = now.to_msg()
        self._diagnostics.publish(array)
        self.publish_status()

    def publish_status(self) -> None:
        """The latched, typed status."""
        command = self._command
        age_s = self._reason_age.update(command.mode, command.reason, time.monotonic())
        message = status_message(self.core, command, self.get_clock().now().nanoseconds, age_s)
        self._status.publish(message)

    def _read_limits(self, p: ExecutorParameters) -> JointLimits:
        """Limits of the parameters or of the topic; the result is logged as a table."""
        merged = limits_of_node(self, p)
        for note in merged.notes:
            self.get_logger().warning(note)
        self.get_logger().info(f"joint limits:\n{merged.table()}")
        return merged.limits

    def _read_outputs(self, p: ExecutorParameters, limits: JointLimits) -> list[Output]:
        """Outputs of the file, or those of a single arm."""
        if p.outputs_file:
            return read_outputs(Path(os.path.expanduser(p.outputs_file)), limits.names)
        if p.gripper_joint and p.gripper_joint not in limits.names:
            self.get_logger().warning(
                f"gripper_joint '{p.gripper_joint}' is not among the joints "
                f"({', '.join(limits.names)}): none is set apart"
            )
        return default_outputs(limits.names, p.output, p.gripper_joint)


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; it brakes before it ends."""
    return process.run_plain(ExecutorNode, "pi05_executor", args, ExecutorNode.soft_stop)


if __name__ == "__main__":
    sys.exit(main())
