"""Trials of the episode recorder that take minutes: load, and kill -9 at random moments.

    python scripts/recorder_trials.py load --seconds 600 --jpeg 80
    python scripts/recorder_trials.py kill --times 50

`load` publishes two raw cameras of 640x480 at 30 Hz, joint states at 100 Hz and chunks at 10 Hz,
records them, and prints what came, what was lost, CPU time and memory. `kill` kills the recorder
again and again and fails if a bag cannot be read, is taken for whole, or lacks more than the last
second before the kill.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import rclpy
from pi05_ros.msg import RecorderStatus
from rclpy.qos import QoSProfile
from std_srvs.srv import SetBool

from pi05_ros.bags.bag import Bag
from pi05_ros.bags.cdr_messages import NS, encode, image_message, joint_state_message
from pi05_ros.ros import qos
from pi05_ros.ros.processes.children import ros_environment
from pi05_ros.ros.recorder.recorded_topics import message_class

ME = "/episode_recorder"
JOINTS = [f"joint{i}" for i in range(1, 8)]


def pictures(width: int, height: int) -> list[bytes]:
    """Eight frames with edges, gradients and some noise, as a camera has them."""
    rows, columns = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).integers(0, 8, (height, width, 3))
    found = []
    for step in range(8):
        plain = np.stack([rows // 3 + step * 9, columns // 3, (rows + columns) // 6], -1)
        plain[height // 3 : height // 2, width // 4 + step : width // 2] += 60
        found.append(encode(image_message(((plain + noise) % 256).astype(np.uint8), 0)))
    return found


def publish(args: argparse.Namespace) -> int:
    """Child process: the load, until a signal; prints how many of each it sent."""
    from pi05_ros.msg import ActionChunk

    rclpy.init()
    node = rclpy.create_node("recorder_load")
    frames = [bytearray(raw) for raw in pictures(args.width, args.height)]
    states = [bytearray(encode(joint_state_message(JOINTS, np.zeros(7), 0)))]
    chunk = ActionChunk(names=JOINTS, horizon=50, data=[0.0] * 350, policy_id="load")
    image, joints = (
        message_class("sensor_msgs/msg/Image"),
        message_class("sensor_msgs/msg/JointState"),
    )
    streams = [
        ("base_camera/image_raw", image, frames, 30.0),
        ("wrist_camera/image_raw", image, frames, 30.0),
        ("joint_states", joints, states, 100.0),
        ("pi05_policy/action_chunk", ActionChunk, [chunk], 10.0),
    ]
    publishers = [
        node.create_publisher(k, topic, QoSProfile(depth=10)) for topic, k, _, _ in streams
    ]
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
    while not all(publisher.get_subscription_count() for publisher in publishers):
        time.sleep(0.1)  # nothing is sent before the recorder hears it
    time.sleep(1.0)
    sent = [0] * len(streams)
    start_s = time.monotonic()
    while not stop:
        due = [start_s + n / stream[3] for n, stream in zip(sent, streams, strict=True)]
        which = int(np.argmin(due))
        time.sleep(max(0.0, due[which] - time.monotonic()))
        messages = streams[which][2]
        message = messages[sent[which] % len(messages)]
        if isinstance(message, bytearray):
            struct.pack_into("<iI", message, 4, *divmod(time.time_ns(), NS))
            publishers[which].publish(bytes(message))
        else:
            message.chunk_id = sent[which]
            publishers[which].publish(message)
        sent[which] += 1
    time.sleep(1.0)
    for (topic, _, _, _), count in zip(streams, sent, strict=True):
        print(f"/{topic} {count}", flush=True)
    return 0


class Trials:
    """A client of the recorder, and the processes."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder = args, folder
        self.environment, domain = ros_environment()
        if args.what == "kill":  # shared memory of Fast DDS does not outlive many killed processes
            transport = {"FASTDDS_BUILTIN_TRANSPORTS": "UDPv4"}
            os.environ.update(transport)
            self.environment |= transport
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.node = rclpy.create_node("recorder_trials", context=self.context)
        self.executor = rclpy.executors.SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.status: list[RecorderStatus] = []
        self.node.create_subscription(
            RecorderStatus, f"{ME}/status", lambda m: self.status.append(m), qos.LATCHED
        )
        self.record = self.node.create_client(SetBool, f"{ME}/record")

    def start_load(self) -> None:
        """Publish from when the recorder listens."""
        args = self.args
        size = [f"--width={args.width}", f"--height={args.height}"]
        self.load = subprocess.Popen(
            [sys.executable, __file__, "publish", *size], env=self.environment,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def start_recorder(self) -> subprocess.Popen[bytes]:
        """A recorder in a process of its own."""
        words = ["-p", f"folder:={self.folder}", "-p", "autostart:=true"]
        words += ["-p", f"jpeg_quality:={self.args.jpeg}", "-p", "ring_mb:=64"]
        return subprocess.Popen(
            [sys.executable, "-m", "pi05_ros.ros.recorder.recorder_node", "--ros-args", *words],
            env=self.environment,
        )

    def until(self, condition, seconds: float = 120.0) -> None:
        """Spin until the condition holds."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise SystemExit("the recorder does not do what was asked")
            self.executor.spin_once(timeout_sec=0.02)

    def ask(self, on: bool) -> str:
        """Ask until it is recording (or not); the bag."""
        wanted = RecorderStatus.STATE_RECORDING if on else RecorderStatus.STATE_READY
        future, asked_s = None, 0.0

        def there() -> bool:
            nonlocal future, asked_s
            if self.status and self.status[-1].state == wanted:
                return True
            if self.record.service_is_ready() and time.monotonic() - asked_s > 5.0:
                asked_s = time.monotonic()
                future = self.record.call_async(SetBool.Request(data=on))
            return False

        self.until(there)
        return self.status[-1].bag_path

    def end(self) -> dict[str, int]:
        """End the load; messages sent by topic."""
        self.load.send_signal(signal.SIGTERM)
        out, _ = self.load.communicate()
        return {line.split()[0]: int(line.split()[1]) for line in out.splitlines()}


def load(args: argparse.Namespace, folder: Path) -> int:
    """Record under load."""
    trials = Trials(args, folder)
    process = trials.start_recorder()
    bag_path = trials.ask(on=True)
    trials.start_load()
    watched = psutil.Process(process.pid)
    time.sleep(1.0)
    before = sum(watched.cpu_times()[:2])
    start_s, memory = time.monotonic(), []
    while time.monotonic() - start_s < args.seconds:
        trials.executor.spin_once(timeout_sec=0.2)
        if not memory or time.monotonic() - start_s > len(memory):
            memory.append(watched.memory_info().rss / 2**20)
    cpu = (sum(watched.cpu_times()[:2]) - before) / (time.monotonic() - start_s)
    sent = trials.end()
    trials.ask(on=False)
    status = trials.status[-1]
    process.send_signal(signal.SIGTERM)
    process.wait()
    with Bag(bag_path) as bag:
        print(
            f"whole {bag.whole} {bag.notes}, {bag.seconds:.0f} s, {status.bytes / 2**20:.0f} MiB"
        )
        print(
            f"CPU {100 * cpu:.0f} % of a core; RSS MiB first {memory[0]:.0f} "
            f"max {max(memory):.0f} last {memory[-1]:.0f}"
        )
        print(f"counted as lost: {status.lost} {bag.custom.get('pi05_lost')}")
        for topic, count in sent.items():
            names = [name for name in bag.topics if name.startswith(topic)]
            kept = sum(bag.topics[name].count for name in names)
            print(f"{topic}: sent {count}, in the bag {kept}")
    return 0


def kill(args: argparse.Namespace, folder: Path) -> int:
    """Kill the recorder at random moments."""
    trials = Trials(args, folder)
    trials.start_load()
    rng = random.Random(args.seed)
    gaps, bad = [], 0
    for trial in range(args.times):
        trials.status.clear()
        process = trials.start_recorder()
        bag_path = Path(trials.ask(on=True))
        trials.until(lambda: trials.status[-1].messages > 0)
        wait_s = 3.0 * rng.random()
        trials.until(lambda end=time.monotonic() + wait_s: time.monotonic() > end)
        process.send_signal(signal.SIGKILL)
        killed_ns = time.time_ns()
        process.wait()
        try:
            with Bag(bag_path) as bag:
                last_ns = max(message.log_ns for message in bag.messages())
                count, whole = sum(t.count for t in bag.topics.values()), bag.whole
        except Exception as error:
            bad += 1
            print(f"{trial}: {type(error).__name__}: {error}")
            continue
        gaps.append((killed_ns - last_ns) / NS)
        if whole or gaps[-1] > 1.0:
            bad += 1
        print(f"{trial}: {count} messages, whole {whole}, {gaps[-1]:.2f} s missing", flush=True)
        shutil.rmtree(bag_path)
    trials.end()
    print(
        f"{args.times} kills, {bad} bad; missing s median {np.median(gaps):.2f} "
        f"max {max(gaps):.2f}"
    )
    return 1 if bad else 0


def main() -> int:
    """Run one of them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("load", "kill", "publish"))
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--jpeg", type=int, default=0)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--folder", type=Path, help="for the bags; a temporary one without it")
    args = parser.parse_args()
    if args.what == "publish":
        return publish(args)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        return {"load": load, "kill": kill}[args.what](args, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
