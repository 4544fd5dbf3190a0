"""Subscriptions to the cameras and the joint states, feeding `Inputs`.

Callbacks check the few header fields that decide whether a message is usable and keep a
reference; pixels are touched in the worker thread, and only those that are used.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from rclpy.node import Node
from rclpy.subscription import Subscription
from sensor_msgs.msg import CompressedImage, Image, JointState

from pi05_ros.ros import conversion, qos
from pi05_ros.ros.edge_log import EdgeLog
from pi05_ros.ros.freshness import JOINTS, camera_source, limits
from pi05_ros.ros.inputs import Inputs
from pi05_ros.ros.parameters import PolicyParameters


class Sources:
    """The subscriptions of one configured node.

    Args:
        node: creates the subscriptions.
        roles: cameras in the order of the robot profile.
        joint_names: state order of the robot profile.
        parameters: transports and limits.
        on_sample: called after each accepted message.
        log: told about bad messages.

    Attributes:
        inputs: the buffers.
        cameras: role -> (source name, converter from the stored payload to RGB).

    """

    def __init__(
        self,
        node: Node,
        roles: Sequence[str],
        joint_names: Sequence[str],
        parameters: PolicyParameters,
        on_sample: Callable[[], None],
        log: EdgeLog,
    ) -> None:
        self._node = node
        self._on_sample = on_sample
        self._log = log
        self._joints = conversion.JointMap(joint_names)
        self._roles = tuple(roles)
        self._subscriptions: list[Subscription] = []
        self.cameras: dict[str, tuple[str, Callable[[Any], np.ndarray]]] = {}
        self.inputs = Inputs(
            [*(camera_source(role) for role in roles), JOINTS], limits(parameters, roles)
        )
        try:
            for role in roles:
                self._add_camera(role, parameters.transport(role))
            self._subscribe(JointState, JOINTS, JOINTS, self._joints.state)
        except Exception:
            self.destroy()
            raise

    @property
    def camera_names(self) -> tuple[str, ...]:
        """Source names of the cameras."""
        return tuple(name for name, _ in self.cameras.values())

    @property
    def converters(self) -> Mapping[str, tuple[str, Callable[[Any], np.ndarray]]]:
        """Role -> (source name, payload to RGB)."""
        return self.cameras

    def apply(self, parameters: PolicyParameters) -> None:
        """Take over changed limits."""
        self.inputs.limits = limits(parameters, self._roles)

    def destroy(self) -> None:
        """Remove the subscriptions."""
        while self._subscriptions:
            self._node.destroy_subscription(self._subscriptions.pop())

    def _add_camera(self, role: str, transport: str) -> None:
        name = camera_source(role)
        topic = f"{name}/image_raw"
        if transport == "compressed":
            self.cameras[role] = (name, conversion.compressed_to_rgb)
            self._subscribe(
                CompressedImage, f"{topic}/compressed", name, _keep(conversion.check_compressed)
            )
        else:
            self.cameras[role] = (name, conversion.image_to_rgb)
            self._subscribe(Image, topic, name, _keep(conversion.check_image))

    def _subscribe(self, kind: Any, topic: str, name: str, accept: Callable[[Any], Any]) -> None:
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
                self._log.report(name, "")
                self._on_sample()
            else:
                self._log.report(name, "dropped", self.inputs.sources[name].last_error)

        self._subscriptions.append(
            self._node.create_subscription(
                kind,
                topic,
                received,
                qos.INPUT,
                qos_overriding_options=qos.overridable(),
            )
        )


def _keep(check: Callable[[Any], None]) -> Callable[[Any], Any]:
    def accept(message: Any) -> Any:
        check(message)
        return message

    return accept
