"""Joint states of several arms on one topic, with a prefix for each arm's joint names.

The drivers of two equal arms publish the same joint names in two namespaces. Policy and executor
tell joints apart by name. Stamps stay as they are; each message is passed on as soon as it comes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import JointState

from pi05_ros.ros import parameter_server, process, qos
from pi05_ros.ros.topic_fit import TopicFit
from pi05_ros.runtime.parameter_specs import ParameterError, param, specs_of


def _fault(sources: tuple[str, ...]) -> str | None:
    pairs = [source.partition("=") for source in sources if source]
    accepted = "accepted: topic=prefix, each topic and each prefix once"
    if any(not topic or not sign for topic, sign, _ in pairs):
        return accepted
    topics, prefixes = [pair[0] for pair in pairs], [pair[2] for pair in pairs]
    if len(set(topics)) < len(topics) or len(set(prefixes)) < len(prefixes):
        return accepted
    return None


@dataclass(frozen=True)
class JointStateNamesParameters:
    """Every parameter of the node, read once."""

    sources: tuple[str, ...] = param(
        (),
        "Topics of joint states and what is put before their joint names, `topic=prefix` each, "
        "for example `/follower_left/joint_states=left_`.",
        check=_fault,
    )


# Reliable: other readers of joint states ask for it.
OUT = QoSProfile(depth=50)
SPECS = specs_of(JointStateNamesParameters)


class JointStateNamesNode(Node):
    """Node `pi05_joint_state_names`; keyword arguments are those of rclpy's Node.

    Raises:
        ParameterError: no sources, or sources that are not understood.

    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("pi05_joint_state_names", **kwargs)
        values = parameter_server.declare(self, JointStateNamesParameters)
        sources = [source for source in values.sources if source]
        if not sources:
            raise ParameterError("sources is empty; accepted: a list of topic=prefix")
        self._publisher = self.create_publisher(JointState, "joint_states", OUT)
        own_topic = self.resolve_topic_name("joint_states")
        for source in sources:
            topic, _, prefix = source.partition("=")
            if self.resolve_topic_name(topic) == own_topic:
                raise ParameterError(f"sources has {source}: {own_topic} is where they are put")
            self.create_subscription(JointState, topic, self._forwarder(prefix), qos.JOINTS)
        TopicFit(self).look_each_second()

    def _forwarder(self, prefix: str) -> Callable[[JointState], None]:
        def forward(message: JointState) -> None:
            message.name = [prefix + name for name in message.name]
            self._publisher.publish(message)

        return forward


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM."""
    return process.run_plain(JointStateNamesNode, "pi05_joint_state_names", args)


if __name__ == "__main__":
    sys.exit(main())
