"""Executor node with the files of shipped robots, over DDS, at stand-ins of their controllers."""

import time

import numpy as np
import pytest
import yaml
from node_rig import NodeRig, build_and_close
from pi05_ros.msg import ActionChunk
from rclpy.node import Node
from rclpy.parameter import Parameter
from robot_stand_in import RobotStandIn, fake_control_msgs
from sensor_msgs.msg import JointState
from std_srvs.srv import SetBool
from trajectory_msgs.msg import JointTrajectory

from pi05_ros.resources import robots_dir
from pi05_ros.ros.executor_node import ExecutorNode
from pi05_ros.ros.robot.joint_state_names_node import JointStateNamesNode

MANAGER = 0.04
STEPS = 20


class Driver(Node):
    """Controllers, joint states and chunks of one robot."""

    def __init__(self, context, robot_name, arms, goals):
        super().__init__(f"driver_of_{robot_name}", context=context)
        self.robot = RobotStandIn(robot_name, MANAGER, from_desired=True)
        self.arms = arms  # topic of joint states -> prefix of the executor's names
        self.states = {t: self.create_publisher(JointState, t, 10) for t in arms}
        self.chunks = self.create_publisher(ActionChunk, "pi05_policy/action_chunk", 1)
        self.enable = self.create_client(SetBool, "pi05_executor/enable")
        for topic, controller in self.robot.controllers.items():
            self.create_subscription(
                JointTrajectory, topic, lambda m, c=controller: c.receive(m, self.now_s), 10
            )
        self.create_timer(MANAGER, self.tick)
        self.goal = self.robot.measured + 0.1 * (self.robot.high - self.robot.low)
        self.number = 0
        self.goals, self.handed = goals, {}

    @property
    def now_s(self):
        return self.get_clock().now().nanoseconds / 1e9

    def tick(self):
        for name, positions in self.goals.items():
            for position in positions[self.handed.get(name, 0) :]:
                self.robot.grippers[name].goal(position, self.now_s)
            self.handed[name] = len(positions)
        self.robot.update(self.now_s)
        names = self.robot.limits.names
        for topic, prefix in self.arms.items():
            rows = [i for i, name in enumerate(names) if name.startswith(prefix)]
            state = JointState(name=[names[i].removeprefix(prefix) for i in rows])
            state.position = self.robot.measured[rows].tolist()
            state.header.stamp = self.get_clock().now().to_msg()
            self.states[topic].publish(state)

    def send_chunk(self):
        share = np.linspace(0, 1, STEPS)[:, None]
        rows = self.robot.measured + share * (self.goal - self.robot.measured)
        units = [int(unit == "metre") for unit in self.robot.limits.units]
        self.number += 1
        message = ActionChunk(
            chunk_id=self.number, policy_id="p", names=list(self.robot.limits.names),
            horizon=STEPS, meaning=[0] * len(units), unit=units,
            data=rows.astype(np.float32).ravel().tolist(),
        )  # fmt: skip
        message.step.nanosec = 50_000_000
        message.header.stamp = self.get_clock().now().to_msg()
        self.chunks.publish(message)


@pytest.fixture
def rig():
    yield from build_and_close(lambda make: make())


@pytest.mark.parametrize(
    ("robot_name", "arms"),
    [
        ("ur5e_robotiq", {"joint_states": ""}),
        ("aloha_interbotix", {f"/follower_{s}/joint_states": f"{s}_" for s in ("left", "right")}),
    ],
)
def test_a_stream_of_chunks_arrives(robot_name, arms, rig, monkeypatch):
    goals = fake_control_msgs(monkeypatch)
    folder = robots_dir() / robot_name
    ((_, entry),) = yaml.safe_load((folder / "executor.yaml").read_text()).items()
    parameters = {
        **entry["ros__parameters"],
        "control_rate_hz": 25.0,
        "limits_file": str(folder / "limits.yaml"),
        "outputs_file": str(folder / "outputs.yaml"),
        "tracking_error_time_s": 0.0,  # the machine may stand still for a while
    }
    driver_of = lambda context: Driver(context, robot_name, arms, goals)  # noqa: E731
    rig = rig(make=lambda: NodeRig(ExecutorNode, driver_of, parameters))
    extra = []
    if (folder / "joint_states.yaml").is_file():
        ((_, entry),) = yaml.safe_load((folder / "joint_states.yaml").read_text()).items()
        sources = Parameter("sources", value=entry["ros__parameters"]["sources"])
        extra.append(JointStateNamesNode(context=rig.context, parameter_overrides=[sources]))
        rig.executor.add_node(extra[0])
    driver, core = rig.client, rig.node.core
    sent, enabled = [0.0], []

    def feed():
        if not enabled and driver.enable.service_is_ready():
            enabled.append(driver.enable.call_async(SetBool.Request(data=True)))
        if time.monotonic() - sent[0] > 0.25:
            sent[0] = time.monotonic()
            driver.send_chunk()

    def there():
        error = np.abs(driver.robot.measured - driver.goal)
        # A gripper that is within its tolerance has arrived.
        return (error < 0.03 * (driver.robot.high - driver.robot.low)).all()

    try:
        end = time.monotonic() + 60.0
        while not there() and time.monotonic() < end:
            feed()
            rig.executor.spin_once(timeout_sec=0.01)
        assert there(), (core.accepted, core.measured, core.last_refusal, core.interlocks.reason)
    finally:
        for node in extra:
            rig.executor.remove_node(node)
            node.destroy_node()
    assert core.accepted > 1
    assert set(core.refused) <= {"stale"}  # on a machine that is busy
    for controller in driver.robot.controllers.values():
        assert set(controller.rejected) <= {"ends in the past"}
    assert set(goals) == set(driver.robot.grippers)
