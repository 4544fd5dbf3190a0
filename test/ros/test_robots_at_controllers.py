"""The executor with the files of each shipped robot, at stand-ins of its controllers.

An independent recorder differentiates what the controllers write to the hardware.
"""

import dataclasses

import numpy as np
import pytest
from robot_stand_in import RecordingNode, RobotStandIn, fake_control_msgs

from pi05_ros.execution.executor import Executor, ExecutorSettings
from pi05_ros.execution.strategies import make_strategy
from pi05_ros.execution.timed_chunk import TimedChunk
from pi05_ros.ros.executor_outputs import Outputs
from pi05_ros.runtime.robot_folder import bring_up_robots

PERIOD = 0.02  # control_rate_hz of all of them is 50
MANAGER = 0.004
STEP, HORIZON = 0.05, 16
BEGIN_S = 1.0


def wish(robot, rng):
    """Smooth motions of all joints in the middle half of their ranges, faster than they can."""
    n = len(robot.limits.names)
    amplitude, phase = rng.normal(size=(3, n)), rng.uniform(0, 6, size=(3, n))
    rate = rng.uniform(0.5, 2.5, size=(3, n))
    middle, quarter = (robot.low + robot.high) / 2, (robot.high - robot.low) / 4

    def at(t):
        waves = amplitude * (np.sin(rate * t + phase) - np.sin(rate * BEGIN_S + phase))
        return middle + quarter * np.tanh(waves.sum(axis=0))

    return at


def stream(robot, goals, *, seconds, late_s=0.0, stamped=True, seed=0):
    """Follow a stream of chunks; commands ``[k, n]`` that the controllers wrote."""
    rng = np.random.default_rng(seed)
    outputs = [dataclasses.replace(o, stamped=o.stamped and stamped) for o in robot.outputs]
    gripping = tuple(name for o in outputs if o.gripper for name in o.joints)
    settings = ExecutorSettings(period_s=PERIOD, gripping=gripping)
    core, node = Executor(robot.limits, make_strategy("rtc"), settings), RecordingNode()
    senders = Outputs(node, outputs, core)
    target, post, commands, handed = wish(robot, rng), [], [], {}
    for k in range(round(seconds / MANAGER)):
        now_s = BEGIN_S + k * MANAGER
        now_ns = round(now_s * 1e9)
        if k % round(PERIOD / MANAGER) == 0:
            node.now_ns = now_ns
            core.measure(robot.measured, now_ns)
            if k % round(0.2 / MANAGER) == 0 and now_s < BEGIN_S + seconds - 1.5:
                rows = np.array([target(now_s + STEP * i) for i in range(HORIZON)])
                rows += 0.01 * rng.normal(size=len(robot.limits.names))  # chunks disagree
                chunk = TimedChunk(now_ns, round(STEP * 1e9), rows, "p", k + 1)
                core.offer(chunk, now_ns)
            senders.send(core.tick(now_ns))
            for topic, message in node.published:
                post.append((now_s + rng.uniform(0, late_s), topic, message))
            node.published.clear()
        for item in [item for item in post if item[0] <= now_s]:
            post.remove(item)
            robot.controllers[item[1]].receive(item[2], now_s)
        for name, positions in goals.items():
            for position in positions[handed.get(name, 0) :]:
                robot.grippers[name].goal(position, now_s)
            handed[name] = len(positions)
        commands.append(robot.update(now_s))
    return np.array(commands), core


def strongest(robot, commands):
    """Largest velocity and acceleration, in the limits; the latter over a control period."""
    rows, k = robot.rows, round(PERIOD / MANAGER)
    positions = commands[:, rows]
    velocity = np.diff(positions, axis=0) / MANAGER
    pace = (positions[k:] - positions[:-k]) / PERIOD
    rate = (pace[k:] - pace[:-k]) / PERIOD
    limits = robot.limits
    return (
        (np.abs(velocity) / limits.velocity[rows]).max(),
        (np.abs(rate) / limits.acceleration[rows]).max(),
    )


@pytest.mark.parametrize("robot_name", bring_up_robots())
def test_controllers_stay_within_the_limits_and_arrive(robot_name, monkeypatch):
    goals = fake_control_msgs(monkeypatch)
    robot = RobotStandIn(robot_name, MANAGER, from_desired=True)
    start = robot.measured.copy()
    # Messages are late by up to half a control period.
    commands, core = stream(robot, goals, seconds=4.0, late_s=0.45 * PERIOD)
    fastest, strongest_a = strongest(robot, commands)
    assert fastest <= 1 + 1e-6
    assert strongest_a <= 1 + 1e-6
    for controller in robot.controllers.values():
        assert not controller.rejected
        assert not controller.held
    assert (commands >= robot.limits.lower - 1e-9).all()
    assert (commands <= robot.limits.upper + 1e-9).all()
    # They do move, and the measured joints end where the executor says.
    travel = np.ptp(commands[:, robot.rows], axis=0)
    assert (travel > 0.02 * (robot.high - robot.low)[robot.rows]).all()
    assert robot.measured == pytest.approx(core.filter.position, abs=0.02)
    assert np.abs(robot.measured - start).max() > 0.05
    for gripper in robot.grippers.values():
        assert len(gripper.goals) > 3
        assert not {"stalled"} & set(gripper.results)


def test_without_stamps_late_messages_set_the_command_back(monkeypatch):
    """Why the shipped outputs are stamped."""
    goals = fake_control_msgs(monkeypatch)
    worst = {}
    for stamped in (True, False):
        robot = RobotStandIn("ur5e_robotiq", MANAGER, from_desired=True)
        commands, _ = stream(robot, goals, seconds=3.0, late_s=0.008, stamped=stamped)
        goals.clear()
        worst[stamped] = strongest(robot, commands)
    assert max(worst[True]) <= 1 + 1e-6
    assert worst[False][1] > 2


def test_a_stream_that_ends_leaves_the_arm_at_rest(monkeypatch):
    goals = fake_control_msgs(monkeypatch)
    robot = RobotStandIn("kinova_gen3", MANAGER, from_desired=True)
    stream(robot, goals, seconds=2.0)
    # The executor has died: the controllers go on with what they have.
    rows = robot.rows
    later = np.array([robot.update(BEGIN_S + 2.0 + k * MANAGER) for k in range(400)])[:, rows]
    assert np.abs(np.diff(later[-50:], axis=0)).max() < 1e-9
    rate = np.diff(later, 2, axis=0) / MANAGER**2
    assert (np.abs(rate) <= robot.limits.acceleration[rows] * 1.01).all()
