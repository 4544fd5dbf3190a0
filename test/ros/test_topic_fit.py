"""Publishers that come late with another type, or with QoS that does not fit, are named."""

from __future__ import annotations

import itertools
import time

import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from executor_client import Rig, follow
from pi05_ros.msg import ActionChunk
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import (
    DurabilityPolicy,
    QoSProfile,
    ReliabilityPolicy,
    qos_profile_sensor_data,
    qos_profile_system_default,
)
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Bool, Empty, Float64MultiArray, String
from task_rig import ABORTED, TaskRig

from pi05_ros.ros.executor_limits import limits_of_node
from pi05_ros.ros.executor_parameters import ExecutorParameters
from pi05_ros.ros.processes.domain import free_domain_id
from pi05_ros.ros.recorder.recorder_node import EpisodeRecorder
from pi05_ros.ros.robot.joint_state_names_node import JointStateNamesNode
from pi05_ros.ros.topic_fit import TopicFit
from pi05_ros.runtime.parameter_specs import ParameterError

RELIABLE = QoSProfile(depth=1)
BEST_EFFORT = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
PATIENCE_S = 60.0


@pytest.fixture
def stranger():
    """Nodes in participants of their own: one participant has one type for a topic."""
    made = []

    def make(domain, name="stranger"):
        context = rclpy.Context()
        rclpy.init(context=context, domain_id=domain)
        made.append((context, rclpy.create_node(name, context=context)))
        return made[-1][1]

    yield make
    for context, node in made:
        node.destroy_node()
        rclpy.shutdown(context=context)


def says(text, rest):
    """Whether a text names an endpoint; the middleware does not always know whose it is."""
    what = rest.partition(" ")[2]
    return rest in text or f"somebody {what}" in text


def until(condition, each=lambda: time.sleep(0.02)):
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if condition():
            return True
        each()
    return False


def test_what_is_named_is_what_the_middleware_leaves_apart(stranger):
    """Every pair of QoS, against the matches that the middleware itself counts."""
    domain = free_domain_id()
    one, other = stranger(domain, "one"), stranger(domain, "other")
    kinds = [
        *(
            QoSProfile(depth=1, reliability=reliability, durability=durability)
            for reliability in (ReliabilityPolicy.RELIABLE, ReliabilityPolicy.BEST_EFFORT)
            for durability in (DurabilityPolicy.TRANSIENT_LOCAL, DurabilityPolicy.VOLATILE)
        ),
        10,
        qos_profile_sensor_data,
        qos_profile_system_default,
        QoSProfile(depth=1, deadline=Duration(seconds=3600)),
    ]
    topics, publishers = [], {}
    for number, (theirs, ours) in enumerate(itertools.product(kinds, kinds)):
        topics.append(f"/pair_{number}")
        publishers[topics[-1]] = other.create_publisher(Bool, topics[-1], theirs)
        one.create_subscription(Bool, topics[-1], print, ours)
    assert until(lambda: all(one.count_publishers(topic) for topic in topics))
    assert until(lambda: all(other.count_subscribers(topic) for topic in topics))
    reading, writing = TopicFit(one), TopicFit(other, topics)

    def apart():
        return {name for name, each in publishers.items() if not each.get_subscription_count()}

    def agreed():
        reading.look()
        writing.look()
        return set(reading.found) == set(writing.found) == apart()

    assert until(agreed), (set(reading.found) ^ apart(), set(writing.found) ^ apart())
    assert 15 < len(apart()) < 40
    for topic, item in reading.found.items():
        assert item.alone
        assert says(item.text, f"/other publishes {topic} with QoS that does not fit: ")
        assert says(writing.found[topic].text, f"/one reads {topic} with QoS that does not fit: ")


def test_another_type_is_named_beside_a_publisher_that_fits_until_it_goes(stranger):
    domain = free_domain_id()
    one, good, bad = (stranger(domain, name) for name in ("one", "good", "bad"))
    one.create_subscription(Bool, "/done", print, RELIABLE)
    fit = TopicFit(one)
    fit.look()
    assert not fit.text
    wrong = bad.create_publisher(String, "/done", RELIABLE)
    named = "/bad publishes std_msgs/msg/String on /done; read: std_msgs/msg/Bool"
    assert until(lambda: says(fit.deaf_to("/done"), named), look(fit)), fit.text
    right = good.create_publisher(Bool, "/done", RELIABLE)
    assert until(lambda: not fit.deaf_to("/done"), look(fit))
    assert says(fit.text, named)  # and is no reason to give up
    good.destroy_publisher(right)
    bad.destroy_publisher(wrong)
    assert until(lambda: not fit.text, look(fit))


