"""The executor node with real rclpy: a client sends chunks and joint states, and looks."""

from __future__ import annotations

import numpy as np
import pytest
import rclpy
from builtin_interfaces.msg import Duration as DurationMessage
from executor_client import JOINTS, LIMITS, START, Rig, follow
from node_rig import build_and_close
from rclpy.clock import ClockType
from rclpy.duration import Duration
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState
from std_msgs.msg import Header, String
from std_srvs.srv import Trigger

from pi05_ros.execution.limits import LimitsError, limits_from_yaml
from pi05_ros.ros import qos
from pi05_ros.ros.executor_node import ExecutorNode
from pi05_ros.ros.processes.domain import free_domain_id
from pi05_ros.runtime.parameter_specs import ParameterError


@pytest.fixture
def rig():
    yield from build_and_close(Rig)


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
    assert rig.until(lambda: max(client.gripper, default=0) > 0.5, each=client.send_state)
    assert rig.until(lambda: any(text == "following" for text, _ in client.diagnostics))


def test_forward_output_and_hold_when_the_chunk_runs_out(rig):
    rig = rig(output="forward")
    follow(rig)
    client = rig.client

    def holding():  # on a busy machine it may hold for stale joint states first
        texts = [text for text, _ in client.diagnostics if text.startswith("holding")]
        return any("no fresh chunk" in text for text in texts)

    assert rig.until(holding, each=client.send_state)
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
        ({"unit": [6] * 7}, "refused.unit"),
        ({"unit": [0] * 6}, "refused.length"),
        ({"steps_past": 17}, "refused.steps_past"),
        ({"step": DurationMessage(nanosec=2_000_000_000)}, "refused.step"),
        ({"step": DurationMessage(sec=9)}, "refused.duration"),
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


def test_joints_that_no_publisher_brings_are_named(rig):
    rig = rig()
    client = rig.client
    assert rig.until(
        lambda: any("joint states lack joint2" in text for text, _ in client.diagnostics),
        each=lambda: client.send_state(["joint1"], [0.0]),
    )
    assert rig.node.core.measured is None


def test_joint_states_that_cannot_be_read_are_counted_with_their_age(rig):
    rig = rig()
    client = rig.client
    assert rig.until(
        lambda: any(int(v["bad_joint_states"]) > 0 for _, v in client.diagnostics),
        each=lambda: client.send_state(JOINTS, [0.0]),
    )
    values = client.diagnostics[-1][1]
    assert "7 names and 1 positions" in values["last_bad_joint_state"]
    assert float(values["last_bad_joint_state_age_s"]) >= 0


def test_joint_states_in_parts_among_those_of_wheels_are_merged(rig):
    rig = rig()
    client = rig.client
    other = client.create_publisher(JointState, "joint_states", 10)

    def parts():
        client.send_state(JOINTS[:6], START[:6])
        for _ in range(8):
            other.publish(JointState(name=["left_wheel", "right_wheel"], position=[1.0, 2.0]))
        other.publish(JointState(name=["gripper"], position=[0.0]))

    assert rig.until(lambda: rig.node.core.measured is not None, each=parts)
    client.send_chunk(1)
    assert rig.until(lambda: len(client.trajectories) > 5, each=parts)


def test_a_second_publisher_that_lies_holds_the_arm_and_is_named(rig):
    rig = rig()
    client = rig.client
    liar = client.create_publisher(JointState, "joint_states", 10)
    place = list(START)

    def both(lies=True):
        if client.trajectories:
            place[:6] = client.trajectories[-1].points[0].positions
        client.send_state(JOINTS, place)
        if lies:
            for _ in range(6):
                liar.publish(JointState(name=JOINTS, position=[place[0] + 0.8, *place[1:]]))

    def honest_chunks():
        both(lies=False)
        number[0] += 1
        client.send_chunk(number[0], target=0.3)

    def tempt():
        both()
        number[0] += 1
        client.send_chunk(number[0], target=0.3)

    number = [10]
    follow(rig, target=0.3)
    assert rig.until(lambda: len(client.trajectories) > 5, each=lambda: both(lies=False))
    client.diagnostics.clear()
    word = "holding: joint states disagree about joint1"
    assert rig.until(lambda: any(t.startswith(word) for t, _ in client.diagnostics), each=both)
    assert "/client (gid " in next(t for t, _ in client.diagnostics if t.startswith(word))
    rig.until(lambda: False, 2.0, each=tempt)
    path = np.array([m.points[0].positions[0] for m in client.trajectories])
    limits = limits_from_yaml(LIMITS)
    assert np.abs(np.diff(path)).max() <= limits.velocity[0] * 0.05 + 1e-6
    assert path.max() < 0.35
    client.diagnostics.clear()
    assert rig.until(  # it goes on when the liar has left
        lambda: any(t == "following" for t, _ in client.diagnostics), each=honest_chunks
    )


