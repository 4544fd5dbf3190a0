"""Publishers that a node cannot hear, and readers that cannot hear what it commands.

The middleware connects a publisher and a subscription only if message type and QoS fit, and a
program sees nothing of a pair that it leaves apart, whenever the other one comes. Nodes look once
a second and name such pairs in their log and in /diagnostics.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.duration import Infinite
from rclpy.node import Node
from rclpy.qos import QoSCompatibility, QoSProfile, qos_check_compatible

from pi05_ros.runtime.edge_log import EdgeLog
from pi05_ros.runtime.text import printable

MOST_NAMED = 3
"""Endpoints of one topic that are named one by one."""
_NAMELESS = "_NODE_NAME_UNKNOWN_"


@dataclass(frozen=True)
class TopicSide:
    """One side of a topic: its message type, as in "std_msgs/msg/Bool", and its QoS."""

    kind: str
    profile: QoSProfile


@dataclass(frozen=True)
class Misfit:
    """What is wrong with a topic.

    Attributes:
        text: who does not fit, and why.
        alone: whether nobody on the other side fits.
        nameless: whether the node of one is not known, or not yet.

    """

    text: str
    alone: bool
    nameless: bool


def type_name(message_class: Any) -> str:
    """Name of a message class, as in "std_msgs/msg/Bool"."""
    package, part = str(message_class.__module__).split(".")[:2]
    return f"{package}/{part}/{message_class.__name__}"


def node_of(endpoint: Any) -> str:
    """Full name of the node that an endpoint of a topic belongs to."""
    return f"{endpoint.node_namespace.rstrip('/')}/{endpoint.node_name}"


def unheard_publishers(node: Node, topic: str, ours: Sequence[TopicSide]) -> Misfit | None:
    """Publishers of a topic that none of a node's subscriptions to it can hear."""
    asked = ", ".join(sorted({side.kind for side in ours}))
    return _misfit(
        node.get_publishers_info_by_topic(topic),
        ours,
        lambda info, side: _apart(info.qos_profile, side.profile),
        lambda who, kind: f"{who} publishes {kind} on {topic}; read: {asked}",
        lambda who, why: f"{who} publishes {topic} with QoS that does not fit: {why}",
    )


def deaf_readers(node: Node, topic: str, ours: Sequence[TopicSide]) -> Misfit | None:
    """Subscriptions to a topic that can hear none of a node's publishers on it."""
    sent = ", ".join(sorted({side.kind for side in ours}))
    return _misfit(
        node.get_subscriptions_info_by_topic(topic),
        ours,
        lambda info, side: _apart(side.profile, info.qos_profile),
        lambda who, kind: f"{who} reads {kind} from {topic}; published: {sent}",
        lambda who, why: f"{who} reads {topic} with QoS that does not fit: {why}",
    )


def _apart(publisher: QoSProfile, subscription: QoSProfile) -> str:
    """Why the QoS of two keeps them apart, else empty."""
    found, why = qos_check_compatible(_explicit(publisher), _explicit(subscription))
    if found != QoSCompatibility.ERROR:
        return ""
    parts = [part.removeprefix("ERROR: ") for part in why.split(";") if part.startswith("ERROR")]
    return ", ".join(parts).lower()


def _explicit(profile: QoSProfile) -> QoSProfile:
    """The same with what is left out written out: no deadline is an infinite one."""
    full = copy.copy(profile)
    if not full.deadline.nanoseconds:
        full.deadline = Infinite
    if not full.liveliness_lease_duration.nanoseconds:
        full.liveliness_lease_duration = Infinite
    return full


def _misfit(
    others: Iterable[Any],
    ours: Sequence[TopicSide],
    apart: Callable[[Any, TopicSide], str],
    of_type: Callable[[str, str], str],
    of_qos: Callable[[str, str], str],
) -> Misfit | None:
    texts, fitting, nameless = [], 0, False
    for info in others:
        known = info.node_name != _NAMELESS
        who = node_of(info) if known else "somebody"
        same = [side for side in ours if side.kind == info.topic_type]
        reasons = [apart(info, side) for side in same]
        if not same:
            texts.append(of_type(who, info.topic_type))
        elif all(reasons):
            texts.append(of_qos(who, reasons[-1]))
        else:
            fitting += 1
            continue
        nameless |= not known
    texts = sorted(set(texts))
    if not texts:
        return None
    more = f"; and {len(texts) - MOST_NAMED} more" if len(texts) > MOST_NAMED else ""
    return Misfit("; ".join(texts[:MOST_NAMED]) + more, not fitting, nameless)


class TopicFit:
    """Looks at everything that a node reads, and at what it commands.

    Args:
        node: whose subscriptions are looked at.
        commands: topics that it publishes, whose readers matter.

    Attributes:
        found: topic -> what is wrong with it, as of the last `look`.

    """

    def __init__(self, node: Node, commands: Sequence[str] = ()) -> None:
        self._node = node
        self._commands = frozenset(node.resolve_topic_name(name) for name in commands)
        self._log = EdgeLog(node.get_logger())
        self._logged: set[str] = set()
        self._nameless: set[str] = set()
        self.found: dict[str, Misfit] = {}

    @property
    def text(self) -> str:
        """All that does not fit; empty if all does."""
        return printable("; ".join(item.text for _, item in sorted(self.found.items())))

    def deaf_to(self, topic: str) -> str:
        """Why nobody can be heard on a topic though somebody publishes it, else empty."""
        item = self.found.get(self._node.resolve_topic_name(topic))
        return item.text if item is not None and item.alone else ""

    def look(self) -> None:
        """Ask the middleware who is there by now, and log what is new; once a second or so."""
        found = {}
        for topic, ours in _sides(self._node.subscriptions).items():
            if item := unheard_publishers(self._node, topic, ours):
                found[topic] = item
        for topic, ours in _sides(self._node.publishers).items():
            if topic in self._commands and (item := deaf_readers(self._node, topic, ours)):
                found[topic] = item
        # Names come a moment after the endpoints: what has none is looked at twice.
        nameless = {topic for topic, item in found.items() if item.nameless}
        for topic in nameless - self._nameless:
            del found[topic]
        self.found, self._nameless = found, nameless
        self._logged |= set(found)
        for topic in self._logged:
            text = found[topic].text if topic in found else ""
            self._log.report(topic, text, text)

    def look_each_second(self) -> None:
        """For nodes that have no such timer themselves."""
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._node.create_timer(1.0, self.look, clock=steady)


def _sides(endpoints: Iterable[Any]) -> dict[str, list[TopicSide]]:
    """Subscriptions or publishers of a node, by topic."""
    sides = defaultdict(list)
    for each in endpoints:
        sides[each.topic_name].append(TopicSide(type_name(each.msg_type), each.qos_profile))
    return sides
