"""The prompt topic, and the one owner of the prompt in use."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.parameter import Parameter
from std_msgs.msg import String

from pi05_ros.ros import qos
from pi05_ros.ros.policy_parts.managed import ManagedPart
from pi05_ros.runtime.parameters import PolicyParameters
from pi05_ros.runtime.text import prompt_in_use

MAX_PROMPT_CHARACTERS = 4096
REMEMBERED = 4096


class PromptTopic(ManagedPart):
    """Writes what the topic says into the parameter `prompt`, and says which prompt is in use.

    Args:
        node: owner of parameter and subscriptions.
        parameters: returns the current ones.
        default: returns the default prompt of the robot profile, empty if there is none.

    """

    def __init__(
        self, node: Node, parameters: Callable[[], PolicyParameters], default: Callable[[], str]
    ) -> None:
        self._node = node
        self._parameters = parameters
        self._default = default
        self._subscriptions: list[Any] = []
        self._seen = SeenStamps(REMEMBERED)

    @property
    def in_use(self) -> str:
        """The parameter, or the profile's default if the parameter has no words in it."""
        return prompt_in_use(self._parameters().prompt, self._default())

    def configure(self, parameters: PolicyParameters) -> None:
        """Subscribe, latched and not.

        A latched reader alone would not match ordinary publishers, an ordinary one alone would
        miss what was latched before it came.
        """
        subscribe = self._node.create_subscription
        quiet = SubscriptionEventCallbacks(use_default_callbacks=False)
        self._subscriptions = [
            subscribe(String, "prompt", self._received, qos.LATCHED, event_callbacks=quiet),
            subscribe(String, "prompt", self._received, qos.PROMPT),
        ]

    def cleanup(self) -> None:
        """Unsubscribe."""
        while self._subscriptions:
            self._node.destroy_subscription(self._subscriptions.pop())

    def _received(self, message: String, info: dict[str, Any]) -> None:
        # A latched message comes to both subscriptions, and again with every new configure.
        if not self._seen.is_new(int(info.get("source_timestamp", 0))):
            return
        text = message.data
        if len(text) > MAX_PROMPT_CHARACTERS:
            self._node.get_logger().warning(
                f"prompt of {len(text)} characters cut to {MAX_PROMPT_CHARACTERS}"
            )
            text = text[:MAX_PROMPT_CHARACTERS]
        self._node.set_parameters([Parameter("prompt", value=text)])


class SeenStamps:
    """Which stamps have been seen, in bounded memory.

    Args:
        capacity: stamps that are remembered one by one. What is older than all that were
            forgotten counts as seen.

    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._order: deque[int] = deque()
        self._seen: set[int] = set()
        self._floor = 0

    def is_new(self, stamp: int) -> bool:
        """Note a stamp; False if it was seen before. 0 is no stamp and always new."""
        if stamp == 0:
            return True
        if stamp in self._seen or stamp <= self._floor:
            return False
        self._seen.add(stamp)
        self._order.append(stamp)
        if len(self._order) > self._capacity:
            oldest = self._order.popleft()
            self._seen.discard(oldest)
            self._floor = max(self._floor, oldest)
        return True
