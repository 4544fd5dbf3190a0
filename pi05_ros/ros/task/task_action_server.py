"""An action server whose goals end when the node says so, in the node's only thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.action import ActionServer
from rclpy.action.server import ServerGoalHandle

from pi05_ros.runtime.task.task_goal import CANCELLED, DONE


class LateActionServer(ActionServer):
    """Accepted goals are executing at once; `complete` ends them.

    An execute callback of rclpy has to last as long as its goal: in a thread of its own, or as a
    coroutine, which an executor of Jazzy turns over without a pause while it waits.
    """

    def notify_execute(
        self, goal_handle: ServerGoalHandle, execute_callback: Callable[..., Any] | None
    ) -> None:
        """Do nothing yet."""

    def complete(self, goal_handle: ServerGoalHandle, reason: str, result: Any) -> None:
        """End a goal; the result is sent by the next turns of the executor."""

        def execute(handle: ServerGoalHandle) -> Any:
            if reason == DONE:
                handle.succeed()
            elif reason == CANCELLED and handle.is_cancel_requested:
                handle.canceled()
            else:
                handle.abort()
            return result

        super().notify_execute(goal_handle, execute)
