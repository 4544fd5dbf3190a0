"""Subscriptions that keep the facts of tasks: what policy, executor and recorder say."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.node import Node

from pi05_ros.msg import ActionChunk, ExecutorStatus, PolicyStatus, RecorderStatus
from pi05_ros.ros import qos
from pi05_ros.ros.topic_fit import TopicFit
from pi05_ros.runtime.task.task_facts import TaskFacts
from pi05_ros.runtime.task.task_parameters import TaskParameters

MODES = {
    ExecutorStatus.MODE_WAITING: "waiting",
    ExecutorStatus.MODE_FOLLOWING: "following",
    ExecutorStatus.MODE_HOLDING: "holding",
    ExecutorStatus.MODE_STOPPED: "stopped",
    ExecutorStatus.MODE_FAULT: "fault",
    ExecutorStatus.MODE_TELEOPERATED: "teleoperated",
}


class TaskInputs:
    """Writes `facts` from what the other nodes publish.

    Args:
        node: owner of the subscriptions.
        parameters: name the other nodes.
        facts: what is written.
        now_s: the clock of tasks.

    """

    def __init__(
        self, node: Node, parameters: TaskParameters, facts: TaskFacts, now_s: Callable[[], float]
    ) -> None:
        self._node, self._facts, self._now_s = node, facts, now_s
        policy, executor = parameters.policy_node, parameters.executor_node
        self._policy_topics = (f"{policy}/status", f"{policy}/action_chunk")
        self._executor_topic = f"{executor}/executor_status"
        self._policy_name = node.resolve_topic_name(policy)
        subscribe = node.create_subscription
        self._subscriptions: list[Any] = [
            subscribe(PolicyStatus, self._policy_topics[0], self._policy, qos.LATCHED),
            subscribe(ActionChunk, self._policy_topics[1], self._chunk, qos.CHUNK),
            subscribe(DiagnosticArray, "/diagnostics", self._diagnostics, qos.DIAGNOSTICS),
            subscribe(ExecutorStatus, self._executor_topic, self._executor, qos.LATCHED),
            subscribe(
                RecorderStatus, f"{parameters.recorder_node}/status", self._recorder, qos.LATCHED
            ),
        ]

    def destroy(self) -> None:
        """Unsubscribe."""
        while self._subscriptions:
            self._node.destroy_subscription(self._subscriptions.pop())

    def tell_misfits(self, fit: TopicFit, end_topic: str) -> None:
        """Write who cannot be heard.

        Args:
            fit: has looked.
            end_topic: what is to end the task; empty if no topic is.

        """
        found = [text for topic in self._policy_topics if (text := fit.deaf_to(topic))]
        self._facts.policy.unheard = "; ".join(found)
        self._facts.executor.unheard = fit.deaf_to(self._executor_topic)
        self._facts.end_unheard = fit.deaf_to(end_topic) if end_topic else ""

    def _chunk(self, message: ActionChunk) -> None:
        policy = self._facts.policy
        policy.seen_s = time.monotonic()
        policy.chunks += 1
        policy.chunk_s = self._now_s()
        policy.chunk_id = message.chunk_id
        policy.chunk_prompt = message.prompt
        policy.inference_ms = message.timings.inference_ms
        observed, published = message.observation_stamp, message.published_stamp
        policy.observation_to_chunk_ms = (
            1e3 * (published.sec - observed.sec) + (published.nanosec - observed.nanosec) / 1e6
        )

    def _policy(self, message: PolicyStatus) -> None:
        policy = self._facts.policy
        policy.seen_s = time.monotonic()
        policy.active = message.state == PolicyStatus.STATE_ACTIVE
        policy.policy_id = message.policy_id
        policy.prompt = message.prompt
        policy.message = message.message

    def _diagnostics(self, message: DiagnosticArray) -> None:
        ours = [s for s in message.status if s.name.startswith(f"{self._policy_name}:")]
        if ours:
            policy = self._facts.policy
            policy.seen_s = time.monotonic()
            bad = [s.message for s in ours if s.level != DiagnosticStatus.OK and s.message]
            policy.complaint = "; ".join(bad)[:300]

    def _executor(self, message: ExecutorStatus) -> None:
        executor = self._facts.executor
        executor.seen_s = time.monotonic()
        executor.mode = message.mode
        executor.mode_name = MODES.get(message.mode, "")
        executor.following = message.mode == ExecutorStatus.MODE_FOLLOWING
        executor.reason = message.reason
        executor.fault = message.fault
        executor.enabled = message.enabled
        executor.stopped, executor.halted = message.stopped, message.halted
        executor.intervention = message.intervention
        executor.speed_scale, executor.lag_s = message.speed_scale, message.lag_s
        executor.joints = tuple(message.joints)

    def _recorder(self, message: RecorderStatus) -> None:
        recorder = self._facts.recorder
        recorder.recording = message.state == RecorderStatus.STATE_RECORDING
        recorder.goal_id, recorder.bag_path = message.goal_id, message.bag_path
        recorder.whole, recorder.message = message.whole, message.message
