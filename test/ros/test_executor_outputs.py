"""Outputs over ROS: whole trajectories, velocities, two arms, and actions that are not there."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from executor_client import JOINTS, START, Rig
from node_rig import build_and_close
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory

from pi05_ros.execution.outputs import OutputsError
from pi05_ros.ros.executor_outputs import GoalFilter

TWO_ARMS = """outputs:
  - {kind: trajectory_chunk, topic: left/joint_trajectory, joints: [joint1, joint2, joint3]}
  - {kind: velocity, topic: right/commands, joints: [joint6, joint5, joint4]}
  - {kind: position, topic: hand/commands, joints: [gripper], gripper: true, scale: 0.8}
"""


@pytest.fixture
def rig():
    yield from build_and_close(Rig)


def test_two_arms_of_different_kinds_in_one_executor(rig, tmp_path):
    path = tmp_path / "outputs.yaml"
    path.write_text(TWO_ARMS)
    rig = rig(outputs_file=str(path))
    client = rig.client
    left, right, hand = [], [], []
    client.create_subscription(JointTrajectory, "left/joint_trajectory", left.append, 50)
    client.create_subscription(
        Float64MultiArray, "right/commands", lambda m: right.append(list(m.data)), 50
    )
    client.create_subscription(
        Float64MultiArray, "hand/commands", lambda m: hand.append(m.data[0]), 50
    )
    place, number = list(START), [0]

    def feed():
        client.send_state(JOINTS, place)
        number[0] += 1
        if number[0] % 8 == 0:
            rows = np.tile(START, (16, 1))
            rows[:, 0], rows[:, 5], rows[:, 6] = 0.2, 0.3, 1.0
            client.send_chunk(number[0], data=rows.astype(np.float32).ravel().tolist())
        if rig.node.core.filter.position is not None:
            place[:] = rig.node.core.filter.position.tolist()

    assert rig.until(lambda: len(left) > 4 and len(right) > 30 and hand, each=feed)
    limits = rig.node.core.limits
    for message in left:
        assert message.joint_names == ["joint1", "joint2", "joint3"]
        times = [p.time_from_start.sec + p.time_from_start.nanosec / 1e9 for p in message.points]
        assert times[0] == pytest.approx(0.025)  # half a period ahead
        assert (np.diff(times) > 0).all()
        points = np.array([p.positions for p in message.points])
        speeds = np.array([p.velocities for p in message.points])
        assert speeds.shape == points.shape
        assert speeds[-1] == pytest.approx([0, 0, 0])
        assert (np.abs(np.diff(points, axis=0)) <= limits.velocity[:3] * 0.05 + 1e-6).all()
    assert len(left) < len(right)  # not in every period
    assert max(row[0] for row in right) > 0.1
    assert (np.abs(right) <= limits.velocity[3:6] + 1e-9).all()
    assert max(hand) <= 0.8
    rig.until(lambda: False, 1.0, each=lambda: client.send_state(JOINTS, place))
    rig.node.soft_stop()
    rig.until(lambda: False, 0.2)
    assert right[-1] == [0.0, 0.0, 0.0]


def test_actions_need_a_package_and_say_so(rig, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "control_msgs", None)
    text = TWO_ARMS.replace("{kind: position", "{kind: gripper_command")
    path = tmp_path / "outputs.yaml"
    path.write_text(text.replace("hand/commands", "hand/gripper_cmd"))
    with pytest.raises(OutputsError, match="gripper_cmd: gripper_command needs the package"):
        rig(outputs_file=str(path))


def test_grippers_get_a_goal_when_it_changes_and_not_too_often():
    goals = GoalFilter(0.02)
    sent = [goals.take(0.0) for _ in range(10)]
    assert sent == [True] + [False] * 9
    sent = [goals.take(0.01 * k) for k in range(1, 11)]
    assert sum(sent) == 2
    assert goals.take(0.2) or any(goals.take(0.2) for _ in range(5))
