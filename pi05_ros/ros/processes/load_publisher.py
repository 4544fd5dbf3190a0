"""Publishes cameras and joint states like a robot, for benchmarks. A process of its own.

    python -m pi05_ros.ros.processes.load_publisher --node /pi05_policy --seconds 30

Stamps are the wall clock at publication. Joint names come from the robot profile. Events are
JSON lines on stdout: `ready`, `done`, `error`; it starts when "go" arrives on stdin. Without
--node it brings nothing up, and plays until the next line on stdin.
"""

from __future__ import annotations

import argparse
import io
import math
import struct
import sys
import threading
import time
from collections.abc import Sequence

import numpy as np
from PIL import Image as PilImage
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CompressedImage, Image, JointState

from pi05_ros.bags.cdr_messages import (
    NS,
    compressed_image_message,
    encode,
    image_message,
    joint_state_message,
)
from pi05_ros.policy.robots.profile_yaml import load_profile
from pi05_ros.ros.processes.bring_up import (
    BringUpError,
    bring_up,
    report_finished,
    run_child,
    wait_for_start,
    wait_matched,
)
from pi05_ros.runtime.inputs.sources import JOINTS, camera_source

PICTURES = 8  # different images per camera, sent in turn
BLOCK = 8  # pixels
SWING = 100  # joint states, sent in turn


class Stream:
    """One topic sent at a fixed rate; the bytes are made before the run."""

    def __init__(
        self, name: str, publisher: Publisher, messages: list[bytes], hz: float, phase: float
    ) -> None:
        self.name = name
        self.publisher = publisher
        self.sent = 0
        self.late_ns: list[int] = []
        self._messages = [bytearray(message) for message in messages]
        self._period_ns = NS / hz
        self._phase_ns = phase * self._period_ns

    def due_ns(self, start_ns: int) -> int:
        """Monotonic time of the next message."""
        return start_ns + round(self._phase_ns + self.sent * self._period_ns)

    def send(self, late_ns: int) -> None:
        """Stamp and publish the next message."""
        raw = self._messages[self.sent % len(self._messages)]
        struct.pack_into("<iI", raw, 4, *divmod(time.time_ns(), NS))
        self.publisher.publish(bytes(raw))
        self.sent += 1
        self.late_ns.append(late_ns)


def make_streams(node: Node, args: argparse.Namespace) -> list[Stream]:
    """Streams of all cameras of the robot and its joints."""
    robot = load_profile(args.robot)
    random = np.random.default_rng(0)
    streams = []
    for index, role in enumerate(robot.camera_roles[: args.cameras]):
        name = camera_source(role)
        kind, topic = Image, f"{name}/image_raw"
        if args.jpeg:
            kind, topic = CompressedImage, f"{topic}/compressed"
        messages = [_image(random, args) for _ in range(PICTURES)]
        publisher = node.create_publisher(kind, topic, QoSProfile(depth=5))
        streams.append(Stream(name, publisher, messages, args.camera_hz, index / 3))
    names = list(robot.state_names)
    # A slow swing: joints that jump are taken for two publishers that disagree.
    swing = 0.25 + 0.1 * np.sin(2 * np.pi * np.arange(SWING) / SWING)
    messages = [
        encode(joint_state_message(names, np.full(len(names), value), 0)) for value in swing
    ]
    publisher = node.create_publisher(JointState, JOINTS, QoSProfile(depth=10))
    return [*streams, Stream(JOINTS, publisher, messages, args.joint_hz, 0.5)]


def _image(random: np.random.Generator, args: argparse.Namespace) -> bytes:
    """CDR bytes of one image: noise, or for JPEG blocks of color, which compress as scenes do."""
    shape = (args.height, args.width, 3)
    if not args.jpeg:
        return encode(image_message(random.integers(0, 256, shape, np.uint8), 0))
    coarse = random.integers(
        0, 256, (-(-args.height // BLOCK), -(-args.width // BLOCK), 3), np.uint8
    )
    pixels = coarse.repeat(BLOCK, 0).repeat(BLOCK, 1)[: args.height, : args.width]
    file = io.BytesIO()
    PilImage.fromarray(pixels).save(file, "JPEG", quality=90)
    return encode(compressed_image_message(file.getvalue(), 0, "jpeg"))


def main() -> int:
    """Run the publisher; exit code 1 after an `error` event."""
    parser = argparse.ArgumentParser(prog="load_publisher")
    parser.add_argument("--node", default="/pi05_policy")
    parser.add_argument("--robot", default="sim_arm")
    parser.add_argument("--cameras", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--camera-hz", type=float, default=30.0)
    parser.add_argument("--jpeg", action="store_true", help="compressed images")
    parser.add_argument("--joint-hz", type=float, default=100.0)
    parser.add_argument("--configure-timeout", type=float, default=600.0)
    args = parser.parse_args()

    def work(node: Node) -> int:
        streams = make_streams(node, args)

        def wait_for_go() -> None:
            wait_matched({stream.name: stream.publisher for stream in streams})
            if not wait_for_start():
                raise BringUpError("the parent process ended")

        if not args.node:
            wait_for_go()
            stop = threading.Event()
            threading.Thread(target=_set_at_next_line, args=(stop,), daemon=True).start()
            play(streams, math.inf, stop)
            late_ns = [late for stream in streams for late in stream.late_ns]
            report_finished(late_ns, sent={stream.name: stream.sent for stream in streams})
            return 0
        # Activated after "go", so that no tick comes before the load.
        bring_up(node, args.node, args.configure_timeout, wait_for_go)
        play(streams, args.seconds)
        late_ns = [late for stream in streams for late in stream.late_ns]
        report_finished(late_ns, sent={stream.name: stream.sent for stream in streams})
        return 0

    return run_child("pi05_load_publisher", work, ValueError)


def _set_at_next_line(stop: threading.Event) -> None:
    sys.stdin.readline()
    stop.set()


def play(streams: Sequence[Stream], seconds: float, stop: threading.Event | None = None) -> None:
    """Send every stream at its rate for so long, or until the event is set."""
    start_ns = time.monotonic_ns()
    end_ns = start_ns + seconds * NS
    while stop is None or not stop.is_set():
        stream = min(streams, key=lambda item: item.due_ns(start_ns))
        due_ns = stream.due_ns(start_ns)
        if due_ns >= end_ns:
            return
        wait_ns = due_ns - time.monotonic_ns()
        if wait_ns > 0:
            time.sleep(wait_ns / 1e9)
        stream.send(max(0, time.monotonic_ns() - due_ns))


if __name__ == "__main__":
    sys.exit(main())
