"""The active node and its inputs: images and joints with every fault, stamps, clocks."""

import array
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from node_client import BASE, JOINTS, WRIST, counted, ns
from rclpy.clock import ClockType
from rclpy.qos import ReliabilityPolicy, qos_profile_sensor_data
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState

# -- images ---------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "rgba8", "bgra8", "mono8"])
def test_each_encoding_arrives_as_rgb(bench, messages, encoding):
    b = bench()
    b.activate()
    b.chunks(1, feed=lambda: b.feed(base=messages.picture(13, 7, encoding, padding=3, value=50)))
    image = b.policy.observations[-1].images["base"]
    assert image.shape == (7, 13, 3)
    assert (image == 50).all()


def broken(picture, **changes):
    for name, value in changes.items():
        setattr(picture, name, value)
    return picture


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("encoding", {"encoding": "16UC1"}),
        ("encoding", {"encoding": ""}),
        ("step", {"step": 5}),
        ("short_data", {"data": array.array("B", [1, 2, 3])}),
        ("size", {"width": 0}),
        ("size", {"height": 2**32 - 1}),
        ("zero_stamp", {}),
    ],
)
def test_bad_picture_is_counted_and_the_node_lives(bench, messages, code, changes):
    b = bench()
    b.activate()
    b.chunks(1)
    bad = broken(messages.picture(), **changes)
    stamp = 0 if code == "zero_stamp" else None
    assert b.client.until(
        lambda: b.node._intake.inputs.sources["base_camera"].dropped[code],
        feed=lambda: b.client.send(BASE, bad, stamp),
    )
    assert counted(b, "inputs", f"base_camera.dropped.{code}", feed=b.feed)
    b.chunks(2)


def test_garbage_on_the_wire_is_survived(bench):
    b = bench()
    b.activate()
    b.chunks(1)
    publisher = b.client.publisher(Image, BASE)
    head = b"\x00\x01\x00\x00"
    for data in (
        head,
        head + b"\xff" * 64,
        head + bytes(20),
        head + b"\x00" * 12 + b"\x08\x00\x00\x00\xff\xfe\xfd\xfc\xfb\xfa\xf9\x00" + bytes(40),
    ):
        publisher.publish(data)
    b.chunks(3)


def test_compressed_transport(bench, messages):
    b = bench({"camera_transport.base": "compressed"})
    b.activate()

    def feed(picture):
        b.client.send(BASE + "/compressed", picture)
        b.feed(base=None)

    b.chunks(1, feed=lambda: feed(messages.jpeg(40, 30)))
    assert b.policy.observations[-1].images["base"].shape == (30, 40, 3)
    b.chunks(1, feed=lambda: feed(messages.jpeg(40, 30, "PNG")))
    cut = messages.jpeg(40, 30)
    cut.data = cut.data[:200]
    assert counted(b, "inputs", "base_camera.dropped.undecodable", feed=lambda: feed(cut))
    seen = b.client.latest("inputs")
    assert seen.level == DiagnosticStatus.WARN
    assert "base_camera: " in seen.message
    assert "samples unusable: compressed image" in seen.message
    not_a_picture = messages.jpeg()
    not_a_picture.data = array.array("B", b"hello")
    assert counted(b, "inputs", "base_camera.dropped.encoding", feed=lambda: feed(not_a_picture))
    b.chunks(1, feed=lambda: feed(messages.jpeg(40, 30)))


def test_picture_size_may_change_while_running(bench, messages):
    b = bench()
    b.activate()
    for width, height in ((1, 1), (640, 480), (33, 17), (1280, 720)):
        picture = messages.picture(width, height)

        def arrived(shape=(height, width)):
            seen = b.policy.observations
            return bool(seen) and seen[-1].images["base"].shape[:2] == shape

        assert b.client.until(arrived, feed=lambda picture=picture: b.feed(base=picture))


