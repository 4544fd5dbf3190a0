"""Tasks without ROS: every state and what may happen in it, in simulated time."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pi05_ros.runtime.parameter_specs import markdown_table
from pi05_ros.runtime.task.task_desk import TaskDesk
from pi05_ros.runtime.task.task_facts import Stillness, TaskFacts
from pi05_ros.runtime.task.task_goal import End, TaskGoal
from pi05_ros.runtime.task.task_parameters import SPECS
from pi05_ros.runtime.task.task_ports import TaskSettings

DOCS = Path(__file__).parents[2] / "docs" / "tasks.md"
REASONS = {"done", "cancelled", "timeout", "fault", "taken over", "replaced"}
STATES = ("preparing", "running", "taken over", "ending")


class Answer:
    def __init__(self, world, effect):
        self.problem, self._world, self._effect = "", world, effect

    def poll(self):
        if self._effect is not None and self._world.executor_alive:
            self._effect()
            self._effect = None
        return self._effect is None


class World:
    """Policy, executor and recorder as they answer when they live."""

    def __init__(self, replace=False, end_on_take_over=True):
        self.facts = TaskFacts()
        self.now = 0.0
        self.executor_alive = self.policy_alive = self.engine_alive = self.policy_active = True
        self.person = False
        self.enabled, self.held, self.speed = False, False, 1.0
        self.numbers = itertools.count()
        self.desk = TaskDesk(
            self.facts, self, TaskSettings(end_on_take_over=end_on_take_over),
            replace=replace, stillness=Stillness(0.01),
        )  # fmt: skip
        self.desk.open = True
        self.results = {}
        self.step(1.0)

    def permit(self, allowed):
        def change():
            self.enabled, self.held = allowed, False

        return Answer(self, change)

    def set_speed(self, scale):
        return Answer(self, lambda: setattr(self, "speed", scale))

    def hold_chunks(self):
        return Answer(self, lambda: setattr(self, "held", True))

    def reset_policy(self):
        return Answer(self, lambda: None)

    def send_prompt(self, prompt):
        if self.policy_alive:
            self.facts.policy.prompt = prompt

    def watch(self, goal):
        pass

    def ignore(self):
        pass

    def step(self, seconds=0.05):
        end = self.now + seconds
        while self.now < end - 1e-9:
            self.now += 0.05
            executor, policy = self.facts.executor, self.facts.policy
            if self.executor_alive:
                executor.seen_s = self.now
                executor.enabled, executor.speed_scale = self.enabled, self.speed
                executor.intervention = self.person
            if self.policy_alive:
                policy.seen_s, policy.active = self.now, self.policy_active
                policy.policy_id = "one"
                if self.engine_alive and self.policy_active:
                    policy.chunks += 1
                    policy.chunk_s, policy.chunk_prompt = self.now, policy.prompt
            self.desk.tick(self.now, self.now)
            for goal, result in self.desk.finished:
                assert goal.goal_id not in self.results, "a goal has one result"
                assert result.reason in REASONS
                self.results[goal.goal_id] = result
            self.desk.finished.clear()

    def send(self, limit_s=60.0):
        if self.desk.refusal():
            return None
        goal_id = f"{next(self.numbers):032x}"
        self.desk.accept(TaskGoal(goal_id, "push", limit_s, End.EXTERNAL, "", 0.0, False, 0.5))
        return goal_id

    def reach(self, state):
        self.engine_alive = state != "preparing"
        goal = self.send()
        self.step(0.5)
        if state == "taken over":
            self.person = True
            self.step()
        elif state == "ending":
            self.executor_alive = False  # or it ends too soon to look
            self.desk.cancel(goal)
            self.step()
        assert self.desk.run.state == state
        return goal


def mend(world):
    world.executor_alive = world.policy_alive = world.engine_alive = world.policy_active = True
    world.person = False


EVENTS = {
    "cancel": lambda w, goal: w.desk.cancel(goal),
    "new goal": lambda w, goal: w.send(),
    "deactivate": lambda w, goal: (setattr(w.desk, "open", False), w.desk.interrupt("ends")),
    "engine death": lambda w, goal: setattr(w, "engine_alive", False),
    "executor death": lambda w, goal: setattr(w, "executor_alive", False),
    "policy death": lambda w, goal: setattr(w, "policy_alive", False),
    "policy deactivated": lambda w, goal: setattr(w, "policy_active", False),
    "permission withdrawn": lambda w, goal: setattr(w, "enabled", False),
    "finish": lambda w, goal: w.desk.finish(False),
}


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", STATES)
def test_whatever_happens_a_task_has_one_result_and_leaves_no_permission(state, event, replace):
    world = World(replace)
    goal = world.reach(state)
    EVENTS[event](world, goal)
    world.step(70)
    mend(world)
    world.step(70)
    assert goal in world.results
    assert world.desk.idle
    assert not world.desk.owes
    assert not world.enabled
    assert (world.speed, world.held) == (1.0, False)


def test_chunks_are_held_while_a_person_has_the_arm_and_the_speed_is_left_alone():
    world = World()
    goal = world.reach("taken over")
    world.step()
    assert world.held
    assert world.speed == 0.5  # the goal's
    world.person = False
    world.step()
    assert world.held or not world.enabled
    world.step(1)
    assert world.results[goal].reason == "taken over"
    assert (world.enabled, world.held, world.speed) == (False, False, 1.0)


@pytest.mark.parametrize("part", ["watch", "reset_policy", "set_speed", "hold_chunks"])
def test_an_error_of_the_program_ends_a_task_as_everything_else_does(part, monkeypatch):
    world = World()

    def broken(*_):
        raise RuntimeError("no such topic")

    monkeypatch.setattr(world, part, broken)
    goal = world.send()
    world.step(0.5)
    world.person = True
    world.step(1)
    monkeypatch.undo()
    world.step(1)
    result = world.results[goal]
    assert (result.reason, result.outcome) == ("fault", "unknown")
    assert "RuntimeError: no such topic" in result.message
    assert "broken" in world.desk.last.crash
    assert not world.enabled
    assert world.send() is not None


def test_permission_that_could_not_be_withdrawn_is_owed():
    world = World()
    goal = world.reach("running")
    world.executor_alive = False
    world.step(20)
    assert world.results[goal].reason == "fault"
    assert "has not confirmed" in world.results[goal].message
    assert world.desk.owes
    assert world.send() is None
    assert world.enabled
    mend(world)
    world.step(1)
    assert not world.enabled
    assert world.speed == 1.0
    assert world.send() is not None


def test_nothing_is_changed_while_the_executor_has_permission():
    world = World()
    world.enabled, seen = True, []
    world.send_prompt = lambda prompt: (
        seen.append(world.enabled), setattr(world.facts.policy, "prompt", prompt),
    )  # fmt: skip
    world.send()
    world.step(2)
    assert seen == [False]
    assert world.enabled


def test_a_clock_that_jumps_back_ends_a_task():
    world = World()
    goal = world.reach("running")
    world.desk.tick(world.now - 10, world.now)
    world.step(1)
    assert world.results[goal].reason == "fault"
    assert "clock" in world.results[goal].message


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([*EVENTS, "mend", "goal", "person", "wait"]), max_size=12))
def test_any_sequence_of_events_ends_in_order(events):
    world = World(replace=True)
    goals = []
    for event in events:
        if event == "mend":
            mend(world)
            world.desk.open = True
        elif event in ("goal", "new goal"):
            goals.append(world.send())
        elif event == "person":
            world.person = not world.person
        elif event == "wait":
            world.step(3)
        else:
            EVENTS[event](world, goals[-1] if goals and goals[-1] else "none")
        world.step(0.1)
    world.desk.open = False
    world.desk.interrupt("the end")
    mend(world)
    world.step(80)
    assert {goal for goal in goals if goal} == set(world.results)
    if goals and any(goals):
        assert not world.enabled
    assert world.speed == 1.0


def test_the_documented_parameters_are_those_of_the_node():
    assert markdown_table(SPECS) in DOCS.read_text(encoding="utf-8")
