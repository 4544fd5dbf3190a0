"""What the node says about itself: logs on /rosout, reasons with their age, texts of any kind."""

import logging
import threading
import time

import pytest
import rclpy
from lifecycle_msgs.srv import ChangeState, GetState
from node_client import counted, set_parameter
from rcl_interfaces.msg import Log
from rclpy.logging import LoggingSeverity
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image
from std_msgs.msg import String

from pi05_ros.ros import process
from pi05_ros.ros.library_logs import LibraryLogs
from pi05_ros.ros.policy_parts import subscriptions
from pi05_ros.runtime.inputs.clock_watch import ClockWatch
from pi05_ros.runtime.refusal import is_plain_reason, reason
from pi05_ros.runtime.text import first_line, printable

BAD_TEXT = "caf\udce9 \ud800 \0 end"


@pytest.fixture
def rosout(ros):
    """Listener of /rosout: collects (level, text).

    rcl has one publisher of /rosout for a name of a node, and takes it away when any node of that
    name goes, also one of an earlier test that is collected late. So these nodes have names of
    their own.
    """
    made = []

    def listen(client):
        lines = []
        subscription = client.node.create_subscription(
            Log, "/rosout", lambda m: lines.append((m.level, m.msg)), 100
        )
        made.append((client.node, subscription))
        client.until(lambda: client.node.count_publishers("/rosout") > 0)
        return lines

    yield listen
    for node, subscription in made:
        node.destroy_subscription(subscription)


def heard(client, lines, level, words):
    return client.until(lambda: any(at == level and words in text for at, text in lines))


def test_library_logs_reach_rosout_with_their_level(bench, rosout):
    b = bench(namespace="/library_logs")  # /rosout knows one publisher a name, see `rosout`
    lines = rosout(b.client)
    log = logging.getLogger("pi05_ros.backends.anything")
    assert b.client.until(lambda: b.node.count_subscribers("/rosout") > 0)

    def say():
        log.warning("weights of %s look odd", "layer 3")
        log.error("that broke: %s", BAD_TEXT)
        log.debug("not shown at this level")

    end = time.monotonic() + 10
    while time.monotonic() < end and len(lines) < 2:
        say()  # again and again: discovery of /rosout takes a while
        b.client.until(lambda: len(lines) >= 2, 0.3)
    assert heard(b.client, lines, LoggingSeverity.WARN.value, "weights of layer 3 look odd")
    assert heard(b.client, lines, LoggingSeverity.ERROR.value, "that broke: caf")
    assert not any("not shown" in text for _, text in lines)
    b.node.end()
    assert not [h for h in logging.getLogger("pi05_ros").handlers if h is b.node._library_logs]


def test_other_nodes_carry_library_logs_as_well_and_only_once(ros, capfd):
    node = rclpy.create_node("another_node")
    first, second = process.TolerantExecutor(node), process.TolerantExecutor(node)
    logging.getLogger("pi05_ros.anything").warning("once for this node")
    assert capfd.readouterr().err.count("[another_node]: once for this node") == 1
    second.shutdown()
    first.shutdown()
    assert not [h for h in logging.getLogger("pi05_ros").handlers if isinstance(h, LibraryLogs)]
    node.destroy_node()


def test_at_debug_level_every_tick_says_what_it_decided(bench, rosout):
    b = bench(namespace="/every_tick")
    b.node.get_logger().set_level(LoggingSeverity.DEBUG)
    lines = rosout(b.client)
    b.activate()
    level = LoggingSeverity.DEBUG.value
    assert heard(b.client, lines, level, "tick: no inference, base_camera: no message yet")
    b.chunks(1)
    assert b.client.until(lambda: any("tick: inference with seed" in t for _, t in lines))
    b.node.get_logger().set_level(LoggingSeverity.INFO)


def test_state_and_diagnostics_answer_while_the_policy_loads(bench):
    release, loading = threading.Event(), threading.Event()

    def load(parameters):
        loading.set()
        release.wait(30)

    b = bench(load=load)
    b.client.state()  # discovery
    change = b.client.node.create_client(ChangeState, f"{b.client.target}/change_state")
    assert change.wait_for_service(20)
    wanted = ChangeState.Request()
    wanted.transition.id = 1
    future = change.call_async(wanted)
    assert b.client.until(loading.is_set)
    try:
        b.client.diagnostics.clear()
        answer = b.client.services["get_state"].call_async(GetState.Request())
        assert b.client.until(answer.done)
        assert answer.result().current_state.label == "configuring"
        assert b.client.until(lambda: len(b.client.diagnostics) >= 4)
    finally:
        release.set()
    assert b.client.until(future.done)
    assert future.result().success