def test_camera_subscription_follows_the_reliability_of_its_publishers(bench, messages):
    b = bench()
    b.activate()
    topic = "/" + BASE

    def subscribed():
        """Reliability of the subscription; None while it is made again."""
        found = b.client.node.get_subscriptions_info_by_topic(topic)
        return found[0].qos_profile.reliability if len(found) == 1 else None

    assert b.client.until(lambda: subscribed() == ReliabilityPolicy.BEST_EFFORT)
    reliable = b.client.node.create_publisher(Image, topic, 1)
    assert b.client.until(lambda: subscribed() == ReliabilityPolicy.RELIABLE)
    b.client.publishers[BASE] = reliable
    b.chunks(2)
    # A best-effort publisher beside it must be heard too.
    sensor = b.client.node.create_publisher(Image, topic, qos_profile_sensor_data)
    assert b.client.until(lambda: subscribed() == ReliabilityPolicy.BEST_EFFORT)
    b.client.publishers[BASE] = sensor
    b.chunks(2)


# -- joints -----------------------------------------------------------------------------


def test_joints_are_mapped_by_name(bench, messages):
    b = bench()
    b.activate()
    shuffled = messages.joints(("gripper", "spare", "joint2", "joint1"), [3.0, 9.0, 2.0, 1.0])
    b.chunks(1, feed=lambda: b.feed(joints=shuffled))
    np.testing.assert_array_equal(b.policy.observations[-1].state, np.float32([1, 2, 3]))


@pytest.mark.parametrize(
    ("code", "names", "positions"),
    [
        ("joint_duplicate", ("joint1", "joint1", "joint2", "gripper"), [1.0, 1.0, 2.0, 3.0]),
        ("joint_count", ("joint1", "joint2", "gripper"), [1.0]),
        ("joint_not_finite", ("joint1", "joint2", "gripper"), [1.0, float("nan"), 3.0]),
    ],
)
def test_bad_joint_state_stops_chunks_and_is_named(bench, messages, code, names, positions):
    b = bench({"max_age_s": 0.2})
    b.activate()
    bad = messages.joints(names, positions)
    assert counted(b, "inputs", f"joint_states.dropped.{code}", feed=lambda: b.feed(joints=bad))
    assert not b.client.chunks
    assert b.client.value("inputs", "joint_states.last_error")
    b.chunks(2)


@pytest.mark.parametrize("names", [("joint1", "joint2"), ("joint1", "joint2", "Gripper")])
def test_a_joint_that_nobody_publishes_is_named(bench, messages, names):
    b = bench({"max_age_s": 0.2})
    b.activate()
    part = messages.joints(names, [1.0] * len(names))
    assert b.client.until(
        lambda: (
            (status := b.client.latest("inputs")) is not None
            and "lack gripper; they have joint1, joint2" in status.message
        ),
        feed=lambda: b.feed(joints=part),
    )
    assert not b.client.chunks
    assert b.client.value("inputs", "joint_states.dropped") == "0"
    b.chunks(2)


def test_joints_of_several_publishers_are_merged(bench, messages):
    b = bench()
    others = [b.client.node.create_publisher(JointState, JOINTS, 5) for _ in range(2)]
    b.activate()
    arm = messages.joints(("joint2", "joint1"), [2.0, 1.0])
    gripper = messages.joints(("gripper",), [3.0])
    wheels = messages.joints(("left_wheel", "right_wheel"), [7.0, 8.0])

    def feed():
        b.feed(joints=arm)
        for publisher, message in zip(others, (gripper, wheels), strict=True):
            message.header.stamp = b.client.node.get_clock().now().to_msg()
            publisher.publish(message)

    b.chunks(3, feed=feed)
    np.testing.assert_array_equal(b.policy.observations[-1].state, np.float32([1, 2, 3]))
    assert counted(b, "inputs", "joint_states.without_wanted_joint", feed=feed)
    assert b.client.value("inputs", "joint_states.dropped") == "0"


