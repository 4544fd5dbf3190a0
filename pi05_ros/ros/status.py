"""PolicyStatus: what the node runs, latched, published when something in it changes."""

from __future__ import annotations

from typing import Any

from rclpy.duration import Duration
from rclpy.node import Node

from pi05_ros.msg import PolicyStatus
from pi05_ros.ros import qos
from pi05_ros.ros.messages import time_msg
from pi05_ros.runtime.parameters import PolicyParameters


def status_message(
    state: int,
    parameters: PolicyParameters,
    info: Any | None,
    policy_id: str,
    message: str,
    default_prompt: str,
) -> PolicyStatus:
    """Status without its stamp; `info` is the PolicyInfo while a policy is loaded."""
    status = PolicyStatus(
        state=state,
        policy_id=policy_id,
        checkpoint=parameters.checkpoint,
        random_weights=parameters.checkpoint.startswith("random:"),
        robot=parameters.robot,
        denoise_steps=parameters.denoise_steps,
        rate_hz=parameters.rate_hz,
        prompt=parameters.prompt or default_prompt,
        message=message,
    )
    if info is not None:
        status.checkpoint_hash = info.checkpoint_hash
        status.random_weights = bool(info.random_weights)
        status.robot = info.robot
        status.backend = info.backend
        status.backend_reason = info.backend_reason
        status.device = str(info.device)
        status.precision_vision = info.precision.vision
        status.precision_prefill = info.precision.prefill
        status.precision_denoise = info.precision.denoise
        status.horizon = info.horizon
        status.step_s = info.step_s
    return status


class StatusPublisher:
    """Publishes a status if it differs from the one before."""

    def __init__(self, node: Node) -> None:
        self._node = node
        # Not a lifecycle publisher: it has to speak while the node is unconfigured too.
        self._publisher = node.create_publisher(PolicyStatus, "~/status", qos.LATCHED)
        self._last: PolicyStatus | None = None

    def publish(self, status: PolicyStatus, *, force: bool = False) -> None:
        """Stamp and publish; `force` sends it even if nothing changed."""
        if status == self._last and not force:
            return
        self._last = status
        stamped = PolicyStatus(
            **{name: getattr(status, name) for name in status.get_fields_and_field_types()}
        )
        stamped.stamp = time_msg(self._node.get_clock().now().nanoseconds)
        self._publisher.publish(stamped)

    def flush(self, timeout_s: float) -> None:
        """Wait until subscribers have the last status, for the end of the process."""
        if hasattr(self._publisher, "wait_for_all_acked"):
            self._publisher.wait_for_all_acked(Duration(nanoseconds=int(timeout_s * 1e9)))
