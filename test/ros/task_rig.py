"""Task node, executor node, a policy and an arm in one process, for the tests of tasks."""

from __future__ import annotations

import os
import time

import numpy as np
import rclpy
from action_msgs.msg import GoalStatus
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from executor_client import JOINTS, LIMITS, START
from lifecycle_msgs.srv import ChangeState
from pi05_ros.action import RunPolicy
from pi05_ros.msg import ActionChunk, ExecutorStatus, PolicyStatus, TaskStatus
from rclpy.action import ActionClient
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, String
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from pi05_ros.policy.prompt.prompt import clean_prompt
from pi05_ros.ros import qos
from pi05_ros.ros.executor_node import ExecutorNode
from pi05_ros.ros.processes.domain import free_domain_id
from pi05_ros.ros.task.task_node import TaskNode

PATIENCE_S = 60.0
CONFIGURE, CLEANUP, ACTIVATE, DEACTIVATE = 1, 2, 3, 4
SHORT = {"status_timeout_s": 3.0}
"""For tests of nodes that die; the others must not take a busy machine for it."""


class Policy(Node):
    """What the policy node says to others: chunks, status, diagnostics, reset, prompt."""

    def __init__(self, context):
        super().__init__("pi05_policy", context=context)
        self.chunks = self.create_publisher(ActionChunk, "~/action_chunk", qos.CHUNK)
        self.status = self.create_publisher(PolicyStatus, "~/status", qos.LATCHED)
        self.diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self.create_subscription(String, "prompt", self.on_prompt, qos.PROMPT)
        self.create_service(Trigger, "~/reset", self.on_reset)
        self.alive, self.engine, self.active = True, True, True
        self.policy_id, self.prompt, self.message = "one", "", ""
        self.number, self.resets, self.still = 0, 0, False
        self.create_timer(0.1, self.tick)
        self.create_timer(0.5, self.second)
        self.tell()

    def on_prompt(self, message):
        if self.alive:
            self.prompt = message.data
            self.tell()

    def on_reset(self, request, response):
        self.resets += 1
        response.success = True
        return response

    def tell(self):
        state = PolicyStatus.STATE_ACTIVE if self.active else PolicyStatus.STATE_INACTIVE
        self.status.publish(
            PolicyStatus(
                state=state, policy_id=self.policy_id, prompt=self.prompt, message=self.message,
                checkpoint_hash="sha256:1234", robot="sim_arm",
            )
        )  # fmt: skip

    def second(self):
        if self.alive:
            entry = DiagnosticStatus(name="/pi05_policy: inference", message="ok")
            self.diagnostics.publish(DiagnosticArray(status=[entry]))

    def tick(self):
        if not (self.alive and self.engine and self.active):
            return
        self.number += 1
        rows = np.tile(START, (16, 1))
        rows[:, 0] = 0.2 if self.still else 0.3 * np.sin(self.number / 5)
        message = ActionChunk(
            chunk_id=self.number, policy_id=self.policy_id, names=JOINTS, horizon=16,
            meaning=[0] * 7, unit=[0] * 7, data=rows.astype(np.float32).ravel().tolist(),
            prompt=clean_prompt(self.prompt),
        )  # fmt: skip
        message.step.nanosec = 50_000_000
        now = self.get_clock().now().to_msg()
        message.header.stamp = message.observation_stamp = message.published_stamp = now
        self.chunks.publish(message)


class Person(Node):
    """The client of the action, the arm, and the person who takes over."""

    def __init__(self, context):
        super().__init__("person", context=context)
        self.task = ActionClient(self, RunPolicy, "/pi05_task/run_policy")
        self.states = self.create_publisher(JointState, "joint_states", 1)
        self.teleop = self.create_publisher(JointState, "/pi05_executor/teleop", 1)
        self.success = self.create_publisher(Bool, "cube_in_box", 1)
        self.commands: list[JointTrajectory] = []
        self.statuses: list[ExecutorStatus] = []
        self.task_statuses: list[TaskStatus] = []
        self.feedback: list = []
        subscribe = self.create_subscription
        topic = "joint_trajectory_controller/joint_trajectory"
        subscribe(JointTrajectory, topic, self.commands.append, 50)
        status = "/pi05_executor/executor_status"
        subscribe(ExecutorStatus, status, self.statuses.append, qos.LATCHED)
        subscribe(TaskStatus, "/pi05_task/status", self.task_statuses.append, qos.LATCHED)
        self.place, self.steering = list(START), False
        self.create_timer(0.02, self.tick)

    def tick(self):
        if self.commands:
            self.place[:6] = self.commands[-1].points[-1].positions
        self.states.publish(JointState(name=JOINTS, position=self.place))
        if self.steering:
            self.teleop.publish(JointState(name=["joint2"], position=[0.6]))