def test_publishers_that_disagree_stop_chunks(bench, messages):
    b = bench()
    second = b.client.node.create_publisher(JointState, JOINTS, 5)
    b.activate()
    here = messages.joints(("joint1", "joint2", "gripper"), [0.0, 0.0, 0.0])
    there = messages.joints(("joint1", "joint2", "gripper"), [0.0, 0.8, 0.0])

    def feed():
        b.feed(joints=here)
        there.header.stamp = b.client.node.get_clock().now().to_msg()
        second.publish(there)

    assert counted(b, "inputs", "joint_states.refused.conflict", feed=feed)
    assert "disagree about joint2" in b.client.latest("inputs").message
    b.chunks(2)  # the second one is silent again


# -- freshness --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "topic", "offset_s"),
    [
        ("stale", BASE, -1.0),
        ("stale", JOINTS, -1.0),
        ("skew", WRIST, -0.4),
        ("future", BASE, 1.0),
    ],
)
def test_wrong_stamps_publish_nothing_and_are_explained(bench, code, topic, offset_s):
    b = bench({"max_age_s": 0.5})
    lines: list[str] = []
    b.node._log._logger = SimpleNamespace(info=lines.append, warning=lines.append)
    b.node._log._min_interval_s = b.node._log._settle_s = 0.0
    b.client.stamp_offset_s[topic] = offset_s
    b.activate()
    source = topic.split("/")[0]
    assert counted(b, "inputs", f"{source}.refused.{code}", feed=b.feed)
    assert counted(b, "inference", f"skipped_ticks.{code}", feed=b.feed)
    assert b.client.latest("inputs").level == DiagnosticStatus.WARN
    assert source in b.client.latest("inputs").message
    assert not b.client.chunks
    assert not [line for line in lines if "fine again" in line]  # though messages arrive
    b.client.stamp_offset_s.clear()
    b.chunks(2, timeout_s=60)
    assert f"{source}: fine again" in lines


def test_zero_stamps_by_receive_time_if_asked_for(bench, messages):
    b = bench({"zero_stamps": "receive_time"})
    b.activate()

    def feed():
        b.client.send(BASE, messages.picture(), 0)
        b.client.send(WRIST, messages.picture(), 0)
        b.client.send(JOINTS, messages.joints(), 0)

    assert ns(b.chunks(2, feed=feed)[-1].header.stamp) > 0


def test_cameras_that_share_a_topic_are_told_and_counted(bench, messages):
    b = bench()
    b.activate()
    topic = f"{b.client.namespace}/base_camera/image_raw"
    others = [b.client.node.create_publisher(Image, topic, 10) for _ in range(2)]

    def feed():
        base = messages.picture()
        base.header.stamp = b.client.node.get_clock().now().to_msg()
        others[0].publish(base)
        others.reverse()
        b.feed(base=None)

    told = "images of several publishers come by turns (2 in /client_0)"
    assert b.client.until(
        lambda: told in getattr(b.client.latest("inputs"), "message", ""), feed=feed
    )
    assert b.client.latest("inputs").level == b"\x01"
    b.client.node.destroy_publisher(others.pop())
    b.client.diagnostics.clear()
    assert b.client.until(
        lambda: "all inputs fresh" in getattr(b.client.latest("inputs"), "message", ""), feed=feed
    )


def test_camera_loss_and_recovery(bench):
    b = bench({"max_age_s": 0.2, "dead_source_timeout_s": 0.5})
    b.activate()
    b.chunks(3)

    def without_wrist():
        b.feed(wrist=None)

    assert counted(b, "inputs", "wrist_camera.refused.dead", feed=without_wrist)
    count = len(b.client.chunks)
    assert b.client.until(
        lambda: b.client.latest("inputs").level == DiagnosticStatus.ERROR, feed=without_wrist
    )
    assert "wrist_camera" in b.client.latest("inputs").message
    assert len(b.client.chunks) == count
    b.chunks(3)
    assert b.client.until(
        lambda: b.client.latest("inputs").level == DiagnosticStatus.OK, feed=b.feed
    )


def test_a_camera_that_is_left_out_is_not_needed(bench):
    b = bench({"camera_roles": ["base"]})
    b.activate()
    chunk = b.chunks(1, feed=lambda: b.feed(wrist=None))[0]
    assert list(chunk.input_names) == ["base_camera", "joint_states"]
    assert set(b.policy.observations[-1].images) == {"base"}