def test_assumptions_and_doubts_are_in_status_and_diagnostics(bench):
    b = bench()
    doubt = "the statistics exceed the joint limits"
    assert b.client.change_state(1)
    b.policy.info.doubts = (doubt,)
    assert b.client.change_state(3)
    assert b.client.until(lambda: b.client.statuses[-1].doubts == [doubt])
    assert b.client.statuses[-1].assumptions == ["the rate is assumed"]
    assert b.client.until(
        lambda: (
            b.client.latest("inference") is not None
            and doubt in b.client.latest("inference").message
        ),
        feed=b.feed,
    )
    assert b.client.value("inference", "assumption.1") == "the rate is assumed"


def test_an_error_that_cannot_be_encoded_is_still_a_reason(bench):
    def load(parameters):
        raise OSError(f"cannot read {BAD_TEXT}")

    b = bench(load=load)
    assert not b.client.change_state(1)
    assert b.client.state() == "unconfigured"
    assert b.client.until(lambda: "cannot read caf" in b.client.statuses[-1].message)


def test_an_emptied_or_blank_prompt_is_the_default_everywhere(bench):
    b = bench({"prompt": "first"})
    b.activate()
    assert b.chunks(1)[0].prompt == "first"
    for text in ("", " \n\t "):
        assert set_parameter(b.client, "prompt", "again").successful
        assert b.client.until(lambda: b.client.statuses[-1].prompt == "again")
        b.client.prompt.publish(String(data=text))
        assert b.client.until(lambda: b.client.statuses[-1].prompt == "default", feed=b.feed)
        b.client.chunks.clear()
        b.chunks(2)
        assert b.client.chunks[-1].prompt == "default"


def test_an_old_latched_prompt_does_not_come_back_after_many_others(bench):
    b = bench()
    b.activate()
    b.client.prompt.publish(String(data="old and latched"))
    assert b.client.until(lambda: b.client.statuses[-1].prompt == "old and latched")
    other = b.client.node.create_publisher(String, "prompt", 10)
    assert b.client.until(lambda: other.get_subscription_count() == 1)
    for number in range(30):
        other.publish(String(data=f"number {number}"))
        assert b.client.until(lambda n=number: b.client.statuses[-1].prompt == f"number {n}")
    for transition in (4, 2, 1, 3):
        assert b.client.change_state(transition)
    b.client.until(lambda: False, 1.0)
    assert b.client.statuses[-1].prompt == "number 29"


def test_a_chunk_begun_before_the_clock_went_back_is_not_published(bench, messages):
    """The jump is smaller than the age limits, and no message came since."""
    release = threading.Event()
    b = bench({"use_sim_time": True}, behave=lambda n, a: release.wait(20) and None)
    clock = b.client.node.create_publisher(Clock, "/clock", 10)
    now = [100_000_000_000]

    def tick(feed=True):
        now[0] += 20_000_000
        message = Clock()
        message.clock.sec, message.clock.nanosec = divmod(now[0], 10**9)
        clock.publish(message)
        if feed:
            for topic, sample in (
                ("base_camera/image_raw", messages.picture()),
                ("wrist_camera/image_raw", messages.picture()),
                ("joint_states", messages.joints()),
            ):
                b.client.send(topic, sample, now[0])

    b.activate()
    assert b.client.until(lambda: b.policy.observations, feed=tick)
    now[0] -= 150_000_000
    tick(feed=False)
    assert b.client.until(
        lambda: b.node.get_clock().now().nanoseconds <= now[0], feed=lambda: None
    )
    release.set()
    assert b.client.until(lambda: b.node._statistics.dropped["clock_jump"] == 1)
    assert not b.client.chunks
    assert b.client.until(lambda: len(b.client.chunks) >= 2, feed=tick)