def test_many_publishers_are_counted_not_listed(stranger):
    domain = free_domain_id()
    one = stranger(domain, "one")
    one.create_subscription(Bool, "/done", print, RELIABLE)
    fit = TopicFit(one)
    for number in range(5):
        stranger(domain, f"bad_{number}").create_publisher(String, "/done", RELIABLE)
    assert until(lambda: "and 2 more" in fit.text, look(fit)), fit.text


def look(fit):
    def again():
        time.sleep(0.05)
        fit.look()

    return again


LATE_INPUTS = (
    ("base_camera/image_raw", String, RELIABLE, "/late_0 publishes std_msgs/msg/String"),
    ("joint_states", Bool, RELIABLE, "/late_1 publishes std_msgs/msg/Bool"),
    ("prompt", Bool, RELIABLE, "/late_2 publishes std_msgs/msg/Bool"),
    ("prompt", String, BEST_EFFORT, "best effort publisher and reliable subscription"),
)


def test_the_policy_node_names_what_it_cannot_hear(bench, stranger):
    b = bench(namespace="/fit")
    b.activate()
    b.chunks(1)
    for number, (topic, kind, how, _) in enumerate(LATE_INPUTS):
        other = stranger(None, f"late_{number}")
        other.create_publisher(kind, f"{b.client.namespace}/{topic}", how)

    def named():
        text = b.client.value("inputs", "unheard") or ""
        return all(says(text, words) for *_, words in LATE_INPUTS)

    assert b.client.until(named, feed=b.feed), b.client.value("inputs", "unheard")
    entry = b.client.latest("inputs")
    assert entry.level == b"\x01"
    assert says(entry.message, "/late_0 publishes std_msgs/msg/String")
    b.chunks(1)  # the others are heard all the same


def test_the_executor_node_names_what_it_cannot_hear(stranger):
    rig = Rig()
    try:
        follow(rig)
        assert rig.until(lambda: rig.client.trajectories, each=rig.client.send_state)
        seen = len(rig.client.diagnostics) + 5
        assert rig.until(lambda: len(rig.client.diagnostics) > seen, each=rig.client.send_state)
        assert rig.client.diagnostics[-1][1]["unheard"] == ""
        domain = rig.context.get_domain_id()
        late = [
            ("/joint_states", String, RELIABLE, "std_msgs/msg/String on /joint_states"),
            ("/pi05_policy/action_chunk", ActionChunk, BEST_EFFORT, "/pi05_policy/action_chunk"),
            ("/pi05_executor/halt", Empty, RELIABLE, "std_msgs/msg/Empty on /pi05_executor/halt"),
            ("/pi05_executor/heartbeat", Bool, RELIABLE, "std_msgs/msg/Bool on /pi05_executor"),
            (
                "/pi05_executor/teleop",
                Float64MultiArray,
                RELIABLE,
                "std_msgs/msg/Float64MultiArray",
            ),
        ]
        for number, (topic, kind, how, _) in enumerate(late):
            stranger(domain, f"late_{number}").create_publisher(kind, topic, how)
        controller = stranger(domain, "controller")
        controller.create_subscription(
            Bool, "/joint_trajectory_controller/joint_trajectory", print, 1
        )

        def named():
            message, values = rig.client.diagnostics[-1]
            wanted = [f"/late_{number} publishes {each[3]}" for number, each in enumerate(late)]
            wanted += ["/controller reads std_msgs/msg/Bool"]
            return all(says(message, text) and says(values["unheard"], text) for text in wanted)

        assert rig.until(named, each=rig.client.send_state), rig.client.diagnostics[-1]
    finally:
        rig.close()


def test_a_robot_description_that_is_not_latched_is_named(stranger):
    domain = free_domain_id()
    node, other = stranger(domain), stranger(domain, "other")
    other.create_publisher(String, "/robot_description", RELIABLE)
    assert until(lambda: node.count_publishers("/robot_description"))
    parameters = ExecutorParameters(robot_description_timeout_s=0.2)
    with pytest.raises(ParameterError, match="publishes /robot_description with QoS"):
        limits_of_node(node, parameters)


@pytest.fixture
def rig():
    made = []

    def build(**parameters):
        made.append(TaskRig(**parameters))
        made[-1].activate()
        return made[-1]

    yield build
    for each in made:
        each.close()