class TaskRig:
    """All of them on one executor in a domain of their own."""

    def __init__(self, **parameters):
        os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=free_domain_id())
        self.executor = SingleThreadedExecutor(context=self.context)
        values = {
            "status_timeout_s": 20.0, "chunk_timeout_s": 20.0, "feedback_hz": 20.0,
            "step_timeout_s": 30.0, **parameters,
        }  # fmt: skip
        self._values = values
        self.task = self._task_node()
        self.policy, self.person = Policy(self.context), Person(self.context)
        self.nodes = [self.task, self.policy, self.person]
        for node in self.nodes:
            self.executor.add_node(node)
        self.start_executor()

    def _task_node(self):
        overrides = [Parameter(name, value=value) for name, value in self._values.items()]
        return TaskNode(context=self.context, parameter_overrides=overrides)

    def kill_task(self):
        self.nodes.remove(self.task)
        self.executor.remove_node(self.task)
        self.task.destroy_node()

    def start_task(self):
        self.task = self._task_node()
        self.nodes.append(self.task)
        self.executor.add_node(self.task)
        self.activate()

    def start_executor(self, **parameters):
        values = {"limits_file": str(LIMITS), "require_enable": True, **parameters}
        overrides = [Parameter(name, value=value) for name, value in values.items()]
        self.arm = ExecutorNode(context=self.context, parameter_overrides=overrides)
        self.executor.add_node(self.arm)

    def kill_executor(self):
        self.executor.remove_node(self.arm)
        self.arm.destroy_node()
        self.arm = None

    def until(self, condition, each=None):
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            if condition():
                return True
            if each is not None:
                each()
            self.executor.spin_once(timeout_sec=0.01)
        return False

    def call(self, kind, name, **request):
        service = self.person.create_client(kind, name)
        assert self.until(service.service_is_ready)
        for _ in range(int(PATIENCE_S)):
            future = service.call_async(kind.Request(**request))
            end = time.monotonic() + 1.0
            if self.until(lambda f=future, t=end: f.done() or time.monotonic() > t) and (
                future.done()
            ):
                self.person.destroy_client(service)
                return future.result()
        raise AssertionError(f"no answer from {name}")

    def change_state(self, transition):
        request = ChangeState.Request()
        request.transition.id = transition
        service = self.person.create_client(ChangeState, "/pi05_task/change_state")
        assert self.until(service.service_is_ready)
        future = service.call_async(request)
        assert self.until(future.done)
        self.person.destroy_client(service)
        return future.result().success

    def activate(self):
        assert self.call(SetBool, "/pi05_task/finish", data=True).message == "no task runs"
        assert self.change_state(CONFIGURE)
        assert self.change_state(ACTIVATE)
        assert self.until(self.person.task.server_is_ready)
        facts = self.task._facts
        assert self.until(lambda: facts.executor.seen_s and facts.policy.active)

    def send(self, **goal):
        """Send a goal; its handle once it is accepted, None if it is refused."""
        goal = {"prompt": "push the cube", "time_limit_s": 60.0, **goal}
        future = self.person.task.send_goal_async(
            RunPolicy.Goal(**goal), lambda m: self.person.feedback.append(m.feedback)
        )
        assert self.until(future.done)
        handle = future.result()
        return handle if handle.accepted else None

    def result(self, handle):
        """Status and result of a goal."""
        future = handle.get_result_async()
        assert self.until(future.done), self.person.task_statuses[-3:]
        answer = future.result()
        return answer.status, answer.result

    def reach(self, state):
        """Bring a task to a state; returns its handle."""
        if state == "idle":
            return None
        self.policy.engine = state != "preparing"
        handle = self.send()
        if state == "preparing":
            number = self.policy.resets
            assert self.until(lambda: self.policy.resets > number)
            return handle
        assert self.until(lambda: self.moving), self.person.statuses[-2:]
        if state == "taken over":
            self.person.steering = True
            assert self.until(lambda: self.feedback_state == "taken over")
        elif state == "ending":
            handle.cancel_goal_async()
        return handle

    @property
    def feedback_state(self):
        return self.person.feedback[-1].state if self.person.feedback else ""

    @property
    def moving(self):
        return self.feedback_state == "running" and bool(
            self.person.statuses and self.person.statuses[-1].mode == ExecutorStatus.MODE_FOLLOWING
        )

    def assert_at_rest(self):
        """Nobody has permission, commands have stopped, and all were within the limits."""
        if self.arm is not None:
            assert self.until(lambda: not self.arm.core.interlocks.enabled)
            core = self.arm.core
            assert self.until(lambda: core.filter.position is None or core.filter.resting)
        path = np.array([m.points[0].positions for m in self.person.commands])
        if len(path) > 2:
            limits = self.limits()
            velocity = np.diff(path, axis=0) / 0.05
            assert (np.abs(velocity) <= limits.velocity[:6] + 1e-4).all()
            bound = limits.acceleration[:6] + 1e-2
            assert (np.abs(np.diff(velocity, axis=0)) / 0.05 <= bound).all()

    def limits(self):
        from pi05_ros.execution.limits import limits_from_yaml

        return limits_from_yaml(LIMITS)

    def close(self):
        self.executor.shutdown()
        for node in [*self.nodes, *([self.arm] if self.arm is not None else [])]:
            node.destroy_node()
        rclpy.shutdown(context=self.context)


SUCCEEDED, CANCELED, ABORTED = (
    GoalStatus.STATUS_SUCCEEDED, GoalStatus.STATUS_CANCELED, GoalStatus.STATUS_ABORTED,
)  # fmt: skip
