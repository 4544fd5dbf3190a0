"""The active node: prompt and parameters, while it runs."""

from node_client import ACTIVATE, DEACTIVATE, set_parameter
from rcl_interfaces.srv import DescribeParameters
from rclpy.qos import ReliabilityPolicy
from std_msgs.msg import String

# -- prompt -----------------------------------------------------------------------------


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


# -- parameters -------------------------------------------------------------------------


def test_dynamic_parameters_apply_and_bad_values_are_refused(bench):
    b = bench()
    b.activate()
    assert set_parameter(b.client, "denoise_steps", 3).successful
    assert b.client.until(
        lambda: b.client.chunks and b.client.chunks[-1].timings.denoise_steps == 3, feed=b.feed
    )
    for name, value in (
        ("denoise_steps", -1), ("denoise_steps", 21), ("denoise_steps", "three"),
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
    b = bench({"rate_hz": 0.1})
    b.activate()
    assert set_parameter(b.client, "rate_hz", 50).successful
    assert b.client.until(lambda: b.client.statuses[-1].rate_hz == 50.0)
    b.chunks(10)


def test_parameters_describe_themselves(bench):
    b = bench()
    names = ["denoise_steps", "rate_hz", "backend", "checkpoint"]
    request = DescribeParameters.Request(names=names)
    answer = b.client.call(DescribeParameters, "describe_parameters", request).descriptors
    steps, rate, backend, checkpoint = answer
    assert (steps.integer_range[0].from_value, steps.integer_range[0].to_value) == (0, 20)
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


def test_a_qos_override_is_for_its_topic_alone(bench):
    base, wrist, joints = (
        f"qos_overrides./{topic}.subscription"
        for topic in ("base_camera/image_raw", "wrist_camera/image_raw", "joint_states")
    )
    b = bench({f"{base}.depth": 5, f"{joints}.reliability": "reliable"})
    assert b.client.change_state(1)
    assert b.node.get_parameter(f"{base}.depth").value == 5
    assert b.node.get_parameter(f"{wrist}.depth").value == 1
    # Also of the subscriptions that a second configure makes.
    assert b.client.change_state(2)
    assert b.client.change_state(1)
    reliability = {
        topic: info.qos_profile.reliability
        for topic in ("/wrist_camera/image_raw", "/joint_states")
        for info in b.node.get_subscriptions_info_by_topic(topic)
    }
    assert reliability["/wrist_camera/image_raw"] == ReliabilityPolicy.BEST_EFFORT
    assert reliability["/joint_states"] == ReliabilityPolicy.RELIABLE


def test_a_qos_override_of_the_wrong_type_fails_configure_with_one_line(bench, capfd):
    name = "qos_overrides./joint_states.subscription.depth"
    b = bench({name: "deep"})
    assert not b.client.change_state(1)
    assert b.client.until(lambda: name in b.client.statuses[-1].message)
    assert "Traceback" not in capfd.readouterr().err
