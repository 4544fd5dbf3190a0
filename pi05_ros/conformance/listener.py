"""Listens to policy nodes and executors and fills their records; sends nothing but questions."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.srv import GetState
from rcl_interfaces.srv import GetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory

from pi05_ros.conformance.chunk_promises import CHUNKS
from pi05_ros.conformance.executor_promises import EXECUTOR_CHECKS
from pi05_ros.conformance.heard import ExecutorRecord, Heard, NodeRecord, PolicyRecord
from pi05_ros.conformance.limits_from_docs import read_limits
from pi05_ros.conformance.policy_promises import POLICY
from pi05_ros.conformance.promises import PromiseFinding
from pi05_ros.msg import ActionChunk, ExecutorStatus, PolicyStatus

DEEP = QoSProfile(depth=1000, reliability=ReliabilityPolicy.RELIABLE)
LATCHED = QoSProfile(
    depth=10,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)
POLICY_PARAMETERS = (
    "rate_hz", "max_answer_age_s", "max_skew_s", "seed", "overlap", "use_sim_time",
)  # fmt: skip
EXECUTOR_PARAMETERS = (
    "control_rate_hz", "allow_random_weights", "limits_file", "output", "outputs_file",
    "gripper_joint", "joints", "acceleration_time_s", "use_sim_time",
)  # fmt: skip
ANSWER_S = 5.0
OWN_POLICY_ID = "conformance"
"""Of chunks that are sent from here."""


class Listener:
    """Subscriptions of one process; `find` adds nodes that are there, `spin` listens.

    Args:
        node: whose subscriptions they are.

    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self.executor = SingleThreadedExecutor(context=node.context)
        self.executor.add_node(node)
        self.policies: dict[str, PolicyRecord] = {}
        self.executors: dict[str, ExecutorRecord] = {}
        self.during: Callable[[], None] | None = None
        """Called now and then while it listens: feeds the nodes in a scripted run."""
        self._began_s = time.monotonic()
        node.create_subscription(DiagnosticArray, "/diagnostics", self._diagnostics, DEEP)

    def find(self, namespace: str = "") -> None:
        """Add the policy nodes and executors below a namespace that are on the graph now."""
        prefix = "/" + namespace.strip("/")
        for topic, types in self.node.get_topic_names_and_types():
            owner, _, name = topic.rpartition("/")
            if not topic.startswith(prefix) or not self.node.count_publishers(topic):
                continue
            if name == "status" and "pi05_ros/msg/PolicyStatus" in types:
                self.add_policy(owner)
            elif name == "executor_status" and "pi05_ros/msg/ExecutorStatus" in types:
                self.add_executor(owner)

    def add_policy(self, name: str) -> PolicyRecord:
        """Record of a policy node by its fully qualified name."""
        if name not in self.policies:
            record = self.policies[name] = PolicyRecord(name)
            take = self._to(record.chunks)
            self._listen(
                ActionChunk,
                f"{name}/action_chunk",
                lambda chunk: take(chunk) if chunk.policy_id != OWN_POLICY_ID else None,
                DEEP,
            )
            self._listen(PolicyStatus, f"{name}/status", self._to(record.statuses), LATCHED)
        return self.policies[name]

    def add_executor(self, name: str) -> ExecutorRecord:
        """Record of an executor by its fully qualified name; its commands come later."""
        if name not in self.executors:
            record = self.executors[name] = ExecutorRecord(name)
            self._listen(
                ExecutorStatus, f"{name}/executor_status", self._to(record.statuses), LATCHED
            )
        return self.executors[name]

    def spin(
        self, seconds: float, until: Callable[[], bool] = lambda: False,
        each: Callable[[], None] | None = None, every_s: float = 0.02,
    ) -> bool:  # fmt: skip
        """Listen for a time, or until it is so; whether it is. `each` is called meanwhile."""
        each = each or self.during
        end, due = time.monotonic() + seconds, 0.0
        while (now := time.monotonic()) < end:
            if until():
                return True
            if each is not None and now >= due:
                due = now + every_s
                each()
            self.executor.spin_once(timeout_sec=min(0.02, end - now))
        return until()

    def ask(self, kind: Any, service: str, request: Any, wait_s: float = ANSWER_S) -> Any:
        """Answer of a service, None if there is none in time."""
        client = self.node.create_client(kind, service)
        try:
            if not self.spin(wait_s, client.service_is_ready):
                return None
            future = client.call_async(request)
            self.spin(wait_s, future.done)
            return future.result() if future.done() else None
        finally:
            self.node.destroy_client(client)

    def learn(self) -> None:
        """Ask all nodes for what the checks need: parameters, and commands of executors."""
        for policy in self.policies.values():
            self._learn(policy, POLICY_PARAMETERS, ("action_chunk", "status"))
        for record in self.executors.values():
            if not record.commands:
                self._learn(record, EXECUTOR_PARAMETERS, ("executor_status",))
                self._listen_to_commands(record)
            record.limits = read_limits(record.parameters)

    def judge(self) -> list[PromiseFinding]:
        """Findings about all nodes."""
        seconds = time.monotonic() - self._began_s
        findings: list[PromiseFinding] = []
        for name, policy in self.policies.items():
            answer = self.ask(GetState, f"{name}/get_state", GetState.Request())
            policy.state = answer.current_state.label if answer is not None else ""
            policy.seconds = seconds
            findings += CHUNKS.judge(name, policy) + POLICY.judge(name, policy)
        for name, record in self.executors.items():
            record.seconds = seconds
            topics = self.chunk_topics(name)
            chunks = [
                chunk.message.random_weights
                for policy in self.policies.values()
                for chunk in policy.chunks
                if f"{policy.node}/action_chunk" in topics
            ]
            record.only_random_chunks = bool(chunks) and all(chunks)
            findings += EXECUTOR_CHECKS.judge(name, record)
        return findings

    def chunk_topics(self, executor: str) -> list[str]:
        """Topics on which an executor takes chunks."""
        namespace, _, name = executor.rpartition("/")
        found = self.node.get_subscriber_names_and_types_by_node(name, namespace or "/")
        return [topic for topic, kinds in found if "pi05_ros/msg/ActionChunk" in kinds]

    def forget(self) -> None:
        """Start all records anew, but for the newest status of each."""
        self._began_s = time.monotonic()
        for record in (*self.policies.values(), *self.executors.values()):
            del record.statuses[:-1]
            for entry in record.entries.values():
                entry.clear()
        for policy in self.policies.values():
            policy.chunks.clear()
        for executor in self.executors.values():
            for series in executor.commands.values():
                series.clear()

    def _learn(self, record: NodeRecord, names: tuple[str, ...], topics: tuple[str, ...]) -> None:
        request = GetParameters.Request(names=list(names))
        answer = self.ask(GetParameters, f"{record.node}/get_parameters", request)
        if answer is not None:
            values = (rclpy.parameter.parameter_value_to_python(item) for item in answer.values)
            record.parameters = {
                name: value for name, value in zip(names, values, strict=True) if value is not None
            }
        for topic in (f"{record.node}/{name}" for name in topics):
            for info in self.node.get_publishers_info_by_topic(topic):
                profile = info.qos_profile
                record.qos[topic] = (
                    f"{profile.reliability.name.lower()} {profile.durability.name.lower()}"
                )

    def _listen_to_commands(self, record: ExecutorRecord) -> None:
        """Commands of the documented default outputs; those of an outputs_file are the user's."""
        if record.parameters.get("outputs_file"):
            return
        namespace = record.node.rpartition("/")[0]
        gripper = str(record.parameters.get("gripper_joint", ""))
        if record.parameters.get("output", "trajectory") == "trajectory":
            topic = f"{namespace}/joint_trajectory_controller/joint_trajectory"
            self._listen(JointTrajectory, topic, partial(self._trajectory, record, topic), DEEP)
        else:
            topic = f"{namespace}/forward_position_controller/commands"
            self._listen(
                Float64MultiArray, topic, partial(self._forward, record, topic, gripper), DEEP
            )
        if gripper:
            topic = f"{namespace}/gripper_controller/commands"
            self._listen(
                Float64MultiArray, topic, partial(self._gripper, record, topic, gripper), DEEP
            )

    def _listen(self, kind: Any, topic: str, take: Callable[[Any], None], qos: Any) -> None:
        self.node.create_subscription(kind, topic, take, qos)

    def _to(self, series: list[Heard]) -> Callable[[Any], None]:
        return lambda message: series.append(self._heard(message))

    def _heard(self, message: Any) -> Heard:
        return Heard(time.monotonic(), self.node.get_clock().now().nanoseconds, message)

    def _diagnostics(self, message: DiagnosticArray) -> None:
        records: Mapping[str, NodeRecord] = {**self.policies, **self.executors}
        for status in message.status:
            name, _, entry = status.name.partition(": ")
            if name in records:
                records[name].entries.setdefault(entry, []).append(self._heard(status))

    def _trajectory(self, record: ExecutorRecord, topic: str, message: JointTrajectory) -> None:
        if len(message.points) == 1:
            values = dict(zip(message.joint_names, message.points[0].positions, strict=False))
            record.commands.setdefault(topic, []).append((time.monotonic(), values))

    def _forward(
        self, record: ExecutorRecord, topic: str, gripper: str, message: Float64MultiArray
    ) -> None:
        joints = record.statuses[-1].message.joints if record.statuses else ()
        names = [name for name in joints if name != gripper]
        if len(names) == len(message.data):
            values = dict(zip(names, message.data, strict=True))
            record.commands.setdefault(topic, []).append((time.monotonic(), values))

    def _gripper(
        self, record: ExecutorRecord, topic: str, gripper: str, message: Float64MultiArray
    ) -> None:
        if message.data:
            series = record.commands.setdefault(topic, [])
            series.append((time.monotonic(), {gripper: message.data[0]}))
