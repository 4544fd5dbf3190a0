"""The active node: inputs with every fault, outputs, prompt, clocks, parameters, diagnostics."""

import array
import time

import numpy as np
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticStatus
from rcl_interfaces.msg import Parameter as ParameterMsg
from rcl_interfaces.msg import ParameterType, ParameterValue
from rcl_interfaces.srv import DescribeParameters, SetParameters
from rclpy.parameter import Parameter
from rclpy.qos import ReliabilityPolicy, qos_profile_sensor_data
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String

from pi05_ros.ros.policy_loading import load_policy

DEACTIVATE, ACTIVATE = 4, 3
BASE, WRIST, JOINTS = "base_camera/image_raw", "wrist_camera/image_raw", "joint_states"


def ns(stamp):
    return stamp.sec * 10**9 + stamp.nanosec


def set_parameter(client, name, value):
    kinds = {
        int: ("PARAMETER_INTEGER", "integer_value"),
        float: ("PARAMETER_DOUBLE", "double_value"),
        str: ("PARAMETER_STRING", "string_value"),
    }
    kind, attribute = kinds[type(value)]
    message = ParameterValue(type=getattr(ParameterType, kind), **{attribute: value})
    request = SetParameters.Request(parameters=[ParameterMsg(name=name, value=message)])
    return client.call(SetParameters, "set_parameters", request).results[0]


def counted(b, entry, key, timeout_s=10.0, feed=None):
    """Wait until diagnostics show a count above 0."""
    return b.client.until(lambda: int(b.client.value(entry, key) or 0) > 0, timeout_s, feed)


# -- outputs -------------------------------------------------------------------------------


