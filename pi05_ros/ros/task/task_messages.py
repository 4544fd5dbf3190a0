"""Goals, feedback, results and status of tasks as messages."""

from __future__ import annotations

from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from pi05_ros.action import RunPolicy
from pi05_ros.msg import TaskStatus
from pi05_ros.runtime.task.task_desk import TaskDesk
from pi05_ros.runtime.task.task_facts import TaskFacts
from pi05_ros.runtime.task.task_goal import TaskGoal, TaskResult, check_goal
from pi05_ros.runtime.task.task_parameters import TaskParameters
from pi05_ros.runtime.task.task_run import ENDING, PREPARING, RUNNING, STEERED, TaskRun
from pi05_ros.runtime.text import printable

STATES = {
    PREPARING: TaskStatus.STATE_PREPARING,
    RUNNING: TaskStatus.STATE_RUNNING,
    STEERED: TaskStatus.STATE_TAKEN_OVER,
    ENDING: TaskStatus.STATE_ENDING,
}
WORDS = {
    TaskStatus.STATE_INACTIVE: "inactive",
    TaskStatus.STATE_IDLE: "idle",
    **{number: word for word, number in STATES.items()},
}


def read_goal(goal_id: str, request: RunPolicy.Goal, parameters: TaskParameters) -> TaskGoal:
    """The goal of a request.

    Raises:
        TaskGoalError: a value that is not accepted.

    """
    return check_goal(
        **{name: getattr(request, name) for name in request.get_fields_and_field_types()},
        goal_id=goal_id,
        default_time_limit_s=parameters.default_time_limit_s,
        default_success_topic=parameters.success_topic,
    )


def result_message(result: TaskResult) -> Any:
    """RunPolicy's result."""
    return RunPolicy.Result(
        termination_reason=result.reason,
        outcome=result.outcome,
        message=printable(result.message),
        bag_path=printable(result.bag_path),
        elapsed_s=result.elapsed_s,
        chunks=result.chunks,
    )


def feedback_message(run: TaskRun, facts: TaskFacts, now_s: float) -> Any:
    """RunPolicy's feedback."""
    policy, executor = facts.policy, facts.executor
    some = run.chunks > 0
    return RunPolicy.Feedback(
        state=run.state,
        elapsed_s=run.elapsed_s,
        remaining_s=max(0.0, run.goal.time_limit_s - run.elapsed_s),
        chunks=max(0, run.chunks),
        chunk_id=policy.chunk_id if some else 0,
        chunk_age_s=max(0.0, now_s - policy.chunk_s) if some else float("nan"),
        inference_ms=policy.inference_ms if some else float("nan"),
        observation_to_chunk_ms=policy.observation_to_chunk_ms if some else float("nan"),
        executor_mode=executor.mode,
        executor_mode_name=executor.mode_name,
        executor_reason=printable(executor.reason),
        lag_s=executor.lag_s,
        intervention=executor.intervention,
        success=bool(facts.success),
    )


def task_status(desk: TaskDesk | None, active: bool, last_refused: str) -> TaskStatus:
    """The latched status, without its stamp."""
    run = None if desk is None else desk.run or desk.last
    running = desk is not None and desk.run is not None and not desk.run.closing
    idle = TaskStatus.STATE_IDLE if active else TaskStatus.STATE_INACTIVE
    status = TaskStatus(state=idle, last_refused=printable(last_refused))
    if run is None:
        return status
    goal = run.goal
    status.state = STATES[run.state] if running else idle
    status.goal_id, status.prompt, status.record = (
        goal.goal_id,
        printable(goal.prompt),
        goal.record,
    )
    status.time_limit_s, status.speed_scale = goal.time_limit_s, goal.speed_scale
    status.termination_reason, status.outcome = run.reason, run.outcome
    status.message = printable(run.message)
    return status


def task_diagnostics(
    name: str, desk: TaskDesk | None, status: TaskStatus, facts: TaskFacts, unheard: str
) -> DiagnosticArray:
    """State, reasons and what is heard of the others; `unheard`: publishers that cannot be."""
    owes = desk is not None and desk.owes
    shown = {
        "state": WORDS[status.state],
        "goal_id": status.goal_id,
        "prompt": status.prompt,
        "last_termination_reason": status.termination_reason,
        "last_outcome": status.outcome,
        "last_message": status.message,
        "last_refused": status.last_refused,
        "permission_to_withdraw": owes,
        "policy_active": facts.policy.active,
        "executor_mode": facts.executor.mode_name,
        "executor_enabled": facts.executor.enabled,
        "recording": facts.recorder.recording,
        "unheard": unheard,
    }
    message, level = WORDS[status.state], DiagnosticStatus.OK
    if unheard:
        message, level = f"{message}; {unheard}", DiagnosticStatus.WARN
    if owes:
        level = DiagnosticStatus.ERROR
        message = "the executor has not confirmed that permission is withdrawn"
    found = DiagnosticStatus(
        level=level,
        name=f"{name}: task",
        message=message,
        values=[KeyValue(key=key, value=str(value)) for key, value in shown.items()],
    )
    return DiagnosticArray(status=[found])
