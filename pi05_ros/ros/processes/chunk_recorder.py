"""Records what a policy node says into a bag. A process of its own that shares nothing with it.

    python -m pi05_ros.ros.processes.chunk_recorder --node /pi05_policy --out BAG --clock-map FILE

Events are JSON lines on stdout: `ready` (subscribed), `matched` (the node's publishers are
found). SIGINT or SIGTERM ends it and writes the bag, with the bag clock at arrival as log time
where a clock map exists, else the time of this machine.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.signals import SignalHandlerOptions

from pi05_ros.bags.bag import BagWriter
from pi05_ros.bags.cdr_messages import ACTION_CHUNK, DIAGNOSTICS, POLICY_STATUS
from pi05_ros.bags.clockmap import ClockMap
from pi05_ros.msg import ActionChunk, PolicyStatus


class Recorder(Node):
    """Keeps (topic, type, monotonic arrival, bytes) of chunks, status and diagnostics."""

    def __init__(self, target: str) -> None:
        super().__init__("pi05_chunk_recorder")
        self.records: list[tuple[str, str, int, bytes]] = []
        latched = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.topics = {
            f"{target}/action_chunk": ACTION_CHUNK,
            f"{target}/status": POLICY_STATUS,
            "/diagnostics": DIAGNOSTICS,
        }
        self._chunks = self._listen(ActionChunk, f"{target}/action_chunk", QoSProfile(depth=100))
        self._listen(PolicyStatus, f"{target}/status", latched)
        self._listen(DiagnosticArray, "/diagnostics", QoSProfile(depth=10))

    def _listen(self, kind: Any, topic: str, qos: QoSProfile) -> Any:
        return self.create_subscription(kind, topic, self._keeper(topic), qos, raw=True)

    def _keeper(self, topic: str) -> Callable[[bytes], None]:
        msgtype = self.topics[topic]

        def keep(raw: bytes) -> None:
            self.records.append((topic, msgtype, time.monotonic_ns(), bytes(raw)))

        return keep

    def matched(self) -> bool:
        """True once the node's chunk publisher is found."""
        return bool(self._chunks.get_publisher_count())

    def write(self, out: Path, clock_map: ClockMap) -> None:
        """Write the bag."""
        to_wall = time.time_ns() - time.monotonic_ns()
        with BagWriter(out) as bag:
            for topic, msgtype in self.topics.items():
                bag.add_topic(topic, msgtype)
            for topic, msgtype, mono_ns, raw in self.records:
                log_ns = clock_map.at(mono_ns) if clock_map else mono_ns + to_wall
                bag.write_raw(topic, msgtype, max(log_ns, 0), raw)


def main() -> int:
    """Run the recorder until a signal."""
    parser = argparse.ArgumentParser(prog="chunk_recorder", description=__doc__.splitlines()[0])
    parser.add_argument("--node", default="/pi05_policy", help="full name of the policy node")
    parser.add_argument("--out", type=Path, required=True, help="bag to write")
    parser.add_argument("--clock-map", type=Path, required=True, help="file the player writes")
    args = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    recorder = Recorder(args.node)
    executor = SingleThreadedExecutor()
    executor.add_node(recorder)
    print(json.dumps({"event": "ready"}), flush=True)
    known = False
    while not stop.is_set():
        executor.spin_once(timeout_sec=0.1)
        if not known and recorder.matched():
            known = True
            print(json.dumps({"event": "matched"}), flush=True)
    recorder.write(args.out, ClockMap.read(args.clock_map))
    print(json.dumps({"event": "written", "messages": len(recorder.records)}), flush=True)
    recorder.destroy_node()
    rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
