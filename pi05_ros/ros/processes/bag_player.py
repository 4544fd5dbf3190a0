"""Plays a bag into a policy node over DDS, with /clock, in real time. A process of its own.

    python -m pi05_ros.ros.processes.bag_player PLAN.json

The messages go out as the bytes that were recorded. Events are JSON lines on stdout: `ready`
(the node is active and all subscriptions are matched), `done`, `error`. Playing starts when
"go" arrives on stdin.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String

from pi05_ros.bags.bag import Bag, BagError
from pi05_ros.bags.cdr_messages import NS
from pi05_ros.bags.clockmap import ClockMap
from pi05_ros.bags.play_plan import PlayPlan
from pi05_ros.bags.timeline import TimedMessage, read_timeline
from pi05_ros.bags.topics import PROMPT
from pi05_ros.ros.processes.bring_up import (
    BringUpError,
    bring_up,
    report_finished,
    run_child,
    wait_for_start,
    wait_matched,
)

TYPES = {
    "sensor_msgs/msg/Image": Image,
    "sensor_msgs/msg/CompressedImage": CompressedImage,
    "sensor_msgs/msg/JointState": JointState,
    "std_msgs/msg/String": String,
}
CLOCK_PERIOD_NS = 10_000_000  # /clock is never older than this while playing
CLOCK_STEP_NS = 2_000_000  # and a message's clock value is published before it, if not this new
START_DELAY_NS = NS // 5  # the reader fills its queue meanwhile
AHEAD = 32  # messages read ahead: the disk and the decompressor must not delay a message
CLOCK_WARM_UP = 5  # times that the first clock value is shown before the node is activated


class Player:
    """Publishers for the sources of a plan."""

    def __init__(self, node: Node, plan: PlayPlan) -> None:
        self._node = node
        self._plan = plan
        self._clock = node.create_publisher(Clock, "/clock", 10)
        self._publishers: dict[str, Publisher] = {}
        for source in plan.sources:
            qos = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
            if source.name == PROMPT:
                qos = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
            self._publishers[source.name] = node.create_publisher(
                TYPES[source.msgtype], source.node_topic, qos
            )
        self.clock_map = ClockMap(plan.speed)
        self.sent: dict[str, int] = dict.fromkeys(self._publishers, 0)
        self.late_ns: list[int] = []
        self.clock_ns = 0  # bag time played, jumps left out

    def bring_up(self) -> None:
        """Configure and activate the node; raises BringUpError."""
        plan = self._plan
        bring_up(self._node, plan.bring_up, plan.configure_timeout_s, self._set_clock)

    def _set_clock(self) -> None:
        """Show the first clock value, so that the node's timers start from it."""
        sources = {source.name: source for source in self._plan.sources}
        with Bag(self._plan.bag) as bag:
            first = next(read_timeline(bag, sources, self._plan.base), None)
        if first is None:
            raise BringUpError("the chosen topics hold no messages")
        self.wait_matched()
        for _ in range(CLOCK_WARM_UP):
            self._show(first.clock_ns)
            time.sleep(0.02)

    def wait_matched(self) -> None:
        """Wait until somebody listens to every source; raises BringUpError."""
        wait_matched({"/clock": self._clock, **self._publishers})

    def play(self) -> None:
        """Publish the whole bag, keeping the recorded distances in time."""
        for _ in range(self._plan.loops):
            self._play_once()
        self.clock_map.write(Path(self._plan.clock_map))

    def _play_once(self) -> None:
        messages = _read_ahead(self._plan)
        speed = self._plan.speed
        start_ns = mono_ns = shown_ns = last_shown_ns = 0
        for message in messages:
            if not start_ns:
                start_ns = mono_ns = time.monotonic_ns() + START_DELAY_NS
                before_ns = shown_ns = message.clock_ns
            due_ns = start_ns + round(message.offset_ns / speed)
            while due_ns - mono_ns > CLOCK_PERIOD_NS:  # nothing recorded here: the clock runs on
                mono_ns += CLOCK_PERIOD_NS
                shown_ns = min(shown_ns + round(CLOCK_PERIOD_NS * speed), message.clock_ns)
                _sleep_until(mono_ns)
                self._show(shown_ns)
                last_shown_ns = shown_ns
            _sleep_until(due_ns)
            self.clock_map.add(due_ns, message.clock_ns)
            mono_ns, shown_ns = due_ns, message.clock_ns
            if not last_shown_ns <= shown_ns < last_shown_ns + CLOCK_STEP_NS:
                self._show(shown_ns)
                last_shown_ns = shown_ns
            self.clock_ns += max(0, shown_ns - before_ns)
            before_ns = shown_ns
            self.late_ns.append(time.monotonic_ns() - due_ns)
            self._publishers[message.source].publish(message.raw)
            self.sent[message.source] += 1

    def _show(self, clock_ns: int) -> None:
        message = Clock()
        message.clock.sec, message.clock.nanosec = divmod(clock_ns, NS)
        self._clock.publish(message)


def _sleep_until(mono_ns: int) -> None:
    wait = mono_ns - time.monotonic_ns()
    if wait > 0:
        time.sleep(wait / 1e9)


def _read_ahead(plan: PlayPlan) -> Iterator[TimedMessage]:
    """Timeline of the plan, read by a thread a little ahead of its use."""
    waiting: queue.Queue[TimedMessage | Exception | None] = queue.Queue(AHEAD)
    sources = {source.name: source for source in plan.sources}

    def read() -> None:
        try:
            with Bag(plan.bag) as bag:
                for message in read_timeline(bag, sources, plan.base):
                    waiting.put(message)
            waiting.put(None)
        except Exception as error:  # raised where somebody waits for the message
            waiting.put(error)

    threading.Thread(target=read, daemon=True).start()
    while True:
        item = waiting.get()
        if item is None:
            return
        if isinstance(item, Exception):
            raise item
        yield item


def main() -> int:
    """Run the player; exit code 1 after an `error` event."""
    plan = PlayPlan.read(Path(sys.argv[1]))

    def work(node: Node) -> int:
        player = Player(node, plan)
        if plan.bring_up:
            player.bring_up()
        player.wait_matched()
        if not wait_for_start():
            return 0
        player.play()
        report_finished(player.late_ns, sent=player.sent, clock_s=player.clock_ns / NS)
        return 0

    return run_child("pi05_bag_player", work, BagError)


if __name__ == "__main__":
    sys.exit(main())
