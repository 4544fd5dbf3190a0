"""What a task does to policy, executor and recorder: services that are asked until they answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rcl_interfaces.srv import SetParameters
from rclpy.client import Client
from rclpy.event_handler import PublisherEventCallbacks
from rclpy.exceptions import InvalidTopicNameException
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.validate_full_topic_name import validate_full_topic_name
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, Empty, String
from std_srvs.srv import SetBool, Trigger

from pi05_ros.ros import qos
from pi05_ros.runtime.task.task_facts import Stillness, TaskFacts
from pi05_ros.runtime.task.task_goal import End, TaskGoal
from pi05_ros.runtime.task.task_parameters import TaskParameters
from pi05_ros.runtime.text import printable

BOOL = "std_msgs/msg/Bool"
JOINTS = "joint_states"
AGAIN_S = 1.0
"""A server may not know a client yet that knows the server; what is asked here may be repeated."""
# Of publishers of either kind. Not latched: a success of the task before is none of this one.
_VERDICTS = (
    QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE),
    QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT),
)


class RepeatedCall:
    """A request that is sent again each second until it is answered.

    Args:
        client: of the service.
        request: what is sent.
        judge: what an answer says against it, empty if nothing.

    """

    def __init__(self, client: Client, request: Any, judge: Callable[[Any], str]) -> None:
        self.problem = ""
        self._client, self._request, self._judge = client, request, judge
        self._future: Any = None
        self._sent_s = 0.0
        self.poll()

    def poll(self) -> bool:
        """Whether it has been answered."""
        if self._future is not None and self._future.done():
            self.problem = self._judge(self._future.result())
            return True
        now_s = time.monotonic()
        if (self._future is None or now_s - self._sent_s > AGAIN_S) and (
            self._client.service_is_ready()
        ):
            if self._future is not None:
                self._client.remove_pending_request(self._future)
            self._sent_s = now_s
            self._future = self._client.call_async(self._request)
        return False


class TaskCalls:
    """The ports of tasks, and the subscriptions that last as long as one.

    Args:
        node: owner of clients, publishers and subscriptions.
        parameters: name the other nodes.
        facts: written by the success topic.
        stillness: fed with joint states.
        now_s: the clock of tasks.

    Attributes:
        end_topic: what is listened to for the end of the task; empty if nothing is.

    """

    def __init__(
        self, node: Node, parameters: TaskParameters, facts: TaskFacts, stillness: Stillness,
        now_s: Callable[[], float],
    ) -> None:  # fmt: skip
        self._node, self._facts, self._stillness, self._now_s = node, facts, stillness, now_s
        policy, executor = parameters.policy_node, parameters.executor_node
        self._enable = node.create_client(SetBool, f"{executor}/enable")
        self._hold = node.create_client(Trigger, f"{executor}/hold")
        self._speed = node.create_client(SetParameters, f"{executor}/set_parameters")
        self._reset = node.create_client(Trigger, f"{policy}/reset")
        # Policy nodes have a latched subscription beside the one that takes this.
        quiet = PublisherEventCallbacks(use_default_callbacks=False)
        self._prompt = node.create_publisher(String, "prompt", qos.PROMPT, event_callbacks=quiet)
        self._heartbeat = node.create_publisher(Empty, f"{executor}/heartbeat", 1)
        self._watching: list[Any] = []
        self.end_topic = ""

    def permit(self, allowed: bool) -> RepeatedCall:
        """Give or withdraw the executor's permission."""
        return RepeatedCall(self._enable, SetBool.Request(data=allowed), _said)

    def reset_policy(self) -> RepeatedCall:
        """Have the policy node forget buffers and chunks."""
        return RepeatedCall(self._reset, Trigger.Request(), _said)

    def set_speed(self, scale: float) -> RepeatedCall:
        """Set the executor's speed_scale."""
        value = Parameter("speed_scale", value=float(scale)).to_parameter_msg()
        return RepeatedCall(self._speed, SetParameters.Request(parameters=[value]), _set)

    def hold_chunks(self) -> RepeatedCall:
        """Have the executor follow no chunk until permission is given or withdrawn."""
        return RepeatedCall(self._hold, Trigger.Request(), _said)

    def send_prompt(self, prompt: str) -> None:
        """Publish the prompt, as anybody may."""
        self._prompt.publish(String(data=printable(prompt)))

    def beat(self) -> None:
        """Tell the executor that this process lives."""
        self._heartbeat.publish(Empty())

    def watch(self, goal: TaskGoal) -> None:
        """Listen to what may end the task."""
        self.ignore()
        subscribe = self._node.create_subscription
        if goal.end is End.SUCCESS_TOPIC:
            self.end_topic = goal.success_topic
            for each in _VERDICTS:
                self._watching.append(subscribe(Bool, goal.success_topic, self._verdict, each))
        elif goal.end is End.HOLD:
            self.end_topic = JOINTS
            self._watching = [subscribe(JointState, JOINTS, self._joints, qos.JOINTS)]

    def ignore(self) -> None:
        """Stop listening to it."""
        self.end_topic = self._facts.end_unheard = ""
        while self._watching:
            self._node.destroy_subscription(self._watching.pop())

    def destroy(self) -> None:
        """Release everything."""
        self.ignore()
        for client in (self._enable, self._hold, self._speed, self._reset):
            self._node.destroy_client(client)
        for publisher in (self._prompt, self._heartbeat):
            self._node.destroy_publisher(publisher)

    def _verdict(self, message: Bool) -> None:
        self._facts.success = bool(message.data)

    def _joints(self, message: JointState) -> None:
        ours = self._facts.executor.joints
        found = {n: p for n, p in zip(message.name, message.position, strict=False) if n in ours}
        if found:
            self._stillness.add(found, self._now_s())


def verdict_topic_problem(node: Node, topic: str) -> str:
    """Why a topic cannot say that a task is done, else empty."""
    try:
        name = node.resolve_topic_name(topic)
        validate_full_topic_name(name)
    except (InvalidTopicNameException, ValueError) as error:
        return f"success_topic {topic!r} is no name of a topic: {error}"
    types = dict(node.get_topic_names_and_types()).get(name, [BOOL])
    if types != [BOOL]:
        return f"success_topic {name} has the type {', '.join(types)}; accepted: {BOOL}"
    return ""


def _said(answer: Any) -> str:
    return "" if answer.success else printable(answer.message or "no reason given")


def _set(answer: Any) -> str:
    return "; ".join(printable(r.reason) for r in answer.results if not r.successful)