URDF = """<robot name="r">
  <joint name="wheel" type="continuous"/>
  <joint name="mirror" type="revolute"><mimic joint="joint1"/></joint>
  <joint name="joint1" type="revolute"><limit lower="-2" upper="2" velocity="1.5"/></joint>
</robot>"""


def test_limits_come_from_the_latched_robot_description(capfd):
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=free_domain_id())
    source = rclpy.create_node("robot_state_publisher", context=context)
    node = None
    try:
        publisher = source.create_publisher(String, "robot_description", qos.LATCHED)
        publisher.publish(String(data=URDF))
        node = ExecutorNode(
            context=context, parameter_overrides=[Parameter("joints", value=["joint1"])]
        )
        assert node.core.limits.velocity.tolist() == [1.5]
        assert "joint1  -2     2      1.5" in capfd.readouterr().err
    finally:
        if node is not None:
            node.destroy_node()
        source.destroy_node()
        rclpy.shutdown(context=context)


def test_a_clock_that_stands_still_is_told(rig):
    rig = rig(use_sim_time=True)
    client = rig.client

    def heard(word):
        return any(word in text for text, _ in client.diagnostics)

    assert rig.until(lambda: heard("waiting: no time has come on /clock"))
    publisher = client.create_publisher(Clock, "/clock", 1)
    now = Clock()
    now.clock.sec = 100

    def feed():
        total = now.clock.sec * 1_000_000_000 + now.clock.nanosec + 20_000_000
        now.clock.sec, now.clock.nanosec = divmod(total, 1_000_000_000)
        publisher.publish(now)
        client.send_state()

    assert rig.until(lambda: rig.node.core.measured is not None, each=feed)
    rig.until(lambda: False, 0.5, each=feed)
    client.send_chunk(1, header=Header(stamp=now.clock))
    assert rig.until(lambda: heard("following"), each=feed)
    client.diagnostics.clear()
    assert rig.until(lambda: heard("holding: the clock stands still"))


def test_a_clock_set_back_and_forth_between_two_ticks_is_a_jump(rig):
    rig = rig(use_sim_time=True)
    publisher = rig.client.create_publisher(Clock, "/clock", 1)
    clock = Clock()
    clock.clock.sec = 100

    def go_on():
        clock.clock.nanosec = (clock.clock.nanosec + 20_000_000) % 10**9
        clock.clock.sec += clock.clock.nanosec == 0
        publisher.publish(clock)

    said = rig.client.diagnostics
    assert rig.until(lambda: any("no joint states" in text for text, _ in said), each=go_on)
    for second in (40, 1000):
        clock.clock.sec = second
        assert rig.until(
            lambda second=second: rig.node.get_clock().now().nanoseconds // 10**9 == second,
            each=lambda: publisher.publish(clock),
        )
    assert rig.until(lambda: rig.node.core.clock_jumps == 1)


def test_a_gripper_that_is_no_joint_is_pointed_out(rig, capfd):
    node = rig(gripper_joint="hand").node
    assert "gripper_joint 'hand' is not among the joints" in capfd.readouterr().err
    (arm,) = node._output_list
    assert arm.joints == tuple(JOINTS)


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
        ({"limits_file": "", "robot_description_timeout_s": 0.1}, ParameterError, "limits_file"),
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
