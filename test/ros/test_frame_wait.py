"""The wait for camera frames: bells that the middleware rings, and when cameras are looked at."""

import os
import threading
import time
from types import SimpleNamespace

import pytest
import rclpy
from rclpy.context import Context
from rclpy.qos import QoSProfile
from std_msgs.msg import String

from pi05_ros.ros.policy_parts.frame_bell import FrameBell, rings
from pi05_ros.ros.policy_parts.frame_wait import EARLY_NS, FrameWait
from pi05_ros.ros.policy_parts.image_take import rclpy_take

PATIENCE_NS = 60 * 10**9
MS = 10**6


@pytest.fixture
def node():
    context = Context()
    rclpy.init(context=context)
    made = rclpy.create_node("listening", namespace="frame_bell", context=context)
    yield made
    made.destroy_node()
    rclpy.shutdown(context=context)


def test_a_bell_rings_for_each_message_until_it_is_silenced(node):
    publisher = node.create_publisher(String, "words", 1)
    subscription = node.create_subscription(String, "words", print, QoSProfile(depth=1))
    end = time.monotonic_ns() + PATIENCE_NS
    while not publisher.get_subscription_count():
        assert time.monotonic_ns() < end
        time.sleep(0.01)
    bell = FrameBell(subscription)
    assert not rings([bell])
    for word in ("one", "two", "three"):
        publisher.publish(String(data=word))
        assert rings([bell], PATIENCE_NS)
        assert rings([bell])
        bell.silence()
        bell.silence()
        assert not rings([bell])
    taken = rclpy_take(subscription)  # the newest, though nobody took what rang before
    assert taken.message.data == "three"
    assert rclpy_take(subscription) is None
    publisher.publish(String(data="four"))
    assert rings([bell], PATIENCE_NS)  # also after a take
    descriptor = bell.fileno()
    bell.close()
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(descriptor)
    publisher.publish(String(data="five"))
    while (taken := rclpy_take(subscription)) is None or taken.message.data != "five":
        assert time.monotonic_ns() < end
    assert taken.message.data == "five"


def test_a_message_that_waits_rings_a_new_bell_and_a_destroyed_subscription_closes(node):
    publisher = node.create_publisher(String, "others", 1)
    subscription = node.create_subscription(String, "others", print, QoSProfile(depth=1))
    first = FrameBell(subscription)
    end = time.monotonic_ns() + PATIENCE_NS
    while not publisher.get_subscription_count():
        assert time.monotonic_ns() < end
        time.sleep(0.01)
    publisher.publish(String(data="there"))
    assert rings([first], PATIENCE_NS)
    first.close()
    node.destroy_subscription(subscription)
    again = node.create_subscription(String, "others", print, QoSProfile(depth=1))
    bell = FrameBell(again)
    node.destroy_subscription(again)
    bell.close()


class Bell:
    """A bell that the test rings."""

    def __init__(self):
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK)

    def fileno(self):
        return self.descriptor

    def ring(self):
        os.eventfd_write(self.descriptor, 1)

    def silence(self):
        if rings([self]):
            os.eventfd_read(self.descriptor)


class Cameras:
    """Readers of cameras whose next frames are expected at given times."""

    def __init__(self, **expected_ns):
        self.taken = []
        self.arrived = dict.fromkeys(expected_ns, 0)  # newest taken sample
        self.waiting = dict(self.arrived)  # newest sample in the middleware
        self.readers = {
            name: SimpleNamespace(
                frames=SimpleNamespace(next_after=lambda since, now, at=at: at, margin_ns=0),
                bell=Bell(),
            )
            for name, at in expected_ns.items()
        }
        self.wait = FrameWait(
            lambda: self.readers, lambda name, since: self.arrived[name] >= since, self.take
        )

    def take(self, names):
        for name in names:
            self.taken.append(name)
            bell = self.readers[name].bell
            if bell is not None:
                bell.silence()
            self.arrived[name] = self.waiting[name]

    def deliver(self, name):
        self.waiting[name] = time.monotonic_ns()
        if self.readers[name].bell is not None:
            self.readers[name].bell.ring()


def test_a_frame_that_is_expected_now_is_taken_when_it_rings():
    now = time.monotonic_ns()
    cameras = Cameras(base=now)
    cameras.readers["base"].frames.margin_ns = PATIENCE_NS // 2  # how late it may be
    threading.Timer(0.05, cameras.deliver, ("base",)).start()
    assert cameras.wait.take_since(now, now + PATIENCE_NS) is None
    assert cameras.taken == ["base"]


def test_a_frame_of_before_the_tick_is_not_taken_while_the_next_is_to_come():
    cameras = Cameras(base=time.monotonic_ns() + 500 * MS)
    cameras.deliver("base")
    since = time.monotonic_ns()
    again = cameras.wait.take_since(since, since + PATIENCE_NS)
    assert cameras.taken == []
    assert again == cameras.readers["base"].frames.next_after(0, 0) - EARLY_NS
    cameras.deliver("base")  # sooner than expected
    assert cameras.wait.take_since(since, since + PATIENCE_NS) is None
    assert cameras.taken == ["base"]


def test_a_frame_that_comes_after_the_wait_is_not_waited_for():
    now = time.monotonic_ns()
    cameras = Cameras(base=now + PATIENCE_NS)
    assert cameras.wait.take_since(now, now + PATIENCE_NS // 2) is None
    assert cameras.taken  # the one before it is used
    over = now + PATIENCE_NS // 2
    cameras = Cameras(base=over + EARLY_NS // 2, wrist=over + EARLY_NS // 4)
    assert cameras.wait.take_since(now, over) is None  # nor until it would be listened for
    assert cameras.taken == ["base", "wrist"]


def test_without_bells_a_camera_is_looked_at_when_its_frame_should_be_there():
    now = time.monotonic_ns()
    cameras = Cameras(base=now + PATIENCE_NS // 2, wrist=now)
    for reader in cameras.readers.values():
        reader.bell = None
    cameras.deliver("wrist")
    assert cameras.wait.take_since(now, now + PATIENCE_NS) == now + PATIENCE_NS // 2
    assert cameras.taken == ["wrist"]


def test_nothing_is_waited_for_after_the_wait():
    now = time.monotonic_ns()
    cameras = Cameras(base=now)
    assert cameras.wait.take_since(now, now) is None
    assert cameras.taken == []
