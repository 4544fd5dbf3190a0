"""The stand-in controllers do what the documentation of ros2_controllers says."""

import numpy as np
import pytest
from builtin_interfaces.msg import Duration
from stand_in_controllers import ForwardController, GripperServer, TrajectoryController, spline
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

PERIOD = 0.01


def trajectory(*points, stamp_s=0.0, names=("a", "b")):
    """Points are (time, positions, velocities or None, accelerations or None)."""
    message = JointTrajectory(joint_names=list(names))
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(round(stamp_s * 1e9), 10**9)
    for time_s, positions, *rates in points:
        sec, nanosec = divmod(round(time_s * 1e9), 10**9)
        point = JointTrajectoryPoint(
            positions=list(positions), time_from_start=Duration(sec=sec, nanosec=nanosec)
        )
        if rates and rates[0] is not None:
            point.velocities = list(rates[0])
        if len(rates) > 1:
            point.accelerations = list(rates[1])
        message.points.append(point)
    return message


def controller(**options):
    return TrajectoryController(("a", "b"), PERIOD, np.zeros(2), **options)


def run(made, until_s, start_s=0.0, measured=None):
    """Commands by time of a perfect arm, or of one that stays at ``measured``."""
    times, rows = np.arange(start_s, until_s, PERIOD), []
    for now_s in times:
        rows.append(made.update(now_s, made.command if measured is None else measured))
    return times, np.array(rows)


@pytest.mark.parametrize("degree", [1, 3, 5])
def test_splines_pass_through_points_with_their_rates(degree):
    """Linear, cubic and quintic are exact for polynomials of their degree."""
    rng = np.random.default_rng(degree)
    powers = rng.normal(size=(degree + 1, 2))

    def state(t):
        order = np.arange(degree + 1)
        p = (powers * t ** order[:, None]).sum(axis=0)
        v = (order[1:, None] * powers[1:] * t ** order[:-1, None]).sum(axis=0)
        second = (order[2:] * order[1:-1])[:, None] * powers[2:] * t ** order[:-2, None]
        return p, v if degree > 1 else None, second.sum(axis=0) if degree > 3 else None

    for t in np.linspace(0, 0.7, 8):
        position, velocity = spline(state(0.0), state(0.7), 0.7, t)
        assert position == pytest.approx(state(t)[0])
        if degree > 1:
            assert velocity == pytest.approx(state(t)[1])


def test_the_last_point_is_held_and_joints_are_sorted():
    made = controller()
    made.receive(trajectory((0.2, (0.4, 0.1)), names=("b", "a")), 0.0)
    _, rows = run(made, 0.5)
    assert rows[-1] == pytest.approx([0.1, 0.4])
    assert (np.abs(np.diff(rows[:19], axis=0) / PERIOD - [0.5, 2.0]) < 1e-9).all()


def test_a_new_trajectory_starts_at_the_measured_joints_or_at_the_last_command():
    for from_desired in (False, True):
        made = controller(from_desired=from_desired)
        made.receive(trajectory((1.0, (1.0, 0.0))), 0.0)
        run(made, 0.5, measured=np.zeros(2))  # the arm lags: it has not moved at all
        before = made.command[0]
        made.receive(trajectory((0.5, (1.0, 0.0))), 0.5)
        after = made.update(0.5, np.zeros(2))[0]
        assert before == pytest.approx(0.5, abs=0.02)
        assert after == pytest.approx(before if from_desired else 0.0, abs=0.03)


def test_stamps_in_the_past_leave_points_out_and_zero_starts_now():
    points = (0.1, (1.0, 0.0)), (0.2, (2.0, 0.0)), (0.3, (3.0, 0.0))
    made = controller()
    run(made, 5.0)
    made.receive(trajectory(*points, stamp_s=4.85), 5.0)  # 0.15 s ago
    assert made.update(5.0, np.zeros(2))[0] == pytest.approx(1.6)
    made = controller()
    made.receive(trajectory(*points), 5.0)
    assert made.update(5.0, np.zeros(2))[0] == pytest.approx(0.1)
    made.receive(trajectory(*points, stamp_s=4.0), 5.0)
    assert made.rejected == ["ends in the past"]
    assert made.update(5.01, np.zeros(2))[0] == pytest.approx(0.2)  # the old one goes on


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (trajectory((0.1, (1.0,)), names=("a",)), "joints do not match"),
        (trajectory((0.1, (1.0, 1.0)), names=("a", "c")), "unknown joints"),
        (trajectory(), "no points"),
        (trajectory((0.1, (1.0, 1.0), (0.0, 0.1))), "last point is not zero"),
        (trajectory((0.1, (1.0, 1.0)), (0.1, (1.0, 1.0))), "times do not increase"),
        (trajectory((0.1, (1.0,))), "sizes"),
    ],
)
def test_messages_with_a_fault_are_rejected(message, reason):
    made = controller()
    made.receive(message, 0.0)
    assert reason in made.rejected[0]
    assert (made.update(0.0, np.zeros(2)) == 0).all()


def test_tolerances_make_it_hold_where_the_arm_is():
    made = controller(path_tolerance=0.1)
    made.receive(trajectory((1.0, (1.0, 0.0))), 0.0)
    stuck = np.array([0.05, 0.0])
    _, rows = run(made, 1.0, measured=stuck)
    assert made.held == ["path tolerance"]
    assert rows[-1] == pytest.approx(stuck)
    made = controller(goal_tolerance=0.1, goal_time_s=0.2)
    made.receive(trajectory((0.5, (1.0, 0.0))), 0.0)
    run(made, 0.65, measured=stuck)
    assert not made.held
    run(made, 1.0, start_s=0.65, measured=stuck)
    assert made.held == ["goal tolerance"]


def test_continuous_joints_go_the_short_way():
    made = TrajectoryController(("a",), PERIOD, np.array([3.1]), continuous=("a",))
    made.receive(trajectory((0.1, (-3.1,)), names=("a",)), 0.0)
    rows = [made.update(k * PERIOD, made.command)[0] for k in range(12)]
    assert max(abs(np.diff(rows))) < 0.02
    assert rows[-1] == pytest.approx(-3.1)


def test_forward_commands_are_passed_on_or_ignored():
    made = ForwardController(("a", "b"))
    assert made.update(0.0) is None
    made.receive(Float64MultiArray(data=[1.0, 2.0]), 0.0)
    made.receive(Float64MultiArray(data=[1.0]), 0.1)
    made.receive(Float64MultiArray(data=[float("nan"), 0.0]), 0.2)
    assert list(made.update(1.0)) == [1.0, 2.0]
    assert made.rejected == ["size does not match", "not finite"]


def test_gripper_goals_preempt_each_other_and_may_stall():
    made = GripperServer(0.0, 0.5, stop=lambda p: min(p, 0.3))
    made.goal(0.2, 0.0)
    for k in range(100):
        made.update(k * PERIOD)
    made.goal(0.1, 1.0)
    made.goal(0.8, 1.0)
    for k in range(100, 400):
        made.update(k * PERIOD)
    assert list(made.results) == ["reached", "canceled", "stalled"]
    assert made.position == pytest.approx(0.3)
