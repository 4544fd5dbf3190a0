"""The executor node with real rclpy: a client sends chunks and joint states, and looks."""

from __future__ import annotations

import time

import numpy as np
import pytest
from executor_client import JOINTS, LIMITS, START, Client
from node_rig import NodeRig, build_and_close
from rclpy.clock import ClockType
from rclpy.duration import Duration
from std_msgs.msg import Header
from std_srvs.srv import Trigger

from pi05_ros.execution.limits import LimitsError, limits_from_yaml
from pi05_ros.ros.executor_node import ExecutorNode
from pi05_ros.runtime.parameters import ParameterError


class Rig(NodeRig):
    """Executor node and client in one process, spun together."""

    def __init__(self, **parameters):
        super().__init__(ExecutorNode, Client, {"limits_file": str(LIMITS), **parameters})

    def until(self, condition, seconds=10.0, each=None):
        end = time.monotonic() + seconds
        sent = 0.0
        while time.monotonic() < end:
            if each is not None and time.monotonic() - sent > 0.02:
                sent = time.monotonic()
                each()
            self.executor.spin_once(timeout_sec=0.01)
            if condition():
                return True
        return False


@pytest.fixture
def rig():
    yield from build_and_close(Rig)


def follow(rig, number=1, **changes):
    client = rig.client
    assert rig.until(lambda: rig.node.core.measured is not None, each=client.send_state)
    client.send_chunk(number, **changes)


def test_chunks_become_trajectories_and_gripper_commands_within_limits(rig):
    rig = rig()
    follow(rig, target=2.0)
    client = rig.client
    assert rig.until(lambda: len(client.trajectories) >= 12, each=client.send_state)
    message = client.trajectories[0]
    assert message.joint_names == JOINTS[:6]
    assert message.points[0].time_from_start.nanosec == 50_000_000
    path = np.array([m.points[0].positions[0] for m in client.trajectories])
    limits = limits_from_yaml(LIMITS)
    assert path[-1] > 0.2
    assert np.abs(np.diff(path)).max() <= limits.velocity[0] * 0.05 + 1e-6
    assert np.abs(np.diff(path, 2)).max() <= limits.acceleration[0] * 0.05**2 + 1e-6
    assert max(client.gripper) > 0.5
    assert rig.until(lambda: any(text == "following" for text, _ in client.diagnostics))


def test_forward_output_and_hold_when_the_chunk_runs_out(rig):
    rig = rig(output="forward")
    follow(rig)
    client = rig.client
    holds = [""]

    def holding():
        holds[:] = [text for text, _ in client.diagnostics if text.startswith("holding")]
        return bool(holds)

    assert rig.until(holding, each=client.send_state)
    assert "no fresh chunk" in holds[0]
    assert not client.trajectories
    assert len(client.forward[-1]) == 6
    assert client.forward[-1][0] == pytest.approx(0.1, abs=1e-3)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"random_weights": True}, "refused.random_weights"),
        ({"data": [float("nan")] * 112}, "refused.not_finite"),
        ({"data": [0.0] * 3}, "refused.length"),
        ({"names": ["x"] * 7}, "refused.names"),
        ({"meaning": [9] * 7}, "refused.meaning"),
    ],
)
def test_refused_chunks_do_not_move_and_are_named_in_diagnostics(rig, changes, key):
    rig = rig()
    follow(rig, **changes)
    client = rig.client
    assert rig.until(lambda: any(values.get(key) == "1" for _, values in client.diagnostics))
    assert not client.trajectories


def test_random_weights_run_where_they_are_allowed(rig):
    rig = rig(allow_random_weights=True)
    follow(rig, random_weights=True)
    assert rig.until(lambda: bool(rig.client.trajectories), each=rig.client.send_state)


def test_stop_and_resume_services(rig):
    rig = rig()
    follow(rig)
    client = rig.client
    assert rig.until(lambda: len(client.trajectories) > 2, each=client.send_state)
    for name, mode in (("stop", "stopped"), ("resume", "holding")):
        service = client.create_client(Trigger, f"/pi05_executor/{name}")
        assert rig.until(service.service_is_ready)
        future = service.call_async(Trigger.Request())
        assert rig.until(future.done)
        assert future.result().success
        client.diagnostics.clear()
        assert rig.until(
            lambda mode=mode: any(t.startswith(mode) for t, _ in client.diagnostics),
            each=client.send_state,
        )
    client.send_chunk(2)
    client.diagnostics.clear()
    assert rig.until(
        lambda: any(t == "following" for t, _ in client.diagnostics), each=client.send_state
    )


