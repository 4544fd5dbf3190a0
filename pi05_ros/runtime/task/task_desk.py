"""Takes goals one after the other: the task that runs, the one that waits, what is still owed.

Owed is permission that could not be withdrawn because the executor did not answer: it is
withdrawn as soon as the executor is heard again, and nothing begins before that.
"""

from __future__ import annotations

from collections import deque

from pi05_ros.runtime.task.task_facts import Stillness, TaskFacts
from pi05_ros.runtime.task.task_goal import (
    CANCELLED,
    DONE,
    FAILURE,
    REPLACED,
    SUCCESS,
    UNKNOWN,
    TaskGoal,
    TaskResult,
)
from pi05_ros.runtime.task.task_ports import Call, TaskPorts, TaskSettings
from pi05_ros.runtime.task.task_run import ENDING, TaskRun


class TaskDesk:
    """What happens to goals.

    Args:
        facts: written by the node.
        ports: what is done to other nodes.
        settings: of every task.
        replace: a new goal replaces the one that runs; else it is refused.
        stillness: fed by the node.

    Attributes:
        open: whether goals are taken.
        run: the present task.
        last: the task before, for the status.
        finished: (goal, result) of ended tasks; the node takes them out.

    """

    def __init__(
        self, facts: TaskFacts, ports: TaskPorts, settings: TaskSettings, *,
        replace: bool, stillness: Stillness,
    ) -> None:  # fmt: skip
        self.open = False
        self.run: TaskRun | None = None
        self.last: TaskRun | None = None
        self.finished: deque[tuple[TaskGoal, TaskResult]] = deque()
        self._facts, self._ports, self._settings = facts, ports, settings
        self._replace, self._stillness = replace, stillness
        self._waiting: TaskGoal | None = None
        self._owed: Call | None = None
        self._owed_speed: float | None = None
        self._speed_call: Call | None = None

    @property
    def idle(self) -> bool:
        """No task runs or waits."""
        return self.run is None and self._waiting is None

    @property
    def owes(self) -> bool:
        """Permission is still to be withdrawn."""
        return self._owed is not None

    def refusal(self) -> str:
        """Why a goal would be refused now, else empty."""
        if not self.open:
            return "the task node is not active"
        if self._owed is not None:
            return "the executor has not confirmed that the last task's permission is withdrawn"
        if not self.idle and not self._replace:
            return "another task runs (second_goal is refuse)"
        return ""

    def accept(self, goal: TaskGoal) -> None:
        """Begin a task, or have it wait until the one before has ended."""
        if self.run is None:
            self._begin(goal)
            return
        if self._waiting is not None:
            self._drop(self._waiting, REPLACED, "a newer goal came")
        self._waiting = goal
        self.run.ask_end(REPLACED, "a newer goal came")

    def cancel(self, goal_id: str, message: str = "the client cancelled it") -> None:
        """End one task."""
        if self._waiting is not None and self._waiting.goal_id == goal_id:
            self._drop(self._waiting, CANCELLED, message)
            self._waiting = None
        if self.run is not None and self.run.goal.goal_id == goal_id:
            self.run.ask_end(CANCELLED, message)

    def interrupt(self, message: str) -> None:
        """End all tasks."""
        if self._waiting is not None:
            self._drop(self._waiting, CANCELLED, message)
            self._waiting = None
        if self.run is not None:
            self.run.ask_end(CANCELLED, message)

    def finish(self, done: bool) -> str:
        """Somebody says how the task went; returns why that cannot be, else empty."""
        if self.run is None or self.run.state == ENDING:
            return "no task runs"
        self.run.ask_end(DONE, "~/finish was called", SUCCESS if done else FAILURE)
        return ""

    def tick(self, now_s: float, steady_s: float) -> None:
        """Go on; call it often."""
        self._pay()
        if self.run is None:
            return
        self.run.tick(now_s, steady_s)
        result = self.run.result
        if result is None:
            return
        run, self.run = self.run, None
        self.last = run
        self.finished.append((run.goal, result))
        if run.permission_left:
            self._owed = self._ports.permit(False)
        self._owed_speed = run.speed_left
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            if self._owed is None:
                self._begin(waiting)
            else:
                self._drop(waiting, CANCELLED, self.refusal())

    def _pay(self) -> None:
        """Withdraw permission that is left, then set the speed back."""
        if self._owed is not None and self._owed.poll():
            self._owed = None
            if self._owed_speed is not None:
                self._speed_call = self._ports.set_speed(self._owed_speed)
                self._owed_speed = None
        if self._speed_call is not None and self._speed_call.poll():
            self._speed_call = None

    def _begin(self, goal: TaskGoal) -> None:
        self.run = TaskRun(goal, self._facts, self._ports, self._settings, self._stillness)

    def _drop(self, goal: TaskGoal, reason: str, message: str) -> None:
        self.finished.append((goal, TaskResult(reason, UNKNOWN, message)))
