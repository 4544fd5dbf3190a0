"""Keeps an out-of-order transition request from killing the process.

rclpy of Humble and Jazzy lets the RCLError of such a request escape from the change_state
service into the executor, and the process dies. Later ones answer false by themselves.
"""

from __future__ import annotations

from typing import Any

from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode


def guard_change_state(node: LifecycleNode) -> None:
    """Make change_state answer ``success = false`` to a transition the state does not allow."""
    service = getattr(node, "_service_change_state", None)
    if service is None:  # made without communication interface
        return
    original = service.callback

    def change_state(request: Any, response: Any) -> Any:
        try:
            return original(request, response)
        except rclpy_implementation.RCLError:
            state = node._state_machine.current_state[1]
            wanted = request.transition.label or request.transition.id
            node.get_logger().warning(
                f"transition {wanted} is not possible while the node is {state}"
            )
            response.success = False
            return response

    service.callback = change_state