def test_a_success_topic_that_turns_out_to_have_another_type_ends_the_task(rig, stranger):
    rig = rig()
    rig.person.destroy_publisher(rig.person.success)
    handle = rig.send(end=1, success_topic="/cube_in_box")
    assert rig.until(lambda: rig.moving)
    stranger(rig.context.get_domain_id(), "late").create_publisher(String, "/cube_in_box", 1)
    status, result = rig.result(handle)
    assert (status, result.termination_reason, result.outcome) == (ABORTED, "fault", "unknown")
    wanted = "/late publishes std_msgs/msg/String on /cube_in_box; read: std_msgs/msg/Bool"
    assert says(result.message, wanted)
    assert rig.until(lambda: says(rig.person.task_statuses[-1].message, wanted))
    rig.assert_at_rest()
    # That is of no concern to a task that ends otherwise.
    status, result = rig.result(rig.send(time_limit_s=1.5))
    assert result.termination_reason == "timeout"


def test_a_wrong_publisher_beside_the_right_one_does_not_end_the_task(rig, stranger):
    rig = rig()
    heard = []
    rig.person.create_subscription(DiagnosticArray, "/diagnostics", heard.append, 10)
    handle = rig.send(end=1, success_topic="/cube_in_box")
    assert rig.until(lambda: rig.moving)
    stranger(rig.context.get_domain_id(), "late").create_publisher(String, "/cube_in_box", 1)

    def named():
        entries = [s for m in heard for s in m.status if s.name == "/pi05_task: task"]
        return any(s.level == b"\x01" and says(s.message, "/late publishes") for s in entries)

    assert rig.until(named)
    future = handle.get_result_async()
    assert rig.until(future.done, each=lambda: rig.person.success.publish(Bool(data=True)))
    assert future.result().result.termination_reason == "done"
    rig.assert_at_rest()


def test_an_executor_of_another_type_is_named_in_the_result(rig, stranger):
    rig = rig(step_timeout_s=1.0, status_timeout_s=3.0)
    rig.kill_executor()
    facts = rig.task._facts
    domain = rig.context.get_domain_id()
    stranger(domain, "late").create_publisher(String, "/pi05_executor/executor_status", 1)
    assert rig.until(lambda: facts.executor.unheard)
    assert rig.until(lambda: time.monotonic() - facts.executor.seen_s > 3.1)
    _, result = rig.result(rig.send())
    assert "nothing is heard of the executor: " in result.message
    assert says(result.message, "/late publishes std_msgs/msg/String")


def test_the_recorder_hears_a_publisher_that_asks_for_less_and_names_one_of_another_type(
    stranger, tmp_path
):
    domain = free_domain_id()
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain)
    node = EpisodeRecorder(
        context=context, parameter_overrides=[Parameter("folder", value=str(tmp_path))]
    )
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)

    def spin():
        executor.spin_once(timeout_sec=0.02)

    try:
        node.trigger_configure()
        node.trigger_activate()
        first, second = stranger(domain, "first"), stranger(domain, "second")
        reliable = first.create_publisher(JointState, "/joint_states", RELIABLE)
        assert until(reliable.get_subscription_count, spin)
        lossy = second.create_publisher(JointState, "/joint_states", BEST_EFFORT)
        assert until(lossy.get_subscription_count, spin)
        assert until(reliable.get_subscription_count, spin)
        assert not node._topics.unheard
        stranger(domain, "late").create_publisher(Image, "/joint_states", RELIABLE)
        wanted = "/late publishes sensor_msgs/msg/Image"
        assert until(lambda: says(node._topics.unheard, wanted), spin)
    finally:
        node.end()
        executor.shutdown()
        node.destroy_node()
        rclpy.shutdown(context=context)


def test_nodes_without_diagnostics_log_what_they_cannot_hear(stranger, capfd):
    domain = free_domain_id()
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain)
    sources = Parameter("sources", value=["/left/joint_states=left_"])
    node = JointStateNamesNode(context=context, parameter_overrides=[sources])
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    said = []
    try:
        stranger(domain, "late").create_publisher(String, "/left/joint_states", 1)

        def named():
            said.append(capfd.readouterr().err)
            return says("".join(said), "/late publishes std_msgs/msg/String")

        assert until(named, lambda: executor.spin_once(timeout_sec=0.02))
    finally:
        executor.shutdown()
        node.destroy_node()
        rclpy.shutdown(context=context)
