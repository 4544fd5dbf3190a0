"""Subscriptions to the cameras and the joint states, feeding `Inputs`.

Callbacks check the few header fields that decide whether a message is usable and keep a
reference; pixels are touched in the worker thread, and only those that are used.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription
from sensor_msgs.msg import CompressedImage, Image, JointState

from pi05_ros.ros import qos
from pi05_ros.ros.managed import ManagedPart
from pi05_ros.ros.policy_host import PolicyHost
from pi05_ros.runtime import conversion
from pi05_ros.runtime.edge_log import EdgeLog
from pi05_ros.runtime.observation_buffer import Inputs
from pi05_ros.runtime.parameters import ParameterError, PolicyParameters
from pi05_ros.runtime.sources import JOINTS, camera_source, limits, make_inputs


class _CameraSubscription:
    """Subscription of one camera that follows the reliability of its publishers."""

    def __init__(
        self,
        node: Node,
        kind: Any,
        topic: str,
        received: Callable[[Any], None],
        reliability: str,
    ) -> None:
        self._node = node
        self._kind = kind
        self._topic = topic
        self._received = received
        self._reliability = reliability
        self._subscription: Subscription | None = None
        self._profile: QoSProfile | None = None
        self.follow()

    def follow(self) -> None:
        """Subscribe again if another reliability is wanted now."""
        wanted = self._wanted()
        if wanted is not self._profile:
            self.destroy()
            self._profile = wanted
            self._subscription = self._node.create_subscription(
                self._kind,
                self._topic,
                self._received,
                qos.own(wanted),
                qos_overriding_options=qos.overridable_depth(),
            )

    def destroy(self) -> None:
        """Remove the subscription."""
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
            self._subscription = self._profile = None

    def _wanted(self) -> QoSProfile:
        if self._reliability != "auto":
            return qos.INPUT_RELIABLE if self._reliability == "reliable" else qos.INPUT
        topic = self._node.resolve_topic_name(self._topic)
        publishers = self._node.get_publishers_info_by_topic(topic)
        if not publishers:
            return self._profile or qos.INPUT
        reliable = all(
            item.qos_profile.reliability == ReliabilityPolicy.RELIABLE for item in publishers
        )
        return qos.INPUT_RELIABLE if reliable else qos.INPUT


class Subscriptions(ManagedPart):
    """The subscriptions of one node, and the buffers that they fill.

    Args:
        node: creates the subscriptions.
        host: brings the robot profile.
        on_sample: called after each accepted message.
        log: told about bad messages.

    Attributes:
        inputs: the buffers; without sources while the node is not configured.
        cameras: role -> (source name, converter from the stored payload to RGB).

    """

    def __init__(
        self, node: Node, host: PolicyHost, on_sample: Callable[[], None], log: EdgeLog
    ) -> None:
        self._node = node
        self._host = host
        self._on_sample = on_sample
        self._log = log
        self._camera_subscriptions: list[_CameraSubscription] = []
        self._joint_subscription: Subscription | None = None
        self._roles: tuple[str, ...] = ()
        self.cameras: dict[str, tuple[str, Callable[[Any], np.ndarray]]] = {}
        self.inputs = Inputs((), limits(PolicyParameters(), ()))

    def configure(self, parameters: PolicyParameters) -> None:
        """Subscribe to the cameras that are wanted and to the joint states."""
        robot = self._host.policy.robot
        roles = parameters.roles or robot.camera_roles
        check_roles(roles, robot)
        self._roles = tuple(roles)
        self.inputs = make_inputs(parameters, self._roles, robot.state_names)
        for role in roles:
            self._add_camera(role, parameters.transport(role), parameters.camera_reliability)
        self._joint_subscription = self._node.create_subscription(
            JointState,
            JOINTS,
            self._receive_joints,
            qos.own(qos.JOINTS),
            qos_overriding_options=qos.overridable(),
        )

    def apply(self, parameters: PolicyParameters) -> None:
        """Take over changed limits."""
        self.inputs.limits = limits(parameters, self._roles)

    def cleanup(self) -> None:
        """Remove the subscriptions; samples are freed."""
        while self._camera_subscriptions:
            self._camera_subscriptions.pop().destroy()
        if self._joint_subscription is not None:
            self._node.destroy_subscription(self._joint_subscription)
            self._joint_subscription = None
        self._roles = ()
        self.cameras = {}
        self.inputs = Inputs((), limits(PolicyParameters(), ()))

    def follow_publishers(self) -> None:
        """Adapt the reliability of camera subscriptions; to be called now and then."""
        for subscription in self._camera_subscriptions:
            subscription.follow()

    def _add_camera(self, role: str, transport: str, reliability: str) -> None:
        name = camera_source(role)
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
            raise ParameterError(
                f"camera role {role!r} is no ROS name, so there can be no topic for it; accepted: "
                "letters, digits and _ (LeRobot: give the feature another role with camera_map)"
            )
        topic = f"{name}/image_raw"
        if transport == "compressed":
            kind, topic = CompressedImage, f"{topic}/compressed"
            check, convert = conversion.check_compressed, conversion.compressed_to_rgb
        else:
            kind = Image
            check, convert = conversion.check_image, conversion.image_to_rgb
        self.cameras[role] = (name, convert)
        self._camera_subscriptions.append(
            _CameraSubscription(
                self._node, kind, topic, self._receiver(name, _keep(check)), reliability
            )
        )

    def _receive_joints(self, message: JointState) -> None:
        source = self.inputs.sources[JOINTS]
        dropped = source.dropped.total()
        stamp_ns = conversion.stamp_ns(message.header.stamp)
        now_ns = self._node.get_clock().now().nanoseconds
        if self.inputs.offer_joints(JOINTS, message, stamp_ns, now_ns, time.monotonic_ns()):
            self._on_sample()
        if source.dropped.total() != dropped:
            self._log.report(JOINTS, "dropped", source.last_error)

    def _receiver(self, name: str, accept: Callable[[Any], Any]) -> Callable[[Any], None]:
        """Subscription callback: `accept` turns a message into the payload that is kept."""

        def received(message: Any) -> None:
            mono_ns = time.monotonic_ns()
            try:
                payload = accept(message)
                stamp_ns = conversion.stamp_ns(message.header.stamp)
            except conversion.ConversionError as error:
                self.inputs.reject(name, error.code, str(error), mono_ns)
                self._log.report(name, error.code, str(error))
                return
            now_ns = self._node.get_clock().now().nanoseconds
            if self.inputs.offer(name, payload, stamp_ns, now_ns, mono_ns):
                self._on_sample()
            else:
                self._log.report(name, "dropped", self.inputs.sources[name].last_error)

        return received


def check_roles(roles: Sequence[str], robot: Any) -> None:
    """Refuse cameras that the robot lacks, and a choice without those that it needs."""
    unknown = [role for role in roles if role not in robot.camera_roles]
    if unknown:
        raise ParameterError(
            f"camera_roles names {', '.join(unknown)}; {robot.name} has "
            f"{', '.join(robot.camera_roles)}"
        )
    missing = [role for role in robot.required_roles if role not in roles]
    if missing:
        raise ParameterError(f"camera_roles lacks {', '.join(missing)}, which {robot.name} needs")


def _keep(check: Callable[[Any], None]) -> Callable[[Any], Any]:
    def accept(message: Any) -> Any:
        check(message)
        return message

    return accept
