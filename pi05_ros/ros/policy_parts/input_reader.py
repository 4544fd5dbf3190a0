"""A subscription whose messages are taken by the executor, or on demand."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from rclpy.callback_groups import CallbackGroup
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.subscription import Subscription

from pi05_ros.ros import qos
from pi05_ros.ros.policy_parts.frame_bell import FrameBell, NoBellError
from pi05_ros.ros.policy_parts.image_take import Taken, rclpy_take
from pi05_ros.runtime.inputs.frame_clock import FrameClock
from pi05_ros.runtime.inputs.observation_buffer import NS
from pi05_ros.runtime.inputs.publishers import Publishers

LONGEST_WAIT_NS = 60 * NS  # of a message in the middleware
MOST_AT_ONCE = 1000
"""Messages of one source taken in a row before other sources have their turn."""


class TakenOnDemand(CallbackGroup):
    """Keeps the executor from taking messages: they stay in the middleware until `take`."""

    def can_execute(self, entity: Any) -> bool:
        """Nothing: what waits for events of a reader wakes up for its messages, too."""
        return False

    def beginning_execution(self, entity: Any) -> bool:
        """Always possible: there is one executor thread."""
        return True

    def ending_execution(self, entity: Any) -> None:
        """Nothing to release."""


class InputReader:
    """One subscription, whose messages are taken by the executor or on demand.

    Args:
        node: creates the subscription.
        kind, topic: message type and name.
        received: gets a message and the monotonic time at which it came.
        malformed: gets the error of a message that could not be read.
        wanted: returns the QoS profile that is right now.
        options: further arguments of create_subscription.
        group: of messages that are taken on demand; None leaves them to the executor.
        take: gets the next message that waits.
        has_bell: of messages that are taken on demand, those that are waited for.

    Attributes:
        topic: its name as given.
        publishers: of the messages that were taken on demand.
        bell: rings when a message has come; None where there is none.

    """

    def __init__(
        self,
        node: Node,
        kind: Any,
        topic: str,
        received: Callable[[Any, int], None],
        malformed: Callable[[Exception], None],
        wanted: Callable[[QoSProfile | None], QoSProfile],
        options: Mapping[str, Any],
        group: CallbackGroup | None,
        take: Callable[[Subscription], Taken | None] = rclpy_take,
        *,
        has_bell: bool = False,
    ) -> None:
        self._node = node
        self._kind = kind
        self.topic = topic
        self._received = received
        self._malformed = malformed
        self._take = take
        self._wanted = wanted
        self._options = dict(options)
        if group is not None:
            self._options["callback_group"] = group
            self._options["event_callbacks"] = SubscriptionEventCallbacks(
                use_default_callbacks=False
            )
        self._subscription: Subscription | None = None
        self._profile: QoSProfile | None = None
        self._has_bell = has_bell and group is not None
        self.bell: FrameBell | None = None
        self.frames = FrameClock()
        self.publishers = Publishers()
        self._published = 0  # messages of all publishers
        self.overwritten = 0
        self.created_ns = 0
        self.follow()

    def follow(self) -> None:
        """Subscribe again if another QoS profile is wanted now."""
        wanted = self._wanted(self._profile)
        if wanted is not self._profile:
            self.destroy()
            self._profile = wanted
            self.frames = FrameClock()
            self.created_ns = time.monotonic_ns()
            self._subscription = self._node.create_subscription(
                self._kind, self.topic, self._executed, qos.own(wanted), **self._options
            )
            if self._has_bell:
                self._add_bell(self._subscription)

    def take(self) -> None:
        """Take every message that is there; the queue is as deep as its QoS says."""
        subscription = self._subscription
        if subscription is None:
            return
        if self.bell is not None:
            self.bell.silence()  # before: what comes meanwhile rings again
        for _ in range(MOST_AT_ONCE):
            try:
                taken = self._take(subscription)
            except Exception as error:  # a text that is not UTF-8, for example
                self._malformed(error)
                continue
            if taken is None:
                return
            now_ns, mono_ns = time.time_ns(), time.monotonic_ns()
            # The middleware stamps with the system clock, which may have been set meanwhile.
            waited_ns = now_ns - (taken.received_ns or now_ns)
            if not 0 <= waited_ns <= LONGEST_WAIT_NS:
                waited_ns = 0
            published = self.publishers.observe(taken.publisher, taken.sequence, mono_ns)
            self._published += published
            self.overwritten += published - 1
            number = self._published if taken.sequence else 0  # 0: nothing can be predicted
            self.frames.observe(mono_ns - waited_ns, number)
            self._received(taken.message, mono_ns - waited_ns)

    def destroy(self) -> None:
        """Remove the subscription."""
        if self.bell is not None:
            self.bell.close()
            self.bell = None
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
            self._subscription = self._profile = None

    def _add_bell(self, subscription: Subscription) -> None:
        try:
            self.bell = FrameBell(subscription)
        except NoBellError as error:
            self._node.get_logger().info(
                f"{self.topic} is looked for when its next message is expected: {error}"
            )

    def _executed(self, message: Any) -> None:
        self._received(message, time.monotonic_ns())
