"""A client of the executor node for its tests: a policy and a robot in one."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from node_rig import NodeRig
from pi05_ros.msg import ActionChunk
from rclpy.node import Node
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory

from pi05_ros.ros.executor_node import ExecutorNode

LIMITS = Path(__file__).parents[2] / "config" / "sim_arm_limits.yaml"
JOINTS = [*(f"joint{i}" for i in range(1, 7)), "gripper"]
START = [0.0, 0.5, 1.5, 0.0, 1.0, 0.0, 0.0]


class Client(Node):
    """Publishes what a policy and a robot would, keeps what comes back."""

    def __init__(self, context):
        super().__init__("client", context=context)
        self.chunks = self.create_publisher(ActionChunk, "pi05_policy/action_chunk", 1)
        self.states = self.create_publisher(JointState, "joint_states", 1)
        self.trajectories: list[JointTrajectory] = []
        self.forward: list[list[float]] = []
        self.gripper: list[float] = []
        self.diagnostics: list[tuple[str, dict[str, str]]] = []
        self.create_subscription(
            JointTrajectory,
            "joint_trajectory_controller/joint_trajectory",
            self.trajectories.append,
            50,
        )
        self.create_subscription(
            Float64MultiArray,
            "forward_position_controller/commands",
            lambda m: self.forward.append(list(m.data)),
            50,
        )
        self.create_subscription(
            Float64MultiArray,
            "gripper_controller/commands",
            lambda m: self.gripper.append(m.data[0]),
            50,
        )
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 50)

    def _on_diagnostics(self, message):
        for status in message.status:
            self.diagnostics.append((status.message, {v.key: v.value for v in status.values}))

    def send_state(self, names=JOINTS, values=START):
        self.states.publish(JointState(name=list(names), position=list(values)))

    def send_chunk(self, number, target=0.1, **changes):
        rows = np.tile(START, (16, 1))
        rows[:, 0] = target
        rows[:, 6] = 1.0
        message = ActionChunk(
            chunk_id=number,
            policy_id="test",
            names=JOINTS,
            horizon=16,
            meaning=[0] * 7,
            unit=[0] * 7,
            data=rows.astype(np.float32).ravel().tolist(),
        )
        message.step.nanosec = 50_000_000
        message.header.stamp = self.get_clock().now().to_msg()
        for name, value in changes.items():
            setattr(message, name, value)
        self.chunks.publish(message)


class Rig(NodeRig):
    """Executor node and client in one process, spun together."""

    def __init__(self, **parameters):
        super().__init__(ExecutorNode, Client, {"limits_file": str(LIMITS), **parameters})

    def until(self, condition, seconds=60.0, each=None):
        end = time.monotonic() + seconds
        sent = 0.0
        while time.monotonic() < end:
            if each is not None and time.monotonic() - sent > 0.02:
                sent = time.monotonic()
                each()
            self.executor.spin_once(timeout_sec=0.01)
            if condition():
                return True
        return False


def follow(rig, number=1, **changes):
    client = rig.client
    assert rig.until(lambda: rig.node.core.measured is not None, each=client.send_state)
    rig.until(lambda: False, 0.3, each=client.send_state)  # they have to come for a while
    client.send_chunk(number, **changes)