def test_chunks_come_again_after_the_clock_went_far_ahead_and_back(bench, messages):
    b = bench({"use_sim_time": True})
    clock = b.client.node.create_publisher(Clock, "/clock", 10)
    now = [10_000_000_000_000]

    def tick():
        now[0] += 20_000_000
        message = Clock()
        message.clock.sec, message.clock.nanosec = divmod(now[0], 10**9)
        clock.publish(message)
        for topic in ("base_camera/image_raw", "wrist_camera/image_raw"):
            b.client.send(topic, messages.picture(), now[0])
        b.client.send("joint_states", messages.joints(), now[0])

    b.activate()
    assert b.client.until(lambda: len(b.client.chunks) >= 2, feed=tick)
    for jump_s in (3600, -3700):
        now[0] += jump_s * 10**9
        b.client.chunks.clear()
        assert b.client.until(lambda: len(b.client.chunks) >= 2, feed=tick), jump_s
    assert b.node._intake.inputs.clock_jumps == 1


def test_a_clock_set_back_and_forth_between_two_messages_is_a_jump(bench):
    b = bench({"use_sim_time": True})
    publisher = b.client.node.create_publisher(Clock, "/clock", 10)
    clock = Clock()
    clock.clock.sec = 100

    def go_on():
        clock.clock.nanosec = (clock.clock.nanosec + 20_000_000) % 10**9
        clock.clock.sec += clock.clock.nanosec == 0
        publisher.publish(clock)

    b.activate()
    assert counted(b, "inference", "skipped_ticks", feed=go_on)  # so the clock was read

    def show(second):
        clock.clock.sec, clock.clock.nanosec = second, 0
        shown = second * 10**9
        assert b.client.until(
            lambda: b.node.get_clock().now().nanoseconds == shown,
            feed=lambda: publisher.publish(clock),
        )

    show(40)
    show(1000)
    assert b.client.until(lambda: b.client.value("inputs", "clock_jumps") == "1")


def test_a_clock_that_stands_still_or_has_not_begun_is_named(bench):
    watch = ClockWatch()
    second = 10**9
    assert "no time yet" in watch.problem(0, second, 2.0)
    assert watch.problem(5 * second, 2 * second, 2.0) == ""
    assert watch.problem(5 * second, 4 * second, 2.0) == ""
    assert "stood still for 3.0 s" in watch.problem(5 * second, 5 * second, 2.0)
    assert watch.problem(5 * second + 1, 6 * second, 2.0) == ""
    b = bench({"use_sim_time": True})
    b.activate()
    assert b.client.until(
        lambda: (
            b.client.latest("inputs") is not None
            and "no time yet" in b.client.latest("inputs").message
        ),
        feed=b.feed,
    )


def test_a_reliable_publisher_from_which_nothing_comes_is_named_with_a_cure(bench, monkeypatch):
    monkeypatch.setattr(subscriptions, "SILENT_NS", 0)
    monkeypatch.delenv("FASTDDS_DEFAULT_PROFILES_FILE", raising=False)
    monkeypatch.delenv("FASTRTPS_DEFAULT_PROFILES_FILE", raising=False)
    b = bench()
    publisher = b.client.node.create_publisher(Image, "base_camera/image_raw", 1)
    b.activate()
    assert b.client.until(
        lambda: (
            b.client.latest("inputs") is not None
            and "FASTDDS_DEFAULT_PROFILES_FILE=" in b.client.latest("inputs").message
        )
    )
    info = b.node.get_subscriptions_info_by_topic("/base_camera/image_raw")
    assert [item.qos_profile.depth for item in info] in ([3], [0])  # 0: depth is not told
    b.client.node.destroy_publisher(publisher)
    b.chunks(1)


@pytest.mark.parametrize("text", [BAD_TEXT, "\udcff", "plain", "ünïcode", "a\0b"])
def test_printable_text_fits_on_the_wire(text):
    shown = printable(text)
    assert shown.encode("utf-8")
    assert "\0" not in shown
    assert printable(shown) == shown


def test_which_failures_are_told_in_one_line():
    assert is_plain_reason(OSError("no"))
    assert not is_plain_reason(ValueError("a bug"))
    memory = RuntimeError("could not create a primitive")
    assert is_plain_reason(memory)
    assert reason(memory).startswith("out of memory: ")
    assert first_line(KeyError()) == "KeyError"