def test_chunk_says_everything_a_consumer_needs(bench, messages):
    b = bench({"seed": 5})
    b.activate()
    chunk = b.chunks(3)[-1]
    stamps = dict(zip(chunk.input_names, map(ns, chunk.input_stamps), strict=True))
    assert set(stamps) == {"base_camera", "wrist_camera", "joint_states"}
    assert ns(chunk.header.stamp) == ns(chunk.observation_stamp) == min(stamps.values())
    assert chunk.header.frame_id == ""
    age_ns = ns(chunk.published_stamp) - ns(chunk.header.stamp)
    assert age_ns > 0
    assert chunk.steps_past == min(4, -(-age_ns // 50_000_000))
    assert tuple(chunk.names) == messages.names
    assert (chunk.horizon, len(chunk.data)) == (4, 12)
    assert ns(chunk.step) == 50_000_000
    assert list(chunk.meaning) == [chunk.ACTION_ABSOLUTE] * 3
    assert list(chunk.unit) == [chunk.UNIT_RADIAN] * 3
    np.testing.assert_allclose(np.reshape(chunk.data, (4, 3))[1], [0.1, 0.2, 0.3], rtol=1e-6)
    assert (chunk.seed, chunk.prompt, chunk.kv_age) == (7, "default", 0)
    assert chunk.random_weights
    timings = chunk.timings
    assert timings.total_ms >= timings.inference_ms > 0
    assert timings.queue_ms >= 0
    assert timings.denoise_steps == 10
    assert np.isnan(timings.vision_ms)


def test_nan_chunk_is_counted_and_never_published(bench):
    def behave(n, actions):
        if n % 2:
            actions[1, 2] = np.nan

    b = bench(behave=behave)
    b.activate()
    chunks = b.chunks(5)
    assert all(np.isfinite(chunk.data).all() for chunk in chunks)
    assert counted(b, "inference", "nan_chunks", feed=b.feed)


def test_exception_in_the_policy_is_an_error_and_the_node_goes_on(bench):
    def behave(n, actions):
        if n <= 25:
            raise RuntimeError("engine is on fire")

    b = bench(behave=behave)
    b.activate()
    seen = b.client.until(
        lambda: (s := b.client.latest("inference")) and s.level == DiagnosticStatus.ERROR,
        feed=b.feed,
    )
    assert seen
    assert "engine is on fire" in b.client.latest("inference").message
    b.chunks(2)
    assert b.client.until(
        lambda: b.client.latest("inference").level == DiagnosticStatus.OK, feed=b.feed
    )
    assert int(b.client.value("inference", "errors")) == 25


def test_late_chunk_is_dropped_and_counted(bench):
    b = bench({"max_answer_age_s": 0.05}, behave=lambda n, a: time.sleep(0.1))
    b.activate()
    assert counted(b, "inference", "late_chunks", feed=b.feed)
    assert not b.client.chunks


def test_overload_is_visible_and_answers_the_newest_observation(bench):
    b = bench({"rate_hz": 50.0}, behave=lambda n, a: time.sleep(0.06))
    b.activate()
    chunks = b.chunks(6)
    assert counted(b, "inference", "skipped_ticks.busy", feed=b.feed)
    assert b.client.latest("inference").level == DiagnosticStatus.WARN
    # Not a backlog: each chunk answers what was newest when its inference began.
    assert all(chunk.timings.queue_ms < 50 for chunk in chunks)


# -- pictures ------------------------------------------------------------------------------


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
        lambda: b.node._sources.inputs.sources["base_camera"].dropped[code],
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
        (info,) = b.client.node.get_subscriptions_info_by_topic(topic)
        return info.qos_profile.reliability

    assert subscribed() == ReliabilityPolicy.BEST_EFFORT
    reliable = b.client.node.create_publisher(Image, topic, 1)
    assert b.client.until(lambda: subscribed() == ReliabilityPolicy.RELIABLE)
    b.client.publishers[BASE] = reliable
    b.chunks(2)
    # A best-effort publisher beside it must be heard too.
    sensor = b.client.node.create_publisher(Image, topic, qos_profile_sensor_data)
    assert b.client.until(lambda: subscribed() == ReliabilityPolicy.BEST_EFFORT)
    b.client.publishers[BASE] = sensor
    b.chunks(2)


# -- joints --------------------------------------------------------------------------------


def test_joints_are_mapped_by_name(bench, messages):
    b = bench()
    b.activate()
    shuffled = messages.joints(("gripper", "spare", "joint2", "joint1"), [3.0, 9.0, 2.0, 1.0])
    b.chunks(1, feed=lambda: b.feed(joints=shuffled))
    np.testing.assert_array_equal(b.policy.observations[-1].state, np.float32([1, 2, 3]))


@pytest.mark.parametrize(
    ("code", "names", "positions"),
    [
        ("joint_missing", ("joint1", "joint2"), [1.0, 2.0]),
        ("joint_missing", ("joint1", "Joint2", "gripper"), [1.0, 2.0, 3.0]),
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
    text = b.client.value("inputs", "joint_states.last_error")
    if code == "joint_missing":
        assert "lacks" in text
    b.chunks(2)


# -- freshness -----------------------------------------------------------------------------


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
    b.client.stamp_offset_s[topic] = offset_s
    b.activate()
    source = topic.split("/")[0]
    assert counted(b, "inputs", f"{source}.refused.{code}", feed=b.feed)
    assert counted(b, "inference", f"skipped_ticks.{code}", feed=b.feed)
    assert b.client.latest("inputs").level == DiagnosticStatus.WARN
    assert source in b.client.latest("inputs").message
    assert not b.client.chunks
    b.client.stamp_offset_s.clear()
    b.chunks(2, timeout_s=15)


def test_zero_stamps_by_receive_time_if_asked_for(bench, messages):
    b = bench({"zero_stamps": "receive_time"})
    b.activate()

    def feed():
        b.client.send(BASE, messages.picture(), 0)
        b.client.send(WRIST, messages.picture(), 0)
        b.client.send(JOINTS, messages.joints(), 0)

    assert ns(b.chunks(2, feed=feed)[-1].header.stamp) > 0


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
    b = bench()
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

    loops = lambda: b.node._sources.inputs.clock_jumps  # noqa: E731
    assert b.client.until(lambda: loops() >= 2, 20, feed)
    count = len(b.client.chunks)
    assert count > 10
    b.chunks(5, feed=feed)
    stamps = [ns(chunk.header.stamp) for chunk in b.client.chunks]
    assert max(stamps) <= 10**9
    ages = [ns(c.published_stamp) - ns(c.header.stamp) for c in b.client.chunks]
    assert all(-50_000_000 <= age <= 300_000_000 for age in ages)


def test_no_ticks_before_the_clock_but_diagnostics(bench):
    b = bench({"use_sim_time": True})
    b.activate()
    assert b.client.until(lambda: len(b.client.diagnostics) >= 2, feed=b.feed)
    assert not b.client.chunks


# -- prompt --------------------------------------------------------------------------------


def prompts(b, wanted):
    return b.client.until(
        lambda: b.client.chunks and b.client.chunks[-1].prompt == wanted, feed=b.feed
    )


def test_prompt_by_topic_and_parameter_the_last_writer_wins(bench):
    b = bench({"prompt": "first"})
    b.activate()
    assert prompts(b, "first")
    b.client.prompt.publish(String(data="by topic"))
    assert prompts(b, "by topic")
    assert b.node.get_parameter("prompt").value == "by topic"
    assert set_parameter(b.client, "prompt", "by parameter").successful
    assert prompts(b, "by parameter")
    assert b.client.until(lambda: b.client.statuses[-1].prompt == "by parameter")
    # The latched message is heard again after a new configure and is not a new writer.
    for transition in (DEACTIVATE, 2, 1, ACTIVATE):
        assert b.client.change_state(transition)
    b.client.chunks.clear()
    assert prompts(b, "by parameter")
    b.client.prompt.publish(String(data=""))
    assert prompts(b, "default")


def test_latched_prompt_is_heard_by_a_node_that_comes_later(bench):
    b = bench()
    b.client.prompt.publish(String(data="already there"))
    b.activate()
    assert prompts(b, "already there")


def test_prompt_of_an_ordinary_publisher_is_heard(bench):
    b = bench()
    volatile = b.client.node.create_publisher(String, "prompt", 10)
    b.activate()
    assert b.client.until(lambda: b.client.statuses[-1].prompt == "default")
    assert b.client.until(lambda: volatile.get_subscription_count() == 1)
    volatile.publish(String(data="ordinary"))
    assert prompts(b, "ordinary")
    b.client.prompt.publish(String(data="latched"))
    assert prompts(b, "latched")
    volatile.publish(String(data="ordinary"))
    assert prompts(b, "ordinary")


def test_endless_prompt_is_cut(bench):
    b = bench()
    b.activate()
    b.client.prompt.publish(String(data="pick " * 5000))
    assert b.client.until(lambda: b.client.statuses[-1].prompt.startswith("pick"), feed=b.feed)
    assert len(b.client.statuses[-1].prompt) == 4096


# -- parameters ----------------------------------------------------------------------------


def test_dynamic_parameters_apply_and_bad_values_are_refused(bench):
    b = bench()
    b.activate()
    assert set_parameter(b.client, "denoise_steps", 3).successful
    assert b.client.until(
        lambda: b.client.chunks and b.client.chunks[-1].timings.denoise_steps == 3, feed=b.feed
    )
    for name, value in (
        ("denoise_steps", 0), ("denoise_steps", 21), ("denoise_steps", "three"),
        ("rate_hz", 0.0), ("rate_hz", float("nan")), ("rate_hz", "fast"),
        ("max_age_s", -1.0), ("prompt", 5),
    ):  # fmt: skip
        result = set_parameter(b.client, name, value)
        assert not result.successful, (name, value)
        assert result.reason
    for name, value in (
        ("checkpoint", "random:pi05"), ("backend", "cuda"), ("device", "cuda"), ("seed", 3),
        ("precision.vision", "fp8"), ("robot", "ur5e"), ("tokenizer", "x"),
    ):  # fmt: skip
        result = set_parameter(b.client, name, value)
        assert not result.successful
        assert "read-only" in result.reason
    assert b.client.until(lambda: b.client.statuses[-1].denoise_steps == 3)
    b.chunks(2)


def test_rate_changes_while_running_also_by_an_integer(bench):
    b = bench({"rate_hz": 0.2})
    b.activate()
    assert set_parameter(b.client, "rate_hz", 50).successful
    assert b.client.until(lambda: b.client.statuses[-1].rate_hz == 50.0)
    b.chunks(10, timeout_s=5)


def test_parameters_describe_themselves(bench):
    b = bench()
    names = ["denoise_steps", "rate_hz", "backend", "checkpoint"]
    request = DescribeParameters.Request(names=names)
    answer = b.client.call(DescribeParameters, "describe_parameters", request).descriptors
    steps, rate, backend, checkpoint = answer
    assert (steps.integer_range[0].from_value, steps.integer_range[0].to_value) == (1, 20)
    assert rate.floating_point_range[0].to_value == 200.0
    assert "eager" in backend.additional_constraints
    assert checkpoint.read_only
    assert not rate.read_only
    assert all(item.description for item in answer)


def test_qos_overrides(bench):
    name = "qos_overrides./pi05_policy/action_chunk.publisher.depth"
    b = bench({name: 7})
    b.activate()
    assert b.node.get_parameter(name).value == 7
    b.chunks(1)


# -- diagnostics and company ---------------------------------------------------------------


def test_diagnostics_of_an_active_and_an_inactive_node(bench):
    b = bench()
    stale = DiagnosticStatus.STALE
    assert b.client.until(lambda: (s := b.client.latest("inference")) and s.level == stale)
    assert "unconfigured" in b.client.latest("inference").message
    b.activate()
    assert b.client.until(
        lambda: (
            b.client.value("inference", "latency_p95_ms")
            and b.client.latest("inputs").level == DiagnosticStatus.OK
        ),
        feed=b.feed,
    )
    inference = {pair.key for pair in b.client.latest("inference").values}
    assert {
        "rate_hz", "latency_p50_ms", "latency_p95_ms", "skipped_ticks", "nan_chunks", "backend",
        "precision", "device", "errors", "late_chunks", "overhead_p50_ms",
    } <= inference  # fmt: skip
    inputs = {pair.key for pair in b.client.latest("inputs").values}
    for source in ("base_camera", "wrist_camera", "joint_states"):
        assert {f"{source}.{key}" for key in ("rate_hz", "age_ms", "dropped")} <= inputs
    assert b.client.latest("inference").hardware_id == "scripted on cpu"
    assert b.client.change_state(DEACTIVATE)
    assert b.client.until(lambda: b.client.latest("inputs").level == stale)


def test_status_is_latched(bench):
    b = bench()
    b.activate()
    late = rclpy.create_node("late_listener")
    try:
        from pi05_ros.msg import PolicyStatus

        from pi05_ros.ros import qos

        heard = []
        late.create_subscription(PolicyStatus, "/pi05_policy/status", heard.append, qos.LATCHED)
        b.client.executor.add_node(late)
        assert b.client.until(lambda: heard)
        status = heard[-1]
        assert status.state == PolicyStatus.STATE_ACTIVE
        assert status.policy_id
        assert status.checkpoint_hash == "random:scripted:0"
        assert (status.backend, status.precision_vision, status.horizon) == ("eager", "fp32", 4)
        assert status.random_weights
    finally:
        b.client.executor.remove_node(late)
        late.destroy_node()


def test_two_nodes_in_two_namespaces(bench):
    left, right = bench(namespace="left"), bench(namespace="right")
    left.activate()
    right.activate()
    left.chunks(3)
    assert not right.client.chunks
    right.chunks(3)
    assert left.client.chunks[0].policy_id != right.client.chunks[0].policy_id
    assert left.client.until(lambda: left.client.latest("inference"))
    assert left.client.latest("inference").name == "/left/pi05_policy: inference"


def test_same_messages_and_seed_give_the_same_chunk(bench):
    """Golden: the real policy behind the node, two activations, bit-equal answers."""
    rng = np.random.default_rng(3)
    pixels = [array.array("B", rng.integers(0, 256, 48 * 64 * 3, np.uint8).tobytes())
              for _ in range(2)]  # fmt: skip
    b = bench({"checkpoint": "random:tiny", "seed": 11, "threads": 1, "denoise_steps": 2,
               "max_age_s": 100.0, "max_answer_age_s": 100.0, "dead_source_timeout_s": 100.0,
               "rate_hz": 5.0}, factory=load_policy)  # fmt: skip
    assert b.client.change_state(1)
    names = list(b.node._policy.robot.state_names)
    answers = []
    for _ in range(2):
        assert b.client.change_state(ACTIVATE)
        count = len(b.client.chunks)
        messages = [
            Image(width=64, height=48, step=192, encoding="rgb8", data=data) for data in pixels
        ]
        state = JointState(name=names, position=[0.1 * i for i in range(len(names))])
        stamp = b.client.node.get_clock().now().nanoseconds

        def send(messages=messages, state=state, stamp=stamp):
            b.client.send(BASE, messages[0], stamp)
            b.client.send(WRIST, messages[1], stamp)
            b.client.send(JOINTS, state, stamp)

        assert b.client.until(lambda n=count: len(b.client.chunks) > n, 20, send, 0.1)
        answers.append(b.client.chunks[count])
        assert b.client.change_state(DEACTIVATE)
    first, second = answers
    assert first.seed == second.seed == 11
    assert first.data.tobytes() == second.data.tobytes()
    assert first.policy_id != second.policy_id


def test_typo_in_a_parameter_name_is_pointed_out(bench, capfd):
    bench({"rate_hertz": 5.0})
    assert "did you mean 'rate_hz'" in capfd.readouterr().err


def test_parameter_overrides_by_integer(bench):
    b = bench({"rate_hz": 15})
    assert b.node.get_parameter("rate_hz").type_ == Parameter.Type.DOUBLE
    assert b.client.change_state(1)
