"""Real rclpy for the node tests: a client node, and a small policy for faults."""

import array
import gc
import io
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image as PilImage

sys.path.insert(0, str(Path(__file__).parent))  # for modules that tests share

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.srv import ChangeState, GetState
from pi05_ros.msg import ActionChunk as ActionChunkMsg
from pi05_ros.msg import PolicyStatus
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import (
    DurabilityPolicy,
    QoSProfile,
    ReliabilityPolicy,
    qos_profile_sensor_data,
)
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String

from pi05_ros.backends.engine import Precision
from pi05_ros.policy.interface import (
    ActionChunk,
    ActionMeaning,
    ActionUnit,
    StageTimings,
)
from pi05_ros.ros.policy_node import PolicyNode
from pi05_ros.ros.policy_parts import policy_host

PATIENCE_S = 60.0
"""Only what is broken takes as long as this, also on a machine that does other things."""
JOINT_NAMES = ("joint1", "joint2", "gripper")


@pytest.fixture(autouse=True, scope="session")
def no_full_collections():
    """A node that has loaded has its whole process looked through: here, what all tests hold."""
    with pytest.MonkeyPatch.context() as patch:
        quick = SimpleNamespace(collect=lambda: 0, freeze=gc.freeze, unfreeze=gc.unfreeze)
        patch.setattr(policy_host, "gc", quick)
        yield


class ScriptedPolicy:
    """Answers with the state repeated; `behave` is called inside each inference.

    `behave_early` is called in its first half.
    """

    def __init__(self, parameters, behave=None, roles=("base", "wrist"), load=None, early=None):
        if load is not None:
            load(parameters)
        self.behave = behave
        self.behave_early = early
        self.observations = []
        self.warm_ups = 0
        self.closed = False
        self.robot = SimpleNamespace(
            name="scripted", camera_roles=roles, required_roles=("base",), state_names=JOINT_NAMES,
            default_prompt="default",
        )  # fmt: skip
        self.info = SimpleNamespace(
            checkpoint=parameters.checkpoint, checkpoint_hash="random:scripted:0",
            random_weights=True, robot="scripted", backend="eager", backend_reason="",
            device="cpu", precision=Precision("fp32", "fp32", "fp32"), denoise_steps=10,
            horizon=4, step_s=0.05, assumptions=("the rate is assumed",), doubts=(),
        )  # fmt: skip

    def warm_up(self):
        self.warm_ups += 1

    def infer(self, obs, *, seed=None, denoise_steps=None):
        return self.denoise(self.prefill(obs, seed=seed, denoise_steps=denoise_steps))

    def prefill(self, obs, *, seed=None, denoise_steps=None):
        self.observations.append(obs)
        number = len(self.observations)
        if self.behave_early is not None:
            self.behave_early(number)
        return number, obs, seed, denoise_steps

    def denoise(self, prefilled):
        number, obs, seed, denoise_steps = prefilled
        actions = np.tile(obs.state.astype(np.float32), (4, 1))
        if self.behave is not None:
            changed = self.behave(number, actions)
            actions = actions if changed is None else changed
        return ActionChunk(
            actions=actions, normalized=np.zeros((4, 32), np.float32), names=JOINT_NAMES,
            meanings=(ActionMeaning.ABSOLUTE,) * 3, units=(ActionUnit.RADIAN,) * 3, dt=0.05,
            prompt=obs.prompt or "default", seed=seed, denoise_steps=denoise_steps or 10,
            timings=StageTimings(model_ms=1.0),
        )  # fmt: skip

    def close(self):
        self.closed = True


def picture(width=32, height=24, encoding="rgb8", padding=0, value=100):
    depth = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1}.get(encoding, 3)
    message = Image(width=width, height=height, encoding=encoding, step=width * depth + padding)
    message.data = array.array("B", bytes([value]) * (message.step * height))
    return message


def jpeg(width=32, height=24, kind="JPEG"):
    buffer = io.BytesIO()
    PilImage.new("RGB", (width, height), (200, 10, 10)).save(buffer, kind)
    return CompressedImage(format=kind.lower(), data=array.array("B", buffer.getvalue()))


def joints(names=JOINT_NAMES, positions=None):
    values = [0.1 * (i + 1) for i in range(len(names))] if positions is None else positions
    return JointState(name=list(names), position=list(values))


