"""What a task makes of what is known: who is missing, why it may not begin, why it has to end."""

from __future__ import annotations

from pi05_ros.runtime.task.task_facts import Stillness, TaskFacts
from pi05_ros.runtime.task.task_goal import End, TaskGoal
from pi05_ros.runtime.task.task_ports import TaskSettings

ENGINE_GRACE_S = 1.0
"""Longest time without a chunk while the policy node reports an error."""


class TaskWatch:
    """Judges the facts for one task.

    Attributes:
        now_s, steady_s: of the present tick, on the clock of tasks and on one that always runs.
        start_s: when permission was given, None before.

    """

    def __init__(
        self, goal: TaskGoal, facts: TaskFacts, settings: TaskSettings, stillness: Stillness
    ) -> None:
        self.now_s = self.steady_s = 0.0
        self.start_s: float | None = None
        self._goal, self._facts, self._settings = goal, facts, settings
        self._stillness = stillness
        self._policy_id = self._prompt = ""
        self._success_since: float | None = None

    def begin(self) -> None:
        """Permission is about to be given; policy and prompt may not change from here on."""
        policy = self._facts.policy
        self._facts.success = None
        self._stillness.reset()
        self._policy_id, self._prompt = policy.policy_id, policy.prompt

    def silent(self, seen_s: float | None) -> bool:
        """Whether it is too long ago that somebody was heard."""
        return seen_s is None or self.steady_s - seen_s > self._settings.status_timeout_s

    def missing(self) -> str:
        """Who has not been heard yet."""
        executor, policy = self._facts.executor, self._facts.policy
        for who, facts in (("the executor", executor), ("the policy node", policy)):
            if self.silent(facts.seen_s):
                why = f": {facts.unheard}" if facts.unheard else ""
                return f"nothing is heard of {who}{why}"
        return ""

    def obstacle(self) -> str:
        """Why a task may not begin."""
        executor = self._facts.executor
        if not self._facts.policy.active:
            return "the policy node is not active"
        if executor.fault:
            return f"the executor has a fault: {executor.fault}"
        if executor.halted or executor.stopped:
            return f"the executor is {'halted' if executor.halted else 'stopped'}"
        if executor.intervention:
            return "a person is in charge of the arm"
        return self.missing() or self._endless()

    def trouble(self) -> str:
        """Why a running task has to end."""
        executor, policy = self._facts.executor, self._facts.policy
        if missing := self.missing():
            return missing.replace("nothing is heard", "nothing is heard any more")
        if executor.fault:
            return f"the executor has a fault: {executor.fault}"
        if not executor.enabled:
            return "permission was withdrawn"
        if not policy.active:
            return "the policy node is not active any more"
        if policy.policy_id != self._policy_id:
            return "the policy was activated anew"
        if policy.prompt != self._prompt:
            return f"the prompt was changed to {policy.prompt!r}"
        waited_s = self.now_s - max(policy.chunk_s, self.start_s or 0.0)
        limit_s = self._settings.chunk_timeout_s
        if policy.message:  # an engine that died is waited for no longer than it takes to say so
            limit_s = min(limit_s, ENGINE_GRACE_S)
        if waited_s > limit_s:
            return f"no chunk for {limit_s:g} s{policy.why_silent}"
        return self._endless()

    def _endless(self) -> str:
        """Why what is to end the task cannot be heard."""
        unheard = self._facts.end_unheard
        return f"what is to end the task cannot be heard: {unheard}" if unheard else ""

    def is_done(self) -> bool:
        """Whether what was to end the task has."""
        goal, success = self._goal, self._facts.success
        if goal.end is End.SUCCESS_TOPIC:
            if not success:
                self._success_since = None
                return False
            if self._success_since is None:
                self._success_since = self.now_s
            return self.now_s - self._success_since >= goal.hold_s
        if goal.end is End.HOLD:
            if not self._facts.executor.following:
                self._stillness.reset()
            return self._stillness.seconds(self.now_s) >= goal.hold_s
        return False

    def done_because(self) -> str:
        """Why it is done."""
        if self._goal.end is End.HOLD:
            return f"the arm was still for {self._goal.hold_s:g} s"
        return f"{self._goal.success_topic} is true"
