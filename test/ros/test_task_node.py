"""The action RunPolicy with real nodes: how tasks begin and end, and what is left behind."""

from __future__ import annotations

import pytest
from std_msgs.msg import Bool
from std_srvs.srv import SetBool
from task_rig import ABORTED, ACTIVATE, CANCELED, CONFIGURE, DEACTIVATE, SHORT, SUCCEEDED, TaskRig


@pytest.fixture
def rig():
    made = []

    def build(**parameters):
        made.append(TaskRig(**parameters))
        made[-1].activate()
        return made[-1]

    yield build
    for each in made:
        each.close()


def test_a_task_runs_until_the_success_topic_is_true(rig):
    rig = rig()
    number = rig.policy.resets
    rig.policy.prompt = "another"
    goal = {"end": 1, "success_topic": "cube_in_box", "hold_s": 0.2, "speed_scale": 0.5}
    handle = rig.send(prompt="push_the cube", **goal)
    assert rig.until(lambda: rig.moving)
    assert rig.policy.resets == number + 1
    assert rig.policy.prompt == "push_the cube"
    assert rig.arm.core.speed_scale == 0.5
    assert rig.until(lambda: rig.person.feedback[-1].executor_mode_name == "following")
    feedback = rig.person.feedback[-1]
    assert feedback.chunks > 0
    assert 59 < feedback.elapsed_s + feedback.remaining_s <= 60.001
    rig.person.success.publish(Bool(data=False))
    assert rig.until(lambda: rig.person.feedback[-1].elapsed_s > 0.4)
    status, result = None, handle.get_result_async()
    rig.until(result.done, each=lambda: rig.person.success.publish(Bool(data=True)))
    status, result = result.result().status, result.result().result
    assert (status, result.termination_reason, result.outcome) == (SUCCEEDED, "done", "success")
    assert result.bag_path == ""
    assert result.chunks > 0
    assert rig.arm.core.speed_scale == 1.0
    rig.assert_at_rest()


def test_a_task_without_a_verdict_is_unknown_and_one_that_is_not_done_failed(rig):
    rig = rig()
    handle = rig.send(time_limit_s=0.5)
    status, result = rig.result(handle)
    assert (status, result.termination_reason, result.outcome) == (ABORTED, "timeout", "unknown")
    handle = rig.send(time_limit_s=0.7, end=1, success_topic="cube_in_box")
    future = handle.get_result_async()
    rig.until(future.done, each=lambda: rig.person.success.publish(Bool(data=False)))
    result = future.result().result
    assert (result.termination_reason, result.outcome) == ("timeout", "failure")
    rig.assert_at_rest()


@pytest.mark.parametrize("done", [True, False])
def test_somebody_says_how_it_went(rig, done):
    rig = rig()
    handle = rig.reach("running")
    assert rig.call(SetBool, "/pi05_task/finish", data=done).success
    status, result = rig.result(handle)
    outcome = "success" if done else "failure"
    assert (status, result.termination_reason, result.outcome) == (SUCCEEDED, "done", outcome)
    rig.assert_at_rest()


def test_an_arm_that_the_policy_keeps_still_ends_a_task(rig):
    rig = rig()
    handle = rig.send(end=2, hold_s=0.5)
    assert rig.until(lambda: rig.moving)
    rig.policy.still = True
    status, result = rig.result(handle)
    assert (status, result.termination_reason) == (SUCCEEDED, "done"), result
    assert "still" in result.message
    rig.assert_at_rest()


WRONG = {
    "time": ({"time_limit_s": -1.0}, "time_limit_s"),
    "not a number": ({"time_limit_s": float("nan")}, "time_limit_s"),
    "speed": ({"speed_scale": 1.5}, "speed_scale"),
    "slow": ({"speed_scale": -0.5}, "speed_scale"),
    "end": ({"end": 9}, "end is 9"),
    "no topic": ({"end": 1}, "success_topic is empty"),
    "topic": ({"end": 1, "success_topic": "a b"}, "success_topic"),
    "line": ({"end": 1, "success_topic": "done\n"}, "success_topic"),
    "other type": ({"end": 1, "success_topic": "/diagnostics"}, "accepted: std_msgs/msg/Bool"),
    "hold": ({"end": 2, "hold_s": 0.0}, "hold_s"),
    "prompt": ({"prompt": "x" * 5000}, "5000 characters"),
}


