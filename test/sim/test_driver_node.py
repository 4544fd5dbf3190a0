"""The driver node seen by a client: sensors out, commands in, episodes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import rclpy
from builtin_interfaces.msg import Duration
from node_rig import NodeRig, build_and_close
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.serialization import serialize_message
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Bool, Float64MultiArray, String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from pi05_ros.ros import qos
from pi05_ros.ros.processes.domain import free_domain_id
from pi05_ros.runtime.inputs.conversion import compressed_to_rgb, image_to_rgb
from pi05_ros.sim.arm.driver_node import DriverNode
from pi05_ros.sim.arm.trajectory import JointPlan
from pi05_ros.sim.arm.world import JOINT_NAMES


class Rig(NodeRig):
    def __init__(self, **parameters):
        super().__init__(DriverNode, partial(Node, "client"), parameters)
        self.got = {}

    def listen(self, kind, topic, profile=10):
        self.got[topic] = []
        self.client.create_subscription(kind, topic, self.got[topic].append, profile)

    def until(self, condition, seconds=60.0, tick=True):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if condition():
                return True
            if tick:
                self.node.tick()
            for _ in range(6):
                self.executor.spin_once(timeout_sec=0.002)
        return False

    def close(self):
        self.node.world.close()
        super().close()


@pytest.fixture
def rig():
    yield from build_and_close(Rig)


def test_sensors_prompt_and_episode_state(rig):
    rig = rig(task="push_blue", width=160, height=120)
    rig.listen(Image, "base_camera/image_raw")
    rig.listen(Image, "wrist_camera/image_raw")
    rig.listen(JointState, "joint_states")
    rig.listen(String, "prompt", qos.LATCHED)
    rig.listen(Bool, "sim_arm/task_done", qos.LATCHED)
    assert rig.until(lambda: all(rig.got.values()))
    picture = image_to_rgb(rig.got["base_camera/image_raw"][0])
    assert picture.shape == (120, 160, 3)
    assert picture.std() > 10
    state = rig.got["joint_states"][0]
    assert tuple(state.name) == JOINT_NAMES
    assert state.header.stamp.sec > 1_000_000
    assert rig.got["prompt"][0].data == "push the blue block to the left"
    assert rig.got["sim_arm/task_done"][0].data is False


def test_compressed_pictures_and_simulated_time(rig):
    rig = rig(compressed=True, publish_clock=True)
    rig.listen(CompressedImage, "base_camera/image_raw/compressed")
    rig.listen(Clock, "/clock")
    assert rig.until(lambda: all(rig.got.values()))
    message = rig.got["base_camera/image_raw/compressed"][0]
    assert compressed_to_rgb(message).shape == (224, 224, 3)
    assert message.header.stamp.sec < 60
    assert rig.got["/clock"][0].clock.sec < 60


def test_all_three_kinds_of_commands_move_the_arm(rig):
    rig = rig(image_rate_hz=1.0)
    rig.listen(JointState, "joint_states")
    trajectory = rig.client.create_publisher(
        JointTrajectory, "joint_trajectory_controller/joint_trajectory", 1
    )
    forward = rig.client.create_publisher(
        Float64MultiArray, "forward_position_controller/commands", 1
    )
    gripper = rig.client.create_publisher(Float64MultiArray, "gripper_controller/commands", 1)
    publishers = (trajectory, forward, gripper)
    assert rig.until(lambda: all(p.get_subscription_count() for p in publishers), tick=False)
    goal = rig.node.world.joint_positions[:6] + 0.1
    message = JointTrajectory(joint_names=list(JOINT_NAMES[5::-1]))
    for share, nanosec in ((0.5, 200_000_000), (1.0, 400_000_000)):
        point = JointTrajectoryPoint(positions=(goal - 0.1 * (1 - share))[::-1].tolist())
        point.time_from_start = Duration(nanosec=nanosec)
        message.points.append(point)
    trajectory.publish(message)
    gripper.publish(Float64MultiArray(data=[1.0]))

    def there(values):
        def check():
            if not rig.got["joint_states"]:
                return False
            position = np.array(rig.got["joint_states"][-1].position)
            return np.abs(position[: len(values)] - values).max() < 0.02

        return check

    assert rig.until(there(np.append(goal, 1.0)))
    assert rig.node.world.time > 0.3
    forward.publish(Float64MultiArray(data=(goal - 0.05).tolist()))
    assert rig.until(there(goal - 0.05))
    forward.publish(Float64MultiArray(data=[float("nan")] * 6))
    forward.publish(Float64MultiArray(data=[0.0]))
    assert rig.until(lambda: rig.node.refused >= 1)


@pytest.mark.parametrize(("joints_hz", "images_hz"), [(60.0, 20.0), (1000.0, 30.0), (100.0, 30.0)])
def test_the_arm_and_the_cameras_keep_time_at_any_rate(rig, joints_hz, images_hz, monkeypatch):
    """Rates that are no multiples of MuJoCo's step, or of each other."""
    rig = rig(joint_rate_hz=joints_hz, image_rate_hz=images_hz)
    node, taken = rig.node, []
    monkeypatch.setattr(node, "_publish_image", lambda camera, stamp: taken.append(camera))
    node._on_forward(Float64MultiArray(data=(node.world.targets[:6] + 0.1).tolist()))
    goal = node._plan.at(9.0)
    for _ in range(round(joints_hz)):
        node.tick()
        assert node.world.time == pytest.approx(node._episode_s, abs=0.0026)
    assert node.world.targets == pytest.approx(goal)
    assert taken.count("base") == images_hz
    node.start(1)
    assert node.world.time == node._episode_s == 0.0


