"""The active node: chunks, what happens when the policy fails, diagnostics, several nodes."""

import array
import time

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticStatus
from node_client import ACTIVATE, BASE, DEACTIVATE, JOINTS, WRIST, counted, ns
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image, JointState

from pi05_ros.policy.errors import PolicyError
from pi05_ros.runtime.policy_loading import load_policy

# -- outputs ----------------------------------------------------------------------------


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


def test_what_the_policy_cannot_answer_is_one_line_without_a_traceback(bench, capfd):
    def behave(n, actions):
        raise PolicyError("no prompt: set `prompt`")

    b = bench(behave=behave)
    b.activate()
    assert b.client.until(
        lambda: (s := b.client.latest("inference")) and "no prompt" in s.message, feed=b.feed
    )
    logged = capfd.readouterr().err
    assert "inference: failed: PolicyError: no prompt" in logged
    assert "Traceback" not in logged


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
    # Not a backlog: an inference begins with what came after the last but one had begun.
    pairs = zip(chunks, chunks[2:], strict=False)
    assert all(ns(new.header.stamp) >= ns(old.published_stamp) for old, new in pairs)


def test_the_wait_for_pictures_ends_although_the_worker_was_busy_at_the_tick(bench, messages):
    # Ticks at 0.5, 1.0 and 1.5 s; the first inference takes from 0.7 to 1.1 s.
    limits = {"max_age_s": 100.0, "max_answer_age_s": 100.0, "max_skew_s": 100.0}
    b = bench(
        {"rate_hz": 2.0, "camera_wait_s": 0.2, **limits}, behave=lambda n, a: time.sleep(0.4)
    )
    b.activate()
    b.client.until(lambda: False, 0.2, feed=b.feed)
    assert b.client.until(lambda: len(b.policy.observations) == 1)
    b.client.send(JOINTS, messages.joints())
    assert b.client.until(lambda: len(b.policy.observations) == 2)
    assert b.node._statistics.skipped["busy"] == 0


# -- diagnostics and company ------------------------------------------------------------


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
    names = list(b.node._host.policy.robot.state_names)
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

        assert b.client.until(lambda n=count: len(b.client.chunks) > n, 60, send, 0.1)
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