@dataclass
class Client:
    """An independent node: feeds topics, hears chunks, status and diagnostics, calls services."""

    node: object
    target: str
    executor: object
    chunks: list = field(default_factory=list)
    statuses: list = field(default_factory=list)
    diagnostics: list = field(default_factory=list)

    def __post_init__(self):
        latched = QoSProfile(
            depth=1,
            reliability=ReliabilityPolicy.RELIABLE,
            durability=DurabilityPolicy.TRANSIENT_LOCAL,
        )
        namespace = self.target.rsplit("/", 1)[0]
        self.namespace = namespace
        subscribe = self.node.create_subscription
        subscribe(ActionChunkMsg, f"{self.target}/action_chunk", self.chunks.append, 10)
        subscribe(PolicyStatus, f"{self.target}/status", self.statuses.append, latched)
        subscribe(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self.prompt = self.node.create_publisher(String, f"{namespace}/prompt", latched)
        self.publishers = {}
        self.services = {}
        self.stamp_offset_s = {}

    def _on_diagnostics(self, message):
        self.diagnostics += [s for s in message.status if s.name.startswith(self.target + ":")]

    def publisher(self, kind, topic):
        if topic not in self.publishers:
            self.publishers[topic] = self.node.create_publisher(
                kind, f"{self.namespace}/{topic}", qos_profile_sensor_data
            )
        return self.publishers[topic]

    def send(self, topic, message, stamp_ns=None):
        """Publish with the given stamp, by default the client's clock now (plus an offset)."""
        if stamp_ns is None:
            offset = int(self.stamp_offset_s.get(topic, 0.0) * 1e9)
            stamp_ns = self.node.get_clock().now().nanoseconds + offset
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, 10**9)
        self.publisher(type(message), topic).publish(message)

    def call(self, kind, name, request, timeout_s=PATIENCE_S):
        """Call a service of the node; clients are kept, discovery is waited for both ways."""
        if name not in self.services:
            self.services[name] = self.node.create_client(kind, f"{self.target}/{name}")
            assert self.services[name].wait_for_service(PATIENCE_S), f"no service {name}"
            self._shake_hands()
        future = self.services[name].call_async(request)
        assert self.until(future.done, timeout_s), f"no answer from {name}"
        return future.result()

    def _shake_hands(self):
        """A server may not know a client yet that knows the server; ask until it answers."""
        client = self.node.create_client(GetState, f"{self.target}/get_state")
        try:
            end = time.monotonic() + PATIENCE_S
            while time.monotonic() < end:
                future = client.call_async(GetState.Request())
                if self.until(future.done, 1.0):
                    return
            raise AssertionError("the node does not answer get_state")
        finally:
            self.node.destroy_client(client)

    def change_state(self, transition, timeout_s=PATIENCE_S):
        request = ChangeState.Request()
        request.transition.id = transition
        return self.call(ChangeState, "change_state", request, timeout_s).success

    def state(self):
        return self.call(GetState, "get_state", GetState.Request()).current_state.label

    def until(self, condition, timeout_s=PATIENCE_S, feed=None, period_s=0.01):
        """Spin until the condition holds; `feed` is called every period meanwhile."""
        end = time.monotonic() + timeout_s
        next_feed = 0.0
        while time.monotonic() < end:
            if condition():
                return True
            if feed is not None and time.monotonic() >= next_feed:
                next_feed = time.monotonic() + period_s
                feed()
            self.executor.spin_once(timeout_sec=0.005)
        return bool(condition())

    def value(self, entry, key):
        """Newest value of a key in the diagnostics entry, or None."""
        for status in reversed(self.diagnostics):
            if status.name.endswith(entry):
                return next((pair.value for pair in status.values if pair.key == key), None)
        return None

    def latest(self, entry):
        return next((s for s in reversed(self.diagnostics) if s.name.endswith(entry)), None)


@pytest.fixture(scope="session")
def ros():
    rclpy.init()
    yield
    rclpy.try_shutdown()


@dataclass
class Bench:
    """The node under test on an executor of its own thread, and a client on another."""

    node: PolicyNode
    client: Client
    policies: list
    pause: object = None  # stops the node's executor

    @property
    def policy(self):
        return self.policies[-1]

    def feed(self, **changes):
        """One sample of every source; keyword `base`, `wrist` or `joints` replaces a message."""
        messages = {
            "base_camera/image_raw": changes.get("base", picture()),
            "wrist_camera/image_raw": changes.get("wrist", picture()),
            "joint_states": changes.get("joints", joints()),
        }
        for topic, message in messages.items():
            if message is not None:
                self.client.send(topic, message)

    def activate(self):
        assert self.client.change_state(1)
        assert self.client.change_state(3)

    def chunks(self, count, timeout_s=PATIENCE_S, feed=None):
        """Feed until so many new chunks have come; returns them."""
        start = len(self.client.chunks)
        done = self.client.until(
            lambda: len(self.client.chunks) >= start + count, timeout_s, feed or self.feed
        )
        assert done, f"{len(self.client.chunks) - start} of {count} chunks came"
        return self.client.chunks[start:]


@pytest.fixture
def bench(ros):
    """Factory of a node with a scripted policy (or the real one) and its client."""
    made = []

    def make(parameters=None, *, factory=None, behave=None, roles=("base", "wrist"), load=None,
             early=None, namespace="", **kwargs):  # fmt: skip
        policies = []

        def scripted(values):
            policies.append(ScriptedPolicy(values, behave, roles, load, early))
            return policies[-1]

        values = {"checkpoint": "random:scripted", "rate_hz": 20.0, **(parameters or {})}
        node = PolicyNode(
            namespace=namespace,
            parameter_overrides=[Parameter(name, value=value) for name, value in values.items()],
            policy_factory=factory or scripted,
            **kwargs,
        )
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        stop = threading.Event()

        def spin():
            while not stop.is_set():
                executor.spin_once(timeout_sec=0.05)

        thread = threading.Thread(target=spin)
        thread.start()
        client_node = rclpy.create_node(f"client_{len(made)}")
        client_executor = SingleThreadedExecutor()
        client_executor.add_node(client_node)
        client = Client(client_node, node.get_fully_qualified_name(), client_executor)
        made.append((node, executor, stop, thread, client_node, client_executor))

        def pause():
            stop.set()
            thread.join()

        return Bench(node, client, policies, pause)

    yield make
    for node, executor, stop, thread, client_node, client_executor in made:
        stop.set()
        thread.join()
        node.end()
        executor.shutdown()
        node.destroy_node()
        client_executor.shutdown()
        client_node.destroy_node()


@pytest.fixture
def lone_client(ros):
    """Client of a node that runs in a process of its own."""
    made = []

    def make(target):
        node = rclpy.create_node("lone_client")
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        made.append((node, executor))
        return Client(node, target, executor)

    yield make
    for node, executor in made:
        executor.shutdown()
        node.destroy_node()


@pytest.fixture
def messages():
    """Builders of input messages."""
    return SimpleNamespace(picture=picture, jpeg=jpeg, joints=joints, names=JOINT_NAMES)