def test_incomplete_joint_states_are_counted(rig):
    rig = rig()
    client = rig.client
    assert rig.until(
        lambda: any(int(v["bad_joint_states"]) > 0 for _, v in client.diagnostics),
        each=lambda: client.send_state(["joint1"], [0.0]),
    )
    assert rig.node.core.measured is None


def test_a_gripper_that_is_no_joint_is_pointed_out(rig, capfd):
    node = rig(gripper_joint="hand").node
    assert "gripper_joint 'hand' is not among the joints" in capfd.readouterr().err
    assert len(node._arm) == 7


def test_an_arm_at_rest_that_is_moved_is_let_go_and_a_gripper_may_hold_something(rig):
    rig = rig(following_lag_s=0.02)
    follow(rig)
    client = rig.client
    assert rig.node.core.settings.gripping == ("gripper",)
    # The gripper stays far from its command, joint1 does so only later.
    place = [0.1, *START[1:]]
    held = "holding: no fresh chunk"
    assert rig.until(
        lambda: any(text == held for text, _ in client.diagnostics),
        each=lambda: client.send_state(JOINTS, place),
    )
    client.diagnostics.clear()
    rig.until(lambda: False, 1.0, each=lambda: client.send_state(JOINTS, place))
    assert {text for text, _ in client.diagnostics} == {held}
    place[0] = 0.4
    let_go = "waiting: joint1 is 0.300 from where it is held"
    assert rig.until(
        lambda: any(text.startswith(let_go) for text, _ in client.diagnostics),
        each=lambda: client.send_state(JOINTS, place),
    )
    client.trajectories.clear()
    rig.until(lambda: False, 0.2, each=lambda: client.send_state(JOINTS, place))
    assert not client.trajectories
    client.send_chunk(2, target=0.4)
    assert rig.until(lambda: client.trajectories, each=lambda: client.send_state(JOINTS, place))
    assert client.trajectories[0].points[0].positions[0] == pytest.approx(0.4)


def test_a_misspelt_parameter_is_pointed_out(rig, capfd):
    rig(strategie="rtc")
    assert "did you mean 'strategy'" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"limits_file": ""}, ParameterError, "limits_file"),
        ({"limits_file": "/does/not/exist"}, LimitsError, "cannot read"),
        ({"limits_file": "~no_such_user/limits.yaml"}, LimitsError, "cannot read ~no_such_user"),
        ({"strategy": "hope"}, ParameterError, "replace, ensemble, rtc"),
        ({"output": "smoke"}, ParameterError, "trajectory, forward"),
        ({"control_rate_hz": 0.0}, ParameterError, "1 to 1000"),
        ({"joints": ["joint9"]}, LimitsError, "joint9"),
        ({"joints": "joint1"}, ParameterError, r"must be a string\[\]"),
        ({"joints": 5}, ParameterError, r"must be a string\[\]"),
    ],
)
def test_bad_parameters_are_refused_with_the_accepted_values(parameters, error, message):
    with pytest.raises(error, match=message):
        Rig(**parameters)


@pytest.mark.parametrize(
    ("sim", "kind"), [(False, ClockType.STEADY_TIME), (True, ClockType.ROS_TIME)]
)
def test_ticks_do_not_depend_on_system_time(rig, sim, kind):
    # A timer on system time stands still for an hour when that is set back by an hour.
    node = rig(use_sim_time=sim).node
    (ticking,) = (timer for timer in node.timers if timer.timer_period_ns == 50_000_000)
    assert ticking.clock.clock_type == kind


def test_system_time_that_is_set_back_while_moving_brakes_and_goes_on(rig, monkeypatch):
    rig = rig()
    client, clock = rig.client, rig.node.get_clock()
    follow(rig, target=2.0)
    assert rig.until(lambda: len(client.trajectories) >= 4, each=client.send_state)
    real = clock.now
    monkeypatch.setattr(clock, "now", lambda: real() - Duration(seconds=3600))

    def heard(word):
        return any(text.startswith(word) for text, _ in client.diagnostics)

    client.diagnostics.clear()
    assert rig.until(lambda: heard("holding"), each=client.send_state)
    client.diagnostics.clear()
    client.send_chunk(1, header=Header(stamp=clock.now().to_msg()))
    assert rig.until(lambda: heard("following"), each=client.send_state)
