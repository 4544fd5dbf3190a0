"""What the policy node is made of: parts with the four steps of a managed node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.lifecycle import LifecycleNode
from std_srvs.srv import Trigger

from pi05_ros.msg import ActionChunk
from pi05_ros.ros import process, qos
from pi05_ros.runtime.parameters import PolicyParameters


class ManagedPart:
    """One part of a lifecycle node; each step does nothing by default.

    The node configures and activates its parts in order, and deactivates and cleans them up in
    the reverse order. `cleanup` must also be right for a part that was never configured, or only
    in part.
    """

    def configure(self, parameters: PolicyParameters) -> None:
        """Make what the part needs; an exception fails the transition."""

    def activate(self) -> None:
        """Start work."""

    def deactivate(self) -> None:
        """Stop work."""

    def cleanup(self) -> None:
        """Release everything that `configure` made."""

    def apply(self, parameters: PolicyParameters) -> None:
        """Take over parameters that changed while the node runs."""


class ChunkOutput(ManagedPart):
    """The publisher of action chunks, muted while the node is not active."""

    def __init__(self, node: LifecycleNode) -> None:
        self._node = node
        self._publisher: Any = None
        self._told = False

    def configure(self, parameters: PolicyParameters) -> None:
        """Create the publisher."""
        self._told = False
        self._publisher = self._node.create_lifecycle_publisher(
            ActionChunk,
            "~/action_chunk",
            qos.own(qos.CHUNK),
            qos_overriding_options=qos.overridable(),
        )

    def publish(self, message: ActionChunk) -> None:
        """Hand a chunk to the middleware."""
        self._publisher.publish(message)
        if not self._told:
            self._told = True
            age_s = process.age_s()
            self._node.get_logger().info(f"first chunk {age_s:.1f} s after the process started")

    def cleanup(self) -> None:
        """Destroy the publisher."""
        if self._publisher is not None:
            publisher, self._publisher = self._publisher, None
            self._node.destroy_lifecycle_publisher(publisher)


class ResetService(ManagedPart):
    """The service `~/reset`."""

    def __init__(self, node: LifecycleNode, reset: Callable[[], None]) -> None:
        self._node = node
        self._reset = reset
        self._service: Any = None

    def configure(self, parameters: PolicyParameters) -> None:
        """Offer the service."""
        self._service = self._node.create_service(Trigger, "~/reset", self._on_reset)

    def cleanup(self) -> None:
        """Withdraw the service."""
        if self._service is not None:
            service, self._service = self._service, None
            self._node.destroy_service(service)

    def _on_reset(self, request: Any, response: Any) -> Any:
        self._reset()
        response.success = True
        response.message = "buffers emptied, seed counter at its start, running inference dropped"
        return response