def test_wrong_goals_are_refused_with_a_reason(rig):
    rig = rig()
    for goal, reason in WRONG.values():
        assert rig.send(**goal) is None
        assert rig.until(lambda r=reason: r in rig.person.task_statuses[-1].last_refused)
    assert not rig.arm.core.interlocks.enabled


def test_a_task_does_not_start_where_it_may_not(rig):
    rig = rig(step_timeout_s=1.0, first_chunk_timeout_s=1.0)
    rig.arm.core.interlocks.halted = True
    rig.arm.publish_status()
    facts = rig.task._facts
    assert rig.until(lambda: facts.executor.halted)
    _, result = rig.result(rig.send())
    assert (result.termination_reason, result.message) == ("fault", "the executor is halted")
    rig.arm.core.interlocks.halted = False
    rig.arm.publish_status()
    rig.policy.active = False
    rig.policy.tell()
    assert rig.until(lambda: not facts.policy.active and not facts.executor.halted)
    _, result = rig.result(rig.send())
    assert "not active" in result.message
    rig.policy.active = True
    rig.policy.tell()
    rig.policy.engine = False
    assert rig.until(lambda: facts.policy.active)
    _, result = rig.result(rig.send())
    assert "no chunk since" in result.message
    rig.policy.engine = True
    _, result = rig.result(rig.send(record=True))
    assert "recorder does not record" in result.message
    rig.assert_at_rest()
    assert not rig.person.commands


def test_taken_over_ends_when_the_arm_is_handed_back(rig):
    rig = rig()
    handle = rig.reach("taken over")
    assert rig.until(lambda: rig.arm.core.hold_until_enabled)
    assert rig.until(lambda: abs(rig.person.place[1] - 0.6) < 0.01)
    rig.person.steering = False
    status, result = rig.result(handle)
    assert (status, result.termination_reason) == (ABORTED, "taken over")
    assert rig.arm.core.speed_scale == 1.0
    assert not rig.arm.core.hold_until_enabled
    assert abs(rig.person.place[1] - 0.6) < 0.02  # no chunk was joined after the hand-back
    rig.assert_at_rest()


def test_a_task_node_that_dies_in_a_take_over_leaves_the_arm_held_until_the_next_task(rig):
    rig = rig()
    rig.reach("taken over")
    assert rig.until(lambda: rig.arm.core.hold_until_enabled)
    rig.kill_task()
    rig.person.steering = False
    assert rig.until(lambda: not rig.arm.core.intervention and rig.arm.core.filter.resting)
    seen = rig.policy.number
    assert rig.until(lambda: rig.policy.number > seen + 5)
    assert rig.person.statuses[-1].reason.startswith("chunks are held until permission")
    assert rig.arm.core.filter.resting
    rig.person.feedback.clear()
    rig.start_task()
    handle = rig.reach("running")
    handle.cancel_goal_async()
    assert rig.result(handle)[1].termination_reason == "cancelled"
    rig.assert_at_rest()


def test_a_task_goes_on_after_a_person_had_the_arm(rig):
    rig = rig(on_take_over="continue")
    handle = rig.reach("taken over")
    rig.person.steering = False
    assert rig.until(lambda: rig.moving)
    rig.call(SetBool, "/pi05_task/finish", data=True)
    _, result = rig.result(handle)
    assert (result.termination_reason, result.outcome) == ("done", "success")
    rig.assert_at_rest()


STATES = ("idle", "preparing", "running", "taken over", "ending")


