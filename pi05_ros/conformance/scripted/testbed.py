"""Nodes under test as processes, and the robot around them: cameras, joint states, prompts."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from PIL import Image as Picture
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.msg import ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String

from pi05_ros.conformance.heard import NS, NodeRecord
from pi05_ros.conformance.listener import DEEP, LATCHED, Listener
from pi05_ros.conformance.probing import WAIT_S
from pi05_ros.conformance.promises import Promise, PromiseFinding, Verdict
from pi05_ros.errors import Pi05Error

JOINTS = ("joint1", "joint2", "joint3", "joint4", "joint5", "joint6", "gripper")
START = (0.0, 0.5, 1.5, 0.0, 1.0, 0.0, 0.5)
"""A place of the simulated arm inside its limits."""
WIDTH, HEIGHT = 32, 24
STOP_S = 60.0
START_S = 180.0
"""A busy machine takes this long to import torch."""
POLICY_MODULE, EXECUTOR_MODULE = "pi05_ros.ros.policy_node", "pi05_ros.ros.executor_node"


class TestbedError(Pi05Error):
    """A node under test did not do what the rest of the script needs; not a finding."""


def picture() -> Image:
    """A raw picture."""
    message = Image(width=WIDTH, height=HEIGHT, encoding="rgb8", step=3 * WIDTH)
    message.data = bytes(range(256)) * (3 * WIDTH * HEIGHT // 256)
    return message


def jpeg() -> CompressedImage:
    """A compressed picture."""
    buffer = io.BytesIO()
    Picture.new("RGB", (WIDTH, HEIGHT), (200, 10, 10)).save(buffer, "JPEG")
    return CompressedImage(format="jpeg", data=buffer.getvalue())


def joint_state(positions: Sequence[float] = START, names: Sequence[str] = JOINTS) -> JointState:
    """Joint states without a stamp."""
    return JointState(name=list(names), position=[float(value) for value in positions])


def set_stamp(message: Any, time_ns: int) -> Any:
    """The message with this header stamp."""
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(max(0, time_ns), NS)
    return message


@dataclass
class Sources:
    """What the robot publishes; scripts change it to make faults.

    `offset_ns` is added to stamps, `fixed_ns` replaces them, `make` replaces messages, `second`
    publishes one more each time, and those in `silent` do not speak.
    """

    make: dict[str, Callable[[], Any]] = field(default_factory=dict)
    offset_ns: dict[str, int] = field(default_factory=dict)
    fixed_ns: dict[str, int] = field(default_factory=dict)
    second: dict[str, Callable[[], Any]] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)

    def heal(self) -> None:
        """No fault any more."""
        self.make.clear()
        self.second.clear()
        self.offset_ns.clear()
        self.fixed_ns.clear()
        self.silent.clear()


class Testbed:
    """Context manager of the processes under test in one namespace.

    Args:
        listener: spins everything.
        namespace: of the nodes, starts with a slash.

    """

    def __init__(self, listener: Listener, namespace: str) -> None:
        self.listener = listener
        self.namespace = namespace
        self.sources = Sources()
        self.simulated_ns = 0
        self.wait_s = WAIT_S
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._logs = Path(tempfile.mkdtemp(prefix="conformance-"))
        node = listener.node
        self._normal = {"base_camera": picture, "wrist_camera": jpeg, "joint_states": joint_state}
        self._out = {
            name: node.create_publisher(kind, f"{namespace}/{topic}", DEEP)
            for name, kind, topic in (
                ("base_camera", Image, "base_camera/image_raw"),
                ("wrist_camera", CompressedImage, "wrist_camera/image_raw/compressed"),
                ("joint_states", JointState, "joint_states"),
            )
        }
        self.prompt = node.create_publisher(String, f"{namespace}/prompt", LATCHED)
        self._clock: Any = None

    def __enter__(self) -> Testbed:
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._processes):
            self.end(name, signal.SIGKILL)
        publishers = [*self._out.values(), self.prompt, *([self._clock] if self._clock else [])]
        for publisher in publishers:
            self.listener.node.destroy_publisher(publisher)

    def start(self, name: str, module: str, parameters: Mapping[str, Any]) -> str:
        """Start a node; returns its fully qualified name."""
        words = [f"__ns:={self.namespace}", f"__node:={name}"]
        arguments = [item for word in words for item in ("-r", word)]
        for key, value in parameters.items():
            text = str(value).lower() if isinstance(value, bool) else str(value)
            arguments += ["-p", f"{key}:={text}"]
        with (self._logs / f"{name}.log").open("wb") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", *module.split(), "--ros-args", *arguments],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        return f"{self.namespace}/{name}"

    def end(self, name: str, number: int = signal.SIGTERM) -> tuple[int, float]:
        """Signal a node and wait; its exit code and how long it took."""
        process = self._processes.pop(name)
        began = time.monotonic()
        if process.poll() is None:
            process.send_signal(number)
        self.listener.spin(STOP_S, lambda: process.poll() is not None)
        took = time.monotonic() - began
        if process.poll() is None:
            process.kill()
        return process.wait(), took

    def tail(self, name: str) -> str:
        """End of a node's log."""
        text = (self._logs / f"{name}.log").read_text(errors="replace")
        return "\n".join(text.splitlines()[-10:])

    def now_ns(self) -> int:
        """Time for stamps: simulated time if there is one."""
        if self.simulated_ns:
            return self.simulated_ns
        return int(self.listener.node.get_clock().now().nanoseconds)

    def feed(self) -> None:
        """One message of each source."""
        sources, now_ns = self.sources, self.now_ns()
        for name, publisher in self._out.items():
            if name not in sources.silent:
                message = sources.make.get(name, self._normal[name])()
                at = sources.fixed_ns.get(name, now_ns + sources.offset_ns.get(name, 0))
                publisher.publish(set_stamp(message, at))
                if name in sources.second:
                    publisher.publish(set_stamp(sources.second[name](), at + NS // 1000))

    def publish(self, source: str, message: Any) -> None:
        """One message more on the topic of a source."""
        self._out[source].publish(message)

    def publish_clock(self) -> None:
        """Tell simulated time."""
        if self._clock is None:
            self._clock = self.listener.node.create_publisher(Clock, "/clock", DEEP)
        message = Clock()
        message.clock.sec, message.clock.nanosec = divmod(self.simulated_ns, NS)
        self._clock.publish(message)

    def until(
        self,
        condition: Callable[[], bool],
        seconds: float | None = None,
        each: Callable[[], None] | None = None,
        every_s: float = 0.03,
    ) -> bool:
        """Feed until it is so, or for a time (`wait_s`)."""
        limit_s = self.wait_s if seconds is None else seconds
        return self.listener.spin(limit_s, condition, each or self.feed, every_s)

    def run(self, seconds: float, each: Callable[[], None] | None = None) -> None:
        """Feed for a time."""
        self.until(lambda: False, seconds, each)

    def change_state(self, node: str, transition: int) -> bool | None:
        """Ask for a transition; None without an answer."""
        request = ChangeState.Request(transition=Transition(id=transition))
        answer = self.listener.ask(ChangeState, f"{node}/change_state", request, START_S)
        return None if answer is None else bool(answer.success)

    def set_parameter(self, node: str, name: str, value: float | str | bool) -> tuple[bool, str]:
        """Set a parameter of a node: whether it was taken, and the reason if not."""
        kinds: dict[type, tuple[int, str]] = {
            bool: (ParameterType.PARAMETER_BOOL, "bool_value"),
            int: (ParameterType.PARAMETER_INTEGER, "integer_value"),
            float: (ParameterType.PARAMETER_DOUBLE, "double_value"),
            str: (ParameterType.PARAMETER_STRING, "string_value"),
        }
        kind, attribute = kinds[type(value)]
        item = ParameterValue(type=kind, **{attribute: value})
        request = SetParameters.Request(parameters=[ParameterMessage(name=name, value=item)])
        answer = self.listener.ask(SetParameters, f"{node}/set_parameters", request, WAIT_S)
        if answer is None:
            raise TestbedError(f"{node} does not answer set_parameters")
        return bool(answer.results[0].successful), str(answer.results[0].reason)


class Script:
    """What all scripts have: the stage, a node under test, and findings about it.

    Args:
        stage: of the process.
        name: of the node's process.
        record: of what is heard from the node.

    """

    def __init__(self, stage: Testbed, name: str, record: NodeRecord) -> None:
        self.stage = stage
        self._name = name
        self._record = record
        self.findings: list[PromiseFinding] = []

    @property
    def node(self) -> str:
        """Fully qualified name."""
        return self._record.node

    def note(self, promise: Promise, verdict: Verdict) -> None:
        """Add a finding."""
        self.findings.append(PromiseFinding(self.node, promise, verdict))
