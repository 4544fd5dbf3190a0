"""The executor as a process of its own against a client that means it ill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import rclpy
from executor_client import JOINTS, LIMITS, START, Client
from pi05_ros.msg import ActionChunk
from rclpy.executors import SingleThreadedExecutor
from rclpy.serialization import serialize_message
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState

from pi05_ros.execution.limits import limits_from_yaml
from pi05_ros.ros.processes.domain import free_domain_id

ROOT = Path(__file__).parents[2]
PERIOD = 0.05
NS = 1_000_000_000


class Plant(Client):
    """A robot that does what it is told at once, on the wall clock or on its own."""

    def __init__(self, context):
        super().__init__(context)
        self.path = []
        self.position = list(START)
        self.clock = self.create_publisher(Clock, "/clock", 10)
        self.sim_ns = None

    def feed(self):
        """Clock and joint states; commands since the last call are carried out."""
        if self.sim_ns is not None:
            self.sim_ns += NS // 100
            message = Clock()
            message.clock.sec, message.clock.nanosec = divmod(self.sim_ns, NS)
            self.clock.publish(message)
        for message in self.trajectories:
            self.path.append(list(message.points[0].positions))
            self.position[:6] = message.points[0].positions
        self.trajectories.clear()
        state = JointState(name=JOINTS, position=self.position)
        state.header.stamp.sec, state.header.stamp.nanosec = divmod(self.now_ns, NS)
        self.states.publish(state)

    @property
    def now_ns(self):
        return self.get_clock().now().nanoseconds if self.sim_ns is None else self.sim_ns

    def send(self, number, target=0.1, age_s=0.0, **changes):
        sec, nanosec = divmod(self.now_ns - int(age_s * 1e9), NS)
        message = ActionChunk().header
        message.stamp.sec, message.stamp.nanosec = sec, nanosec
        self.send_chunk(number, target, header=message, **changes)

    def count(self, key):
        values = self.diagnostics[-1][1] if self.diagnostics else {}
        return int(values.get(key, 0))


class Rig:
    def __init__(self, *parameters):
        domain = free_domain_id()
        environment = {
            **os.environ,
            "ROS_DOMAIN_ID": str(domain),
            "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        }
        words = [item for p in (f"limits_file:={LIMITS}", *parameters) for item in ("-p", p)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pi05_ros.ros.executor_node", "--ros-args", *words],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.client = Plant(self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.client)

    def until(self, condition, seconds=60.0, each=None):
        """Feed every 10 ms until the condition holds."""
        end, fed = time.monotonic() + seconds, 0.0
        while time.monotonic() < end:
            if time.monotonic() - fed >= 0.01:
                fed = time.monotonic()
                self.client.feed()
                if each is not None:
                    each()
            self.executor.spin_once(timeout_sec=0.002)
            if condition():
                return True
        return False

    def follow(self, number=1, target=0.1, **changes):
        """Bring it to follow a chunk."""
        matched = self.client.chunks.get_subscription_count
        assert self.until(lambda: matched() and self.client.diagnostics)
        start = len(self.client.path)
        # Not before it has joint states.
        self.until(lambda: False, 0.3)
        self.client.send(number, target, **changes)
        assert self.until(lambda: len(self.client.path) >= start + 4), self.end()

    def end(self, number=signal.SIGKILL):
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.communicate(timeout=60)[0].decode()

    def within_limits(self):
        limits = limits_from_yaml(LIMITS)
        path = np.array(self.client.path)
        velocity = np.diff(path, axis=0) / PERIOD
        change = np.diff(velocity, axis=0) / PERIOD
        assert (np.abs(velocity) <= limits.velocity[:6] + 1e-4).all()
        assert (np.abs(change) <= limits.acceleration[:6] + 1e-3).all()

    def close(self):
        self.end()
        self.executor.shutdown()
        self.client.destroy_node()
        rclpy.shutdown(context=self.context)


@pytest.fixture
def rig():
    made = []

    def build(*parameters):
        made.append(Rig(*parameters))
        return made[-1]

    yield build
    for item in made:
        item.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_moving_brakes_within_the_limits(rig, number):
    rig = rig()
    rig.follow(target=2.0)
    assert rig.until(lambda: np.abs(np.diff(np.array(rig.client.path)[-2:, 0])).max() > 0.03)
    rig.process.send_signal(number)
    assert rig.until(lambda: rig.process.poll() is not None)
    rig.until(lambda: False, 0.2)
    assert rig.process.returncode == 0
    rig.within_limits()
    assert rig.client.path[-1][0] == pytest.approx(rig.client.path[-2][0], abs=1e-9)


def test_messages_that_cannot_be_read_do_not_end_it(rig):
    rig = rig()
    rig.follow()
    client = rig.client
    chunk = bytes(serialize_message(ActionChunk(policy_id="AAAA", names=["BBBB"])))
    state = bytes(serialize_message(JointState(name=["CCCC"], position=[0.0])))
    for publisher, raw, text in ((client.chunks, chunk, b"BBBB"), (client.states, state, b"CCCC")):
        for bad in (raw.replace(text, b"\xff\xfe\xfd\xfc"), raw[:40], raw[:4], b"\x00" * 200):
            publisher.publish(bad)
            rig.until(lambda: False, 0.05)
    client.send(2, 0.2)
    assert rig.until(lambda: client.path[-1][0] > 0.15)
    rig.within_limits()
    assert rig.process.poll() is None


def test_nonsense_is_refused_by_name_and_the_arm_holds(rig):
    rig = rig()
    rig.follow()
    client = rig.client
    many = [f"joint{i}" for i in range(3000)]
    wrong = {
        "refused.names": {"names": many, "meaning": [0] * 3000},
        "refused.not_finite": {"data": [float("inf")] * 112},
        "refused.length": {"horizon": 2**32 - 1},
        "refused.future": {"age_s": -5.0},
        "refused.stale": {"age_s": 5.0},
        "refused.order": {},
    }
    for n, (key, changes) in enumerate(wrong.items()):
        client.send(1 if key == "refused.order" else 10 + n, 1.0, **changes)
        assert rig.until(lambda key=key: client.count(key) == 1), (key, client.diagnostics[-1])
        assert len(client.diagnostics[-1][1]["last_refused"]) <= 300
    assert rig.until(lambda: client.diagnostics[-1][0].startswith("holding"))
    rig.until(lambda: False, 0.3)
    assert client.path[-1][0] == pytest.approx(0.1, abs=1e-3)


def test_joint_states_that_are_wrong_or_old_hold_the_arm(rig):
    rig = rig()
    rig.follow(target=2.0)
    client = rig.client
    feed, number = client.feed, 1
    for wrong in ("nan", "old", "doubled"):
        state = JointState(name=list(JOINTS), position=list(client.position))
        now = client.get_clock().now().nanoseconds
        if wrong == "nan":
            state.position[0] = float("nan")
        elif wrong == "doubled":
            state.name.append("joint1")
            state.position.append(0.0)

        def broken(state=state, wrong=wrong, old=now - 3 * NS):
            stamp = old if wrong == "old" else client.get_clock().now().nanoseconds
            state.header.stamp.sec, state.header.stamp.nanosec = divmod(stamp, NS)
            for message in client.trajectories:
                client.path.append(list(message.points[0].positions))
                client.position[:6] = message.points[0].positions
            client.trajectories.clear()
            client.states.publish(state)

        client.feed = broken
        client.diagnostics.clear()
        held = rig.until(lambda: any("states are stale" in text for text, _ in client.diagnostics))
        assert held, wrong
        client.feed = feed
        number += 1
        rig.follow(number, target=2.0 if number % 2 else 0.0)
    assert client.count("bad_joint_states") > 10
    rig.within_limits()


def test_a_flood_of_chunks_does_not_keep_it_from_commanding(rig):
    rig = rig("strategy:=rtc")
    rig.follow()
    client = rig.client
    number = [1]

    def flood():
        for _ in range(20):
            number[0] += 1
            client.send(number[0], 0.3 * (number[0] % 5))

    before = len(client.path)
    rig.until(lambda: False, 2.0, flood)
    assert number[0] > 100
    assert len(client.path) - before > 10
    rig.within_limits()


def test_of_two_policies_the_newer_is_followed(rig):
    rig = rig("strategy:=rtc")
    rig.follow(target=0.4)
    client = rig.client
    number = [1]

    def both():
        number[0] += 1
        if number[0] % 10 == 0:
            client.send(number[0], 0.4)
        elif number[0] % 10 == 5:
            client.send(number[0], -0.4, policy_id="newer")

    assert rig.until(lambda: client.path[-1][0] < -0.39, 60, both)
    start = len(client.path)
    assert rig.until(lambda: len(client.path) > start + 20, 60, both)
    assert max(row[0] for row in client.path[start:]) < -0.35
    assert client.count("refused.two_policies") > 3
    rig.within_limits()


def test_a_clock_that_jumps_back_while_moving(rig):
    rig = rig("use_sim_time:=true")
    client = rig.client
    client.sim_ns = 100 * NS
    rig.follow(5, target=2.0)
    assert rig.until(lambda: np.abs(np.diff(np.array(client.path)[-2:, 0])).max() > 0.03)
    client.sim_ns = 50 * NS
    assert rig.until(lambda: client.diagnostics[-1][0].startswith("holding"))
    assert rig.until(lambda: np.abs(np.diff(np.array(client.path)[-2:, 0])).max() < 1e-9)
    there = client.path[-1][0]
    number = [0]  # numbers may start again

    def send():
        number[0] += 1
        if number[0] % 20 == 1:
            client.send(number[0], there + 0.2)

    assert rig.until(lambda: client.path[-1][0] > there + 0.15, each=send), client.diagnostics[-1]
    rig.within_limits()
