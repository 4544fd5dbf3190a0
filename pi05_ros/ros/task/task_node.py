"""The lifecycle node of tasks: the action `~/run_policy`.

It resets the policy, sets the prompt, gives the executor permission and takes it back at every
end. What a task does next is decided in `runtime/task`; docs/tasks.md describes it for users.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.action import CancelResponse, GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn
from std_srvs.srv import SetBool

from pi05_ros.action import RunPolicy
from pi05_ros.msg import TaskStatus
from pi05_ros.ros import process, qos
from pi05_ros.ros.messages import time_msg
from pi05_ros.ros.parameter_server import declare
from pi05_ros.ros.task.task_action_server import LateActionServer
from pi05_ros.ros.task.task_calls import TaskCalls, verdict_topic_problem
from pi05_ros.ros.task.task_inputs import TaskInputs
from pi05_ros.ros.task.task_messages import (
    feedback_message,
    read_goal,
    result_message,
    task_diagnostics,
    task_status,
)
from pi05_ros.ros.topic_fit import TopicFit
from pi05_ros.runtime.task.task_desk import TaskDesk
from pi05_ros.runtime.task.task_facts import Stillness, TaskFacts
from pi05_ros.runtime.task.task_goal import TaskGoalError
from pi05_ros.runtime.task.task_parameters import REPLACE, TaskParameters
from pi05_ros.runtime.text import printable

SUCCESS = TransitionCallbackReturn.SUCCESS
FAILURE = TransitionCallbackReturn.FAILURE
TICK_S = 0.05
LINGER_S = 5.0
"""Longest time the process takes to end tasks when it is asked to end."""
DELIVER_S = 0.3
"""And to send their results after that."""


class TaskNode(LifecycleNode):
    """Lifecycle node `pi05_task`; keyword arguments are those of rclpy's Node."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("pi05_task", **kwargs)
        self.parameters = declare(self, TaskParameters)
        self._active = False
        self._refused = ""
        self._facts = TaskFacts()
        self._desk: TaskDesk | None = None
        self._calls: TaskCalls | None = None
        self._inputs: TaskInputs | None = None
        self._handles: dict[str, ServerGoalHandle] = {}
        self._clock = process.tick_clock(self)
        self._next_feedback_s = self._next_beat_s = 0.0
        self._told: TaskStatus | None = None
        self._status = self.create_publisher(TaskStatus, "~/status", qos.LATCHED)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", qos.DIAGNOSTICS)
        self._fit = TopicFit(self)
        self._server = LateActionServer(
            self,
            RunPolicy,
            "~/run_policy",
            lambda handle: RunPolicy.Result(),
            goal_callback=self._judge,
            handle_accepted_callback=self._accept,
            cancel_callback=self._cancel,
        )
        self.create_service(SetBool, "~/finish", self._finish)
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(TICK_S, self._tick, clock=steady)
        self.create_timer(1.0, self._report, clock=steady)
        process.guard_change_state(self)
        self._publish_status()

    # -- transitions -----------------------------------------------------------------------

    def on_configure(self, state: Any) -> TransitionCallbackReturn:
        """Listen to policy, executor and recorder."""
        p, self._facts = self.parameters, TaskFacts()
        stillness = Stillness(p.hold_tolerance)
        self._calls = TaskCalls(self, p, self._facts, stillness, self._now_s)
        self._inputs = TaskInputs(self, p, self._facts, self._now_s)
        self._desk = TaskDesk(
            self._facts, self._calls, p.settings,
            replace=p.second_goal == REPLACE, stillness=stillness,
        )  # fmt: skip
        self._publish_status()
        return SUCCESS

    def on_activate(self, state: Any) -> TransitionCallbackReturn:
        """Take goals."""
        assert self._desk is not None
        self._desk.open = self._active = True
        self._publish_status()
        return super().on_activate(state)

    def on_deactivate(self, state: Any) -> TransitionCallbackReturn:
        """Take no more goals; permission is asked back at once, the task ends when it is back."""
        self._close("the task node was deactivated")
        return super().on_deactivate(state)

    def on_cleanup(self, state: Any) -> TransitionCallbackReturn:
        """Stop listening; refused while a task is still ending."""
        if self._desk is not None and not self._desk.idle:
            self.get_logger().error("cleanup refused: a task is still ending")
            return FAILURE
        self._release()
        return SUCCESS

    def on_shutdown(self, state: Any) -> TransitionCallbackReturn:
        """End tasks; what is left of them goes on while the process lives."""
        self._close("the task node was shut down")
        return SUCCESS

    def on_error(self, state: Any) -> TransitionCallbackReturn:
        """End tasks."""
        self._close("the task node had an error")
        return SUCCESS

    def end(self) -> bool:
        """End tasks before the process ends, within some seconds; always True."""
        self._close("the task node ended")
        until = time.monotonic() + LINGER_S
        while self._busy and time.monotonic() < until:
            self._spin()
        until = time.monotonic() + DELIVER_S
        while time.monotonic() < until:
            self._spin()
        if self._busy:
            self.get_logger().error("the executor has not confirmed that permission is withdrawn")
        self._release()
        self._status.wait_for_all_acked(Duration(seconds=DELIVER_S))
        self._server.destroy()
        return True

    @property
    def _busy(self) -> bool:
        return self._desk is not None and (not self._desk.idle or self._desk.owes)

    def _spin(self) -> None:
        try:
            self.executor.spin_once(timeout_sec=0.02)
        except Exception:  # as in TolerantExecutor: bad messages end nothing
            self.get_logger().error(printable(f"in a callback: {traceback.format_exc()}"))

    def _close(self, why: str) -> None:
        self._active = False
        if self._desk is not None:
            self._desk.open = False
            self._desk.interrupt(why)
            self._tick()
        self._publish_status()

    def _release(self) -> None:
        if self._desk is not None and self._desk.owes:
            self.get_logger().error("permission was not withdrawn: the executor does not answer")
        for part in (self._calls, self._inputs):
            if part is not None:
                part.destroy()
        self._desk = self._calls = self._inputs = None
        self._publish_status()

    # -- the action ------------------------------------------------------------------------

    def _now_s(self) -> float:
        return float(self._clock.now().nanoseconds) / 1e9

    def _judge(self, request: RunPolicy.Goal) -> GoalResponse:
        """Refuse what is wrong or comes at a wrong time; status and log say why."""
        desk = self._desk
        refusal = "the task node is not active" if desk is None else desk.refusal()
        if not refusal:
            try:
                topic = read_goal("", request, self.parameters).success_topic
                refusal = verdict_topic_problem(self, topic) if topic else ""
            except TaskGoalError as error:
                refusal = str(error)
        if not refusal:
            return GoalResponse.ACCEPT
        self._refused = refusal
        self.get_logger().warning(printable(f"goal refused: {refusal}"))
        self._publish_status()
        return GoalResponse.REJECT

    def _accept(self, handle: ServerGoalHandle) -> None:
        assert self._desk is not None
        goal_id = bytes(handle.goal_id.uuid).hex()
        goal = read_goal(goal_id, handle.request, self.parameters)
        self.get_logger().info(printable(f"task {goal_id[:8]}: {goal.prompt!r}"))
        self._handles[goal_id] = handle
        handle.execute()
        self._desk.accept(goal)
        self._tick()

    def _cancel(self, handle: ServerGoalHandle) -> CancelResponse:
        if self._desk is not None:
            self._desk.cancel(bytes(handle.goal_id.uuid).hex())
        return CancelResponse.ACCEPT

    def _finish(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        refusal = "no task runs" if self._desk is None else self._desk.finish(request.data)
        response.success = not refusal
        response.message = refusal or "ending"
        return response

    # -- periodic work ---------------------------------------------------------------------

    def _tick(self) -> None:
        desk, steady_s = self._desk, time.monotonic()
        if desk is None:
            return
        if self.parameters.heartbeat_hz and steady_s >= self._next_beat_s and self._calls:
            self._next_beat_s = steady_s + 1.0 / self.parameters.heartbeat_hz
            self._calls.beat()
        desk.tick(self._now_s(), steady_s)
        self._publish_status()
        self._give_feedback(steady_s)
        while desk.finished:
            goal, result = desk.finished.popleft()
            self.get_logger().info(
                printable(
                    f"task {goal.goal_id[:8]}: {result.reason}, outcome {result.outcome}: "
                    f"{result.message}"
                )
            )
            if desk.last is not None and desk.last.goal is goal and desk.last.crash:
                self.get_logger().error(printable(desk.last.crash))
            handle = self._handles.pop(goal.goal_id)
            self._server.complete(handle, result.reason, result_message(result))

    def _give_feedback(self, steady_s: float) -> None:
        run = self._desk.run if self._desk is not None else None
        if run is None or steady_s < self._next_feedback_s:
            return
        self._next_feedback_s = steady_s + 1.0 / self.parameters.feedback_hz
        handle = self._handles[run.goal.goal_id]
        handle.publish_feedback(feedback_message(run, self._facts, self._now_s()))

    def _publish_status(self) -> None:
        status = task_status(self._desk, self._active, self._refused)
        if status == self._told:
            return
        self._told = status
        sent = TaskStatus(
            **{name: getattr(status, name) for name in status.get_fields_and_field_types()}
        )
        sent.stamp = time_msg(self.get_clock().now().nanoseconds)
        self._status.publish(sent)

    def _report(self) -> None:
        assert self._told is not None
        self._fit.look()
        if self._inputs is not None and self._calls is not None:
            self._inputs.tell_misfits(self._fit, self._calls.end_topic)
        array = task_diagnostics(
            self.get_fully_qualified_name(), self._desk, self._told, self._facts, self._fit.text
        )
        array.header.stamp = time_msg(self.get_clock().now().nanoseconds)
        self._diagnostics.publish(array)


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM."""

    def make(_: threading.Event) -> TaskNode:
        node = TaskNode()
        if node.parameters.autostart:
            process.autostart(node)
        return node

    return process.run(make, args)


if __name__ == "__main__":
    sys.exit(main())