@pytest.mark.parametrize("state", STATES)
def test_every_state_and_what_may_happen_in_it(rig, state):
    """Cancel, deactivate, engine death, new goal; deaths of other nodes are below."""
    rig = rig()
    policy = rig.policy

    def cancel(handle):
        handle.cancel_goal_async()

    def deactivate(handle):
        assert rig.change_state(DEACTIVATE)
        assert rig.send() is None
        rig.assert_at_rest()
        assert rig.change_state(ACTIVATE)

    def stop_engine(handle):
        policy.engine, policy.message = False, "the engine process died"
        policy.tell()

    def send_another(handle):
        assert rig.send() is None

    reasons = {
        cancel: ("cancelled",),
        deactivate: ("cancelled",),
        send_another: ("cancelled",),
        stop_engine: ("fault", "cancelled"),
    }
    for event, expected in reasons.items():
        handle = rig.reach(state)
        if handle is None:
            if event in (deactivate, stop_engine):
                event(handle)
        else:
            event(handle)
            if event is stop_engine and state == "preparing":
                handle.cancel_goal_async()
            if event is send_another:
                handle.cancel_goal_async()
            _, result = rig.result(handle)
            assert result.termination_reason in expected, (event, result)
        rig.person.steering = False
        rig.assert_at_rest()
        policy.engine = True
        policy.message = ""
        policy.tell()
        assert rig.until(lambda: not rig.task._facts.executor.intervention)
        seen = policy.number
        assert rig.until(lambda s=seen: policy.number > s + 1)
        rig.person.commands.clear()
        rig.person.feedback.clear()


@pytest.mark.parametrize("state", ["preparing", "running", "taken over"])
def test_a_newer_goal_replaces_a_task(rig, state):
    rig = rig(second_goal="replace")
    first = rig.reach(state)
    second, third = rig.send(prompt="second"), rig.send(prompt="third")
    rig.policy.engine = True
    status, result = rig.result(first)
    assert (status, result.termination_reason) == (ABORTED, "replaced")
    _, result = rig.result(second)
    assert result.termination_reason == "replaced"
    rig.person.steering = False
    rig.person.feedback.clear()
    if state == "taken over":  # a person is still in charge: the third may not begin
        _, result = rig.result(third)
        assert result.termination_reason in ("fault", "cancelled")
    else:
        assert rig.until(lambda: rig.moving)
        assert rig.policy.prompt == "third"
        third.cancel_goal_async()
        status, result = rig.result(third)
        assert (status, result.termination_reason) == (CANCELED, "cancelled")
    rig.assert_at_rest()


# Deaths take their silence; test/runtime/test_tasks.py has them in every state.
def test_a_dead_policy_node_ends_a_task(rig):
    rig = rig(**SHORT)
    handle = rig.reach("running")
    rig.policy.alive = False
    _, result = rig.result(handle)
    assert (result.termination_reason, result.outcome) == ("fault", "unknown")
    assert "policy node" in result.message
    rig.assert_at_rest()


@pytest.mark.parametrize("state", ["preparing", "running"])
def test_a_dead_executor_ends_a_task_and_has_no_permission_when_it_is_back(rig, state):
    rig = rig(**SHORT)
    handle = rig.reach(state)
    rig.kill_executor()
    rig.policy.engine = True
    _, result = rig.result(handle)
    assert result.termination_reason == "fault", result
    rig.start_executor(require_enable=False)
    assert rig.until(lambda: not rig.arm.core.interlocks.enabled)
    rig.assert_at_rest()


@pytest.mark.parametrize("state", STATES)
def test_a_process_that_is_asked_to_end_takes_permission_back_first(rig, state):
    rig = rig()
    handle = rig.reach(state)
    future = None if handle is None else handle.get_result_async()
    if future is not None:
        heard = len(rig.person.feedback) + 10  # the request has to be there
        rig.until(lambda: future.done() or len(rig.person.feedback) >= heard)
    assert rig.task.end()
    rig.assert_at_rest()
    if future is not None:
        assert rig.until(future.done)
        assert future.result().result.termination_reason == "cancelled"


def test_a_node_that_is_not_active_refuses(rig):
    rig = rig()
    assert rig.change_state(DEACTIVATE)
    assert rig.send() is None
    assert rig.change_state(2)
    assert rig.send() is None
    assert rig.change_state(CONFIGURE)
    assert rig.change_state(ACTIVATE)
    assert rig.send() is not None
