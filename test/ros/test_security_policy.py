"""The SROS 2 policies against what the live nodes have, in both directions."""

import xml.etree.ElementTree as ET

import rclpy
from executor_client import LIMITS
from rclpy.parameter import Parameter

from pi05_ros.resources import config_dir
from pi05_ros.ros.executor_node import ExecutorNode
from pi05_ros.ros.recorder.recorded_topics import COMPRESSED, wanted_topics
from pi05_ros.ros.recorder.recorder_node import EpisodeRecorder
from pi05_ros.ros.task.task_node import TaskNode

SPACE = "/secured"
LIVE = {
    "publish": "get_publisher_names_and_types_by_node",
    "subscribe": "get_subscriber_names_and_types_by_node",
    "reply": "get_service_names_and_types_by_node",
    "request": "get_client_names_and_types_by_node",
}
OTHER_CAMERAS = {
    f"{SPACE}/{name}/image_raw{kind}"
    for name in ("base_camera", "wrist_camera", "wrist_camera_2")
    for kind in ("", "/compressed")
} - {f"{SPACE}/base_camera/image_raw", f"{SPACE}/wrist_camera/image_raw"}
ACTION = ("send_goal", "cancel_goal", "get_result")


def allowed(file):
    """What a policy allows a node in SPACE: kind -> absolute names."""
    profile = ET.parse(config_dir() / "sros2" / "policies" / file).getroot().find(".//profile")
    node = profile.get("node")

    def absolute(name):
        if name.startswith("~"):
            return f"{SPACE}/{node}{name[1:]}"
        return name if name.startswith("/") else f"{SPACE}/{name}"

    found = {kind: set() for kind in LIVE}
    for block in profile:
        for kind, verdict in block.attrib.items():
            assert verdict == "ALLOW"
            names = {absolute(entry.text) for entry in block}
            if block.tag != "actions":
                found[kind] |= names
                continue
            assert kind in ("call", "execute")
            for name in names:
                talks = {f"{name}/_action/feedback", f"{name}/_action/status"}
                found["publish" if kind == "execute" else "subscribe"] |= talks
                found["reply" if kind == "execute" else "request"] |= {
                    f"{name}/_action/{part}" for part in ACTION
                }
    return node, found


def live(node):
    names = {}
    for kind, method in LIVE.items():
        # Services show as their own clients' topics too where both are in one process.
        names[kind] = {
            name for name, _ in getattr(node, method)(node.get_name(), node.get_namespace())
        }
    return names


def compare(node, file, unused):
    """Everything that is there is allowed; what is allowed beyond it is stated here."""
    name, policy = allowed(file)
    assert name == node.get_name()
    there = live(node)
    for kind in LIVE:
        assert there[kind] <= policy[kind], f"{file}: {kind} lacks {there[kind] - policy[kind]}"
        assert policy[kind] - there[kind] == unused.get(kind, set()), (file, kind)


def test_the_policy_node(bench):
    b = bench(namespace=SPACE)
    assert b.client.change_state(1)
    compare(b.node, "policy_node.policy.xml", {"subscribe": OTHER_CAMERAS | {"/clock"}})


def test_the_executor_node(ros):
    values = {"limits_file": str(LIMITS)}
    node = ExecutorNode(
        namespace=SPACE,
        parameter_overrides=[Parameter(name, value=value) for name, value in values.items()],
    )
    try:
        gripper = f"{SPACE}/gripper_controller/gripper_cmd/_action"
        unused = {
            "subscribe": {
                "/clock", f"{gripper}/feedback", f"{gripper}/status"
            },
            "request": {f"{gripper}/{part}" for part in ACTION},
        }  # fmt: skip
        compare(node, "executor_node.policy.xml", unused)
    finally:
        node.destroy_node()


def test_the_task_node(ros):
    node = TaskNode(namespace=SPACE)
    try:
        assert node.trigger_configure() == rclpy.lifecycle.TransitionCallbackReturn.SUCCESS
        unused = {"subscribe": {"/clock", f"{SPACE}/joint_states"}}
        compare(node, "task_node.policy.xml", unused)
    finally:
        node.destroy_node()


def test_the_episode_recorder(ros, tmp_path):
    overrides = [Parameter("folder", value=str(tmp_path))]
    node = EpisodeRecorder(namespace=SPACE, parameter_overrides=overrides)
    try:
        assert node.trigger_configure() == rclpy.lifecycle.TransitionCallbackReturn.SUCCESS
        assert node.trigger_activate() == rclpy.lifecycle.TransitionCallbackReturn.SUCCESS
        # It subscribes to what somebody publishes.
        cameras = [f"{name}{kind}" for name in node.parameters.camera_topics
                   for kind in ("", COMPRESSED)]  # fmt: skip
        names = {node.resolve_topic_name(n) for n in (*wanted_topics(node.parameters), *cameras)}
        unused = {"subscribe": (names | {"/clock"}) - live(node)["subscribe"]}
        compare(node, "episode_recorder.policy.xml", unused)
    finally:
        node.end()
        node.destroy_node()
