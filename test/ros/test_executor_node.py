"""The executor node with real rclpy: a client sends chunks and joint states, and looks."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from pi05_ros.msg import ActionChunk
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from pi05_ros.policy.execution.limits import LimitsError, limits_from_yaml
from pi05_ros.ros.domain import free_domain_id
from pi05_ros.ros.executor_node import ExecutorNode
from pi05_ros.ros.parameters import ParameterError

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


class Rig:
    """Executor node and client in one process, spun together."""

    def __init__(self, **parameters):
        os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=free_domain_id())
        parameters = {"limits_file": str(LIMITS), **parameters}
        try:
            self.node = ExecutorNode(
                context=self.context,
                parameter_overrides=[Parameter(k, value=v) for k, v in parameters.items()],
            )
        except BaseException:
            rclpy.shutdown(context=self.context)
            raise
        self.client = Client(self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.executor.add_node(self.client)

    def until(self, condition, seconds=10.0, each=None):
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

    def close(self):
        self.executor.shutdown()
        self.client.destroy_node()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)


@pytest.fixture
def rig():
    made = []

    def build(**parameters):
        made.append(Rig(**parameters))
        return made[-1]

    yield build
    for item in made:
        item.close()


def follow(rig, number=1, **changes):
    client = rig.client
    assert rig.until(lambda: rig.node.core.measured is not None, each=client.send_state)
    client.send_chunk(number, **changes)


def test_chunks_become_trajectories_and_gripper_commands_within_limits(rig):
    rig = rig()
    follow(rig, target=2.0)
    client = rig.client
    assert rig.until(lambda: len(client.trajectories) >= 12, each=client.send_state)
    message = client.trajectories[0]
    assert message.joint_names == JOINTS[:6]
    assert message.points[0].time_from_start.nanosec == 50_000_000
    path = np.array([m.points[0].positions[0] for m in client.trajectories])
    limits = limits_from_yaml(LIMITS)
    assert path[-1] > 0.2
    assert np.abs(np.diff(path)).max() <= limits.velocity[0] * 0.05 + 1e-6
    assert np.abs(np.diff(path, 2)).max() <= limits.acceleration[0] * 0.05**2 + 1e-6
    assert max(client.gripper) > 0.5
    assert rig.until(lambda: any(text == "following" for text, _ in client.diagnostics))


def test_forward_output_and_hold_when_the_chunk_runs_out(rig):
    rig = rig(output="forward")
    follow(rig)
    client = rig.client
    holds = [""]

    def holding():
        holds[:] = [text for text, _ in client.diagnostics if text.startswith("holding")]
        return bool(holds)

    assert rig.until(holding, each=client.send_state)
    assert "no fresh chunk" in holds[0]
    assert not client.trajectories
    assert len(client.forward[-1]) == 6
    assert client.forward[-1][0] == pytest.approx(0.1, abs=1e-3)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"random_weights": True}, "refused.random_weights"),
        ({"data": [float("nan")] * 112}, "refused.not_finite"),
        ({"data": [0.0] * 3}, "refused.length"),
        ({"names": ["x"] * 7}, "refused.names"),
        ({"meaning": [9] * 7}, "refused.meaning"),
    ],
)
def test_refused_chunks_do_not_move_and_are_named_in_diagnostics(rig, changes, key):
    rig = rig()
    follow(rig, **changes)
    client = rig.client
    assert rig.until(lambda: any(values.get(key) == "1" for _, values in client.diagnostics))
    assert not client.trajectories


def test_random_weights_run_where_they_are_allowed(rig):
    rig = rig(allow_random_weights=True)
    follow(rig, random_weights=True)
    assert rig.until(lambda: bool(rig.client.trajectories), each=rig.client.send_state)


def test_stop_and_resume_services(rig):
    rig = rig()
    follow(rig)
    client = rig.client
    assert rig.until(lambda: len(client.trajectories) > 2, each=client.send_state)
    for name, mode in (("stop", "stopped"), ("resume", "holding")):
        service = client.create_client(Trigger, f"/pi05_executor/{name}")
        assert rig.until(service.service_is_ready)
        future = service.call_async(Trigger.Request())
        assert rig.until(future.done)
        assert future.result().success
        client.diagnostics.clear()
        assert rig.until(
            lambda mode=mode: any(t.startswith(mode) for t, _ in client.diagnostics),
            each=client.send_state,
        )
    client.send_chunk(2)
    client.diagnostics.clear()
    assert rig.until(
        lambda: any(t == "following" for t, _ in client.diagnostics), each=client.send_state
    )


def test_incomplete_joint_states_are_counted(rig):
    rig = rig()
    client = rig.client
    assert rig.until(
        lambda: any(int(v["bad_joint_states"]) > 0 for _, v in client.diagnostics),
        each=lambda: client.send_state(["joint1"], [0.0]),
    )
    assert rig.node.core.measured is None


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"limits_file": ""}, ParameterError, "limits_file"),
        ({"limits_file": "/does/not/exist"}, LimitsError, "cannot read"),
        ({"strategy": "hope"}, ParameterError, "replace, ensemble, rtc"),
        ({"output": "smoke"}, ParameterError, "trajectory, forward"),
        ({"control_rate_hz": 0.0}, ParameterError, "1 to 1000"),
        ({"joints": ["joint9"]}, LimitsError, "joint9"),
    ],
)
def test_bad_parameters_are_refused_with_the_accepted_values(parameters, error, message):
    with pytest.raises(error, match=message):
        Rig(**parameters)