def trajectory(node, stamp_s, *points):
    """Joint 1 alone; points are (seconds from start, position)."""
    message = JointTrajectory(joint_names=["joint1"])
    now = node.get_clock().now().nanoseconds + round(stamp_s * 1e9)
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(now, 10**9)
    for seconds, position in points:
        point = JointTrajectoryPoint(positions=[position])
        sec, nanosec = divmod(round(seconds * 1e9), 10**9)
        point.time_from_start = Duration(sec=sec, nanosec=nanosec)
        message.points.append(point)
    return message


def test_stamps_of_trajectories_shift_their_points(rig):
    rig = rig(image_rate_hz=1.0)
    node = rig.node
    start = node.world.time
    node._on_trajectory(trajectory(node, -0.5, (0.2, -1.0), (0.9, 0.4)))
    assert node._plan.at(start + 0.4)[0] == pytest.approx(0.4, abs=0.01)
    assert node._plan.at(start + 0.2)[0] > -0.3  # the first point was past
    node._on_trajectory(trajectory(node, 0.3, (0.1, -0.2)))
    assert node._plan.at(start + 0.4)[0] == pytest.approx(-0.2, abs=0.01)
    assert node.refused == 0
    node._on_trajectory(trajectory(node, -2.0, (0.1, 0.9)))
    node._on_trajectory(trajectory(node, 3600.0, (0.1, 0.9)))
    node._on_trajectory(trajectory(node, -2.0))
    node._on_trajectory(trajectory(node, -0.7, (1.0, 0.9), (0.5, 0.9), (2.0, 0.9)))
    assert node.refused == 4
    assert node._plan.at(start + 0.4)[0] == pytest.approx(-0.2, abs=0.01)


def test_the_process_outlives_nonsense_and_ends_on_sigterm_while_moving():
    domain = free_domain_id()
    environment = {
        **os.environ, "ROS_DOMAIN_ID": str(domain), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "pi05_ros.sim.arm.driver_node", "--ros-args", "-p",
         "image_rate_hz:=1"],
        cwd=Path(__file__).parents[2], env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain)
    client = Node("client", context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(client)
    states = []
    client.create_subscription(JointState, "joint_states", states.append, 10)
    out = client.create_publisher(
        JointTrajectory, "joint_trajectory_controller/joint_trajectory", 10
    )

    def until(condition, seconds=60.0):
        end = time.monotonic() + seconds
        while time.monotonic() < end and not condition():
            executor.spin_once(timeout_sec=0.01)
        return condition()

    try:
        assert until(lambda: states and out.get_subscription_count())
        good = JointTrajectory(joint_names=["joint1"])
        good.points.append(JointTrajectoryPoint(positions=[1.0], time_from_start=Duration(sec=1)))
        raw = bytes(serialize_message(good))
        uneven = JointTrajectory(joint_names=["joint1"])
        for n in (1, 2):
            point = JointTrajectoryPoint(positions=[0.1] * n, time_from_start=Duration(sec=n))
            uneven.points.append(point)
        for bad in (raw.replace(b"joint1", b"\xff\xfe\xfd\xfc\xfb\xfa"), raw[:20], b"\x00" * 64):
            out.publish(bad)
        out.publish(uneven)
        for value in (float("nan"), 1e308, -1e308):
            out.publish(
                JointTrajectory(
                    joint_names=["joint1"], points=[JointTrajectoryPoint(positions=[value])]
                )
            )
        before = len(states)
        assert until(lambda: len(states) > before + 20)
        before = states[-1].position[0]
        out.publish(good)
        assert until(lambda: states[-1].position[0] > before + 0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, process.stdout.read().decode()
    finally:
        process.kill()
        process.communicate()
        executor.shutdown()
        client.destroy_node()
        rclpy.shutdown(context=context)


def test_reset_service_starts_the_next_seed(rig):
    rig = rig(seed=4)
    service = rig.client.create_client(Trigger, "sim_arm/reset")
    assert rig.until(service.service_is_ready, tick=False)
    before = rig.node.world.block("red")
    future = service.call_async(Trigger.Request())
    assert rig.until(future.done, tick=False)
    assert "seed 5" in future.result().message
    assert not np.allclose(rig.node.world.block("red"), before)


def test_plan_interpolates_from_the_present_target_and_refuses_nonsense():
    plan = JointPlan(("a", "b"), np.array([0.0, 1.0]))
    plan.command(("b",), 1.0, np.array([1.0, 2.0]), np.array([[2.0], [0.0]]))
    assert plan.at(1.5).tolist() == [0.0, 1.5]
    assert plan.at(2.5).tolist() == [0.0, 1.0]
    assert plan.at(9.0).tolist() == [0.0, 0.0]
    for times, rows, names in (
        ([1.0, 1.0], [[1.0], [1.0]], ("a",)),
        ([], np.zeros((0, 1)), ("a",)),
        ([1.0], [[np.inf]], ("a",)),
        ([1.0], [[1.0]], ("c",)),
        ([1.0], [[1.0, 2.0]], ("a",)),
        ([1.0], [[1e308]], ("a",)),
        ([1.0], [[1.0, 2.0]], ("a", "a")),
        ([1.0], np.zeros((1, 0)), ()),
    ):
        with pytest.raises(ValueError, match=r"."):
            plan.command(names, 0.0, np.array(times), np.array(rows))
