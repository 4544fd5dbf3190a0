"""One task from goal to result: prepare, permit, watch, withdraw permission.

The order is what keeps it safe. Permission is taken away before anything is changed, given only
after the policy has answered to the new prompt, and taken away again before a result exists. A
task that cannot take it away says so, and `TaskDesk` goes on trying.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator

from pi05_ros.policy.prompt.prompt import clean_prompt
from pi05_ros.runtime.task.task_facts import Stillness, TaskFacts
from pi05_ros.runtime.task.task_goal import (
    DONE,
    FAILURE,
    FAULT,
    SUCCESS,
    TAKEN_OVER,
    TIMEOUT,
    UNKNOWN,
    End,
    TaskGoal,
    TaskResult,
)
from pi05_ros.runtime.task.task_ports import Call, TaskPorts, TaskSettings
from pi05_ros.runtime.task.task_watch import TaskWatch

PREPARING = "preparing"
RUNNING = "running"
STEERED = "taken over"
ENDING = "ending"
PROMPT_EVERY_S = 0.5
BACKWARDS_S = 0.05
"""A clock that is set back by more than this has jumped."""


class _Ended(Exception):  # noqa: N818 - not an error
    def __init__(self, reason: str, outcome: str, message: str) -> None:
        super().__init__(message)
        self.reason, self.outcome, self.message = reason, outcome, message


class TaskRun:
    """One task; call `tick` often until `result` is there.

    Attributes:
        state: PREPARING, RUNNING, STEERED or ENDING.
        reason, outcome, message: of the result, as soon as they are known.
        result: once permission is withdrawn and the recorder is done.
        crash: traceback of an error of the program, else empty.
        permission_left: permission could not be withdrawn; speed_left: nor the speed set back.

    """

    def __init__(
        self, goal: TaskGoal, facts: TaskFacts, ports: TaskPorts, settings: TaskSettings,
        stillness: Stillness,
    ) -> None:  # fmt: skip
        self.goal = goal
        self.state = PREPARING
        self.reason = self.outcome = self.message = self.crash = ""
        self.result: TaskResult | None = None
        self.permission_left = False
        self.speed_left: float | None = None
        self._facts, self._ports, self._settings = facts, ports, settings
        self._watch = TaskWatch(goal, facts, settings, stillness)
        self._asked: _Ended | None = None
        self._end_s: float | None = None
        self._first_chunk = facts.policy.chunks
        self._speed_before: float | None = None  # what the task has changed
        self._closing = False
        self._steps = self._script()

    @property
    def elapsed_s(self) -> float:
        """Seconds since permission."""
        if self._watch.start_s is None:
            return 0.0
        return max(
            0.0, (self._watch.now_s if self._end_s is None else self._end_s) - self._watch.start_s
        )

    @property
    def chunks(self) -> int:
        """Chunks that came since the policy was reset."""
        return self._facts.policy.chunks - self._first_chunk

    @property
    def closing(self) -> bool:
        """Permission is withdrawn and all is known; the recorder may end the bag."""
        return self.state == ENDING and self._closing

    def ask_end(self, reason: str, message: str, outcome: str = UNKNOWN) -> None:
        """End with the next tick; the first one who asks decides why."""
        if self._asked is None and self.state != ENDING:
            self._asked = _Ended(reason, outcome, message)

    def tick(self, now_s: float, steady_s: float) -> None:
        """Go on.

        Args:
            now_s: time on the clock of tasks (simulated time where that is used).
            steady_s: time on a clock that always runs.

        """
        if now_s < self._watch.now_s - BACKWARDS_S:
            self.ask_end(FAULT, "the clock jumped back")
        self._watch.now_s, self._watch.steady_s = now_s, steady_s
        next(self._steps, None)

    # -- the script ------------------------------------------------------------------------

    def _script(self) -> Iterator[None]:
        yield  # the times of the first tick
        try:
            yield from self._prepare()
            yield from self._follow()
        except _Ended as end:
            self.reason, self.outcome, self.message = end.reason, end.outcome, end.message
        except Exception as error:  # whatever it is, permission is withdrawn and a result comes
            self.reason, self.outcome, self.message = FAULT, UNKNOWN, self._crashed(error)
        self._end_s = self._watch.now_s
        self.state = ENDING
        self._ports.ignore()
        try:
            yield from self._withdraw()
        except Exception as error:
            self.message += f"; {self._crashed(error)}"
        self._closing = True
        bag = ""
        if self.goal.record:
            yield from self._await_bag()
            recorder = self._facts.recorder
            bag = recorder.bag_path if recorder.goal_id == self.goal.goal_id else ""
        self.result = TaskResult(
            self.reason, self.outcome, self.message, bag, self.elapsed_s, self.chunks
        )

    def _crashed(self, error: Exception) -> str:
        self.crash = traceback.format_exc()
        return f"in the task node: {type(error).__name__}: {error}"

    def _pause(self) -> Iterator[None]:
        """Until the next tick; ends the task if that was asked for."""
        yield
        if self._asked is not None:
            raise self._asked

    def _until(
        self,
        condition: Callable[[], bool],
        timeout_s: float,
        complaint: Callable[[], str],
        *,
        heard: bool = True,
    ) -> Iterator[None]:
        """Wait on the clock that always runs, or end with a fault; `heard`: all others live."""
        start_s = self._watch.steady_s
        while not condition():
            if heard and (missing := self._watch.missing()):
                raise _Ended(FAULT, UNKNOWN, missing)
            if self._watch.steady_s - start_s > timeout_s:
                raise _Ended(FAULT, UNKNOWN, complaint())
            yield from self._pause()

    def _answered(self, call: Call, what: str) -> Iterator[None]:
        """Wait for an answer; a refusal is a fault."""
        yield from self._until(
            call.poll, self._settings.step_timeout_s, lambda: f"no answer: {what}"
        )
        if call.problem:
            raise _Ended(FAULT, UNKNOWN, f"refused: {what}: {call.problem}")

    def _prepare(self) -> Iterator[None]:
        facts, ports, settings, goal = self._facts, self._ports, self._settings, self.goal
        executor, policy = facts.executor, facts.policy
        ports.watch(goal)  # a success that is said once must not be missed
        yield from self._until(
            lambda: not self._watch.missing(),
            settings.step_timeout_s,
            lambda: self._watch.missing(),
            heard=False,
        )
        if trouble := self._watch.obstacle():
            raise _Ended(FAULT, UNKNOWN, trouble)
        yield from self._answered(ports.permit(False), "executor, withdraw permission")
        if goal.record:
            yield from self._until(
                lambda: facts.recorder.recording and facts.recorder.goal_id == goal.goal_id,
                settings.step_timeout_s,
                lambda: (
                    "the recorder does not record"
                    + (f": {facts.recorder.message}" if facts.recorder.message else "")
                ),
            )
        if goal.prompt:
            yield from self._set_prompt()
        yield from self._answered(ports.reset_policy(), "policy, reset")
        self._first_chunk = policy.chunks
        yield from self._until(
            lambda: (
                self.chunks > 0
                and (not goal.prompt or policy.chunk_prompt == clean_prompt(goal.prompt))
            ),
            settings.first_chunk_timeout_s,
            lambda: f"no chunk since the policy was reset{policy.why_silent}",
        )
        if goal.speed_scale:
            self._speed_before = executor.speed_scale
            set_speed = ports.set_speed(goal.speed_scale)
            yield from self._answered(set_speed, "executor, speed_scale")
        if trouble := self._watch.obstacle():
            raise _Ended(FAULT, UNKNOWN, trouble)
        self._watch.begin()
        yield from self._answered(ports.permit(True), "executor, permission")
        yield from self._until(
            lambda: executor.enabled, settings.step_timeout_s,
            lambda: "the executor does not say that it is enabled",
        )  # fmt: skip

    def _set_prompt(self) -> Iterator[None]:
        """Publish the prompt until the policy node has it."""
        policy, prompt = self._facts.policy, self.goal.prompt
        sent_s = -PROMPT_EVERY_S

        def there() -> bool:
            nonlocal sent_s
            if policy.prompt == prompt:
                return True
            if self._watch.steady_s - sent_s >= PROMPT_EVERY_S:
                sent_s = self._watch.steady_s
                self._ports.send_prompt(prompt)
            return False

        sent_s = self._watch.steady_s
        self._ports.send_prompt(prompt)  # recorders want to hear it in any case
        yield from self._until(
            there, self._settings.step_timeout_s, lambda: "the policy does not take the prompt"
        )

    def _follow(self) -> Iterator[None]:
        self._watch.start_s, self.state = self._watch.now_s, RUNNING
        executor, settings = self._facts.executor, self._settings
        while True:
            if trouble := self._watch.trouble():
                raise _Ended(FAULT, UNKNOWN, trouble)
            if executor.intervention and self.state == RUNNING:
                self.state = STEERED
                if settings.end_on_take_over:
                    yield from self._await_hand_back()
            elif not executor.intervention:
                self.state = RUNNING
            if self._watch.is_done():
                outcome = SUCCESS if self.goal.end is End.SUCCESS_TOPIC else UNKNOWN
                raise _Ended(DONE, outcome, self._watch.done_because())
            if self.elapsed_s > self.goal.time_limit_s:
                failed = self._facts.success is False
                raise _Ended(
                    TIMEOUT, FAILURE if failed else UNKNOWN,
                    f"not done within {self.goal.time_limit_s:g} s",
                )  # fmt: skip
            yield from self._pause()

    def _await_hand_back(self) -> Iterator[None]:
        """A person is in charge and keeps permission; chunks count no more.

        They are held, so that the arm joins none between hand-back and the end of permission.
        """
        executor = self._facts.executor
        hold = self._ports.hold_chunks()
        while executor.intervention and self.elapsed_s <= self.goal.time_limit_s:
            hold.poll()
            if trouble := self._watch.trouble():
                raise _Ended(FAULT, UNKNOWN, trouble)
            yield from self._pause()
        outcome = SUCCESS if self._facts.success else UNKNOWN
        raise _Ended(TAKEN_OVER, outcome, "a person took over")

    def _withdraw(self) -> Iterator[None]:
        """Take permission away, and set the speed back after that."""
        start_s = self._watch.steady_s
        self.permission_left = True
        call = self._ports.permit(False)
        while not call.poll():
            if (
                self._watch.steady_s - start_s > self._settings.step_timeout_s
                or self._watch.silent(self._facts.executor.seen_s)
            ):
                self.message += "; the executor has not confirmed that permission is withdrawn"
                self.speed_left = self._speed_before
                return
            yield
        self.permission_left = False
        if self._speed_before is None:
            return
        call = self._ports.set_speed(self._speed_before)
        start_s = self._watch.steady_s
        while not call.poll():
            if self._watch.steady_s - start_s > self._settings.step_timeout_s:
                self.message += "; speed_scale could not be set back"
                self.speed_left = self._speed_before
                return
            yield

    def _await_bag(self) -> Iterator[None]:
        start_s, recorder = self._watch.steady_s, self._facts.recorder
        while recorder.recording and recorder.goal_id == self.goal.goal_id:
            if self._watch.steady_s - start_s > self._settings.step_timeout_s:
                self.message += "; the recorder has not ended the bag yet"
                return
            yield
        mine = recorder.goal_id == self.goal.goal_id
        if not mine:
            self.message += "; there is no bag"
        elif not recorder.whole:
            self.message += f"; the bag is not whole: {recorder.message}"