def test_samples_are_not_used_twice(bench):
    b = bench({"max_age_s": 600.0, "dead_source_timeout_s": 600.0})
    b.activate()
    b.chunks(1)
    b.client.until(lambda: b.node._statistics.skipped["unchanged"] >= 2)
    count = len(b.policy.observations)
    assert b.client.until(lambda: b.node._statistics.skipped["unchanged"] >= 5)
    assert len(b.policy.observations) == count


def test_looping_bag_clock(bench, messages):
    b = bench({"use_sim_time": True, "rate_hz": 20.0, "max_age_s": 0.2})
    clock = b.client.node.create_publisher(Clock, "/clock", 10)
    b.activate()
    time_ns = 0

    def feed():
        nonlocal time_ns
        time_ns += 10_000_000
        if time_ns > 1_000_000_000:
            time_ns = 10_000_000
        message = Clock()
        message.clock.sec, message.clock.nanosec = divmod(time_ns, 10**9)
        clock.publish(message)
        for topic, sample in (
            (BASE, messages.picture()), (WRIST, messages.picture()), (JOINTS, messages.joints())
        ):  # fmt: skip
            b.client.send(topic, sample, time_ns)

    loops = lambda: b.node._intake.inputs.clock_jumps  # noqa: E731
    assert b.client.until(lambda: loops() >= 2, 60, feed)
    count = len(b.client.chunks)
    assert count > 10
    b.chunks(5, feed=feed)
    stamps = [ns(chunk.header.stamp) for chunk in b.client.chunks]
    assert max(stamps) <= 10**9
    ages = [ns(c.published_stamp) - ns(c.header.stamp) for c in b.client.chunks]
    limit_s = 1.0  # max_answer_age_s
    assert all(-50_000_000 <= age <= limit_s * 1e9 for age in ages)
    assert all(-1.0 <= obs.age_s <= limit_s for obs in b.policy.observations)


def test_observations_say_how_old_they_are_when_the_inference_begins(bench):
    b = bench()
    b.client.stamp_offset_s[BASE] = -0.12
    b.activate()
    chunk = b.chunks(3)[-1]
    oldest = min(obs.age_s for obs in b.policy.observations)
    assert oldest >= 0.12
    newest = next(obs for obs in b.policy.observations if obs.stamp_ns == ns(chunk.header.stamp))
    assert newest.age_s <= (ns(chunk.published_stamp) - ns(chunk.header.stamp)) / 1e9


def test_no_ticks_before_the_clock_but_diagnostics(bench):
    b = bench({"use_sim_time": True})
    b.activate()
    assert b.client.until(lambda: len(b.client.diagnostics) >= 2, feed=b.feed)
    assert not b.client.chunks


@pytest.mark.parametrize(
    ("sim", "kind"), [(False, ClockType.STEADY_TIME), (True, ClockType.ROS_TIME)]
)
def test_ticks_do_not_depend_on_system_time(bench, sim, kind):
    # A timer on system time stands still for an hour when that is set back by an hour.
    b = bench({"use_sim_time": sim})
    b.activate()
    ticking = [timer for timer in b.node.timers if timer.timer_period_ns == 50_000_000]
    assert [timer.clock.clock_type for timer in ticking] == [kind, kind]


def test_frames_are_taken_while_an_inference_runs(bench):
    release, running = threading.Event(), threading.Event()

    def behave(number, _):
        running.set()
        release.wait(60)

    b = bench(behave=behave)
    b.activate()
    assert b.client.until(running.is_set, feed=b.feed)
    used = b.node._intake.inputs.sources["base_camera"].newest.stamp_ns
    try:
        assert b.client.until(
            lambda: b.node._intake.inputs.sources["base_camera"].newest.stamp_ns > used,
            feed=b.feed,
        )
        assert not b.client.chunks
    finally:
        release.set()
    b.chunks(2)
