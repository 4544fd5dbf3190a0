"""Which topics are recorded, and raw subscriptions to those that somebody publishes."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

from pi05_ros.bags.cdr_messages import IMAGE
from pi05_ros.bags.recording.episode_bag import KeptMessage
from pi05_ros.ros.recorder.recorder_parameters import RecorderParameters
from pi05_ros.ros.topic_fit import TopicFit

COMPRESSED = "/compressed"
COMMAND_TOPICS = (
    "joint_trajectory_controller/joint_trajectory",
    "forward_position_controller/commands",
    "gripper_controller/commands",
)
DEPTH = 100
IMAGE_DEPTH = 10
MAX_LATCHED = 64
UNNUMBERED = 2**63
"""Middleware that does not number its messages gives the largest number."""


def wanted_topics(p: RecorderParameters) -> tuple[str, ...]:
    """Topics other than images, as a node may name them."""
    executor = tuple(
        f"{p.executor_node}/{name}"
        for name in ("executor_status", "joint_commands", "intervention", "teleop", "halt")
    )
    return (
        "joint_states", "prompt", f"{p.policy_node}/action_chunk", f"{p.policy_node}/status",
        *executor, *COMMAND_TOPICS, f"{p.task_node}/status", "/diagnostics",
        *(name for name in p.extra_topics if name),
    )  # fmt: skip


class RecordedTopics:
    """Subscribes to what there is, again and again; `look` is to be called about once a second.

    Args:
        node: owner of the subscriptions.
        parameters: name the topics.
        keep: gets every message.
        lose: gets topic and number of messages that the middleware lost.
        hooks: topic as wanted -> called with the bytes of each message after `keep`.

    Attributes:
        latched: newest messages of latched topics, and the newest prompt.

    """

    def __init__(
        self,
        node: Node,
        parameters: RecorderParameters,
        keep: Callable[[KeptMessage], None],
        lose: Callable[[str, int], None],
        hooks: dict[str, Callable[[bytes], None]],
    ) -> None:
        self._node, self._keep, self._lose = node, keep, lose
        resolve = node.resolve_topic_name
        self._topics = {resolve(name): hooks.get(name) for name in wanted_topics(parameters)}
        self._cameras = tuple(resolve(name) for name in parameters.camera_topics if name)
        self._prompt = resolve("prompt")
        self._subscriptions: dict[str, Any] = {}
        self._publishers: dict[str, int] = {}
        self._strange: dict[str, str] = {}
        self._fit = TopicFit(node)
        self.latched: dict[str, KeptMessage] = {}

    @property
    def topics(self) -> tuple[str, ...]:
        """Topics that are subscribed to."""
        return tuple(self._subscriptions)

    @property
    def unheard(self) -> str:
        """Publishers that are not recorded; empty if all are."""
        texts = [*self._strange.values(), self._fit.text]
        return "; ".join(text for text in texts if text)

    def look(self) -> None:
        """Subscribe to what somebody publishes by now, in a way that fits all of them."""
        for name in self._topics:
            if name not in self._subscriptions:
                self._subscribe(name)
        for name, subscription in list(self._subscriptions.items()):
            publishers = self._node.get_publishers_info_by_topic(name)
            self._publishers[name] = len(publishers)
            if publishers and _asks_too_much(subscription.qos_profile, publishers):
                self._node.destroy_subscription(self._subscriptions.pop(name))
                self._subscribe(name)
        for name in self._cameras:
            if name in self._subscriptions or f"{name}{COMPRESSED}" in self._subscriptions:
                continue
            if not self._subscribe(name):
                self._subscribe(f"{name}{COMPRESSED}")
        self._fit.look()

    def first(self, log_ns: int) -> tuple[KeptMessage, ...]:
        """What latched topics said before a bag began, as said at its beginning."""
        return tuple(
            KeptMessage(kept.topic, kept.msgtype, log_ns, kept.raw)
            for kept in self.latched.values()
        )

    def destroy(self) -> None:
        """Unsubscribe."""
        while self._subscriptions:
            self._node.destroy_subscription(self._subscriptions.popitem()[1])

    def _lone(self, topic: str) -> bool:
        """Whether numbers are those of one publisher."""
        return self._publishers.get(topic, 0) == 1

    def _subscribe(self, topic: str) -> bool:
        publishers = self._node.get_publishers_info_by_topic(topic)
        if not publishers:
            return False
        msgtype = publishers[0].topic_type
        kind = message_class(msgtype)
        if kind is None:
            text = f"{topic} is not recorded: {msgtype} cannot be imported here"
            if self._strange.get(topic) != text:
                self._strange[topic] = text
                self._node.get_logger().warning(text)
            return False
        self._strange.pop(topic, None)
        reliable, latched = _reliable(publishers), _latched(publishers)
        profile = QoSProfile(
            depth=IMAGE_DEPTH if msgtype == IMAGE else DEPTH,
            reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
            durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
        )
        hook = self._topics.get(topic)
        remember = latched or topic == self._prompt

        newest = 0  # number that the publisher gave to the message before

        def received(raw: bytes, info: dict[str, Any]) -> None:
            nonlocal newest
            number = int(info.get("publication_sequence_number") or 0)
            if 0 < newest < number < UNNUMBERED and self._lone(topic):
                self._lose(topic, number - newest - 1)
            newest = number
            now_ns = self._node.get_clock().now().nanoseconds
            message = KeptMessage(topic, msgtype, now_ns, bytes(raw))
            if remember and (topic in self.latched or len(self.latched) < MAX_LATCHED):
                self.latched[topic] = message
            self._keep(message)
            if hook is not None:
                hook(message.raw)

        self._subscriptions[topic] = self._node.create_subscription(
            kind, topic, received, profile, raw=True
        )
        return True


def _reliable(publishers: Iterable[Any]) -> bool:
    return all(p.qos_profile.reliability == ReliabilityPolicy.RELIABLE for p in publishers)


def _latched(publishers: Iterable[Any]) -> bool:
    return all(p.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL for p in publishers)


def _asks_too_much(asked: QoSProfile, publishers: Sequence[Any]) -> bool:
    """Whether a publisher that came later cannot be heard."""
    reliable = asked.reliability == ReliabilityPolicy.RELIABLE and not _reliable(publishers)
    latched = asked.durability == DurabilityPolicy.TRANSIENT_LOCAL and not _latched(publishers)
    return reliable or latched


def message_class(msgtype: str) -> Any:
    """Class of a type such as "sensor_msgs/msg/Image"; None if it is not installed."""
    package, _, name = msgtype.partition("/msg/")
    try:
        return getattr(importlib.import_module(f"{package}.msg"), name)
    except (ImportError, AttributeError, ValueError):
        return None
