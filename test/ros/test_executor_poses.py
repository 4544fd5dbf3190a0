"""The executor node with chunks of poses, and its outputs for Servo and Cartesian controllers."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from executor_client import JOINTS, START, Rig
from geometry_msgs.msg import PoseStamped, TwistStamped
from node_rig import build_and_close
from pi05_ros.msg import ActionChunk, PoseGroup
from std_msgs.msg import String

from pi05_ros.execution.command import Command
from pi05_ros.execution.kinematics.robot_model import RobotModel
from pi05_ros.execution.outputs import JOINT_JOG, Output, OutputsError
from pi05_ros.ros import qos
from pi05_ros.ros.executor_parts.cartesian_senders import JogSender
from pi05_ros.sim.arm.pose_actions import arm_urdf

pytest.importorskip("pinocchio")
COLUMNS = ["x", "y", "z", "rx", "ry", "rz"]
OUTPUTS = """outputs:
  - {kind: KIND, topic: tool_motion, joints: [joint1, joint2, joint3, joint4, joint5, joint6],
     frame: base, tool: tip, max_linear: 0.3, max_angular: 1.0}
  - {kind: position, topic: hand, joints: [gripper], gripper: true}
"""


@pytest.fixture
def rig():
    yield from build_and_close(Rig)


def chunk(client, number, lift=0.002, steps=16, **changes):
    """Each step lifts the tip a little."""
    rows = np.zeros((steps, 7))
    rows[:, 2] = lift
    message = ActionChunk(
        chunk_id=number,
        policy_id="test",
        names=[*COLUMNS, "gripper"],
        horizon=steps,
        meaning=[ActionChunk.ACTION_TASK_DELTA] * 6 + [ActionChunk.ACTION_ABSOLUTE],
        unit=[ActionChunk.UNIT_METRE] * 3
        + [ActionChunk.UNIT_RADIAN] * 3
        + [ActionChunk.UNIT_GRIPPER_OPEN_0_CLOSED_1],
        data=rows.astype(np.float32).ravel().tolist(),
        pose_groups=[
            PoseGroup(
                name="hand",
                frame_id="base",
                tool_frame_id="tip",
                columns=COLUMNS,
                rotation=PoseGroup.ROTATION_VECTOR,
                axes=PoseGroup.AXES_BASE,
            )
        ],
    )
    message.step.nanosec = 50_000_000
    message.header.stamp = client.get_clock().now().to_msg()
    for name, value in changes.items():
        setattr(message, name, value)
    client.chunks.publish(message)


def feeder(rig, place):
    number = [0]

    def feed():
        rig.client.send_state(JOINTS, place)
        number[0] += 1
        if number[0] % 8 == 0:
            chunk(rig.client, number[0])
        if rig.node.core.filter.position is not None:
            place[:] = rig.node.core.filter.position.tolist()

    return feed


def heights(place):
    return RobotModel(arm_urdf(), JOINTS[:6]).pose(np.array(place[:6]), "tip").position


def test_poses_move_the_arm(rig):
    rig = rig(robot_description=arm_urdf())
    place, began = list(START), heights(START)
    assert rig.until(lambda: heights(place)[2] > began[2] + 0.02, each=feeder(rig, place))
    now = heights(place)
    np.testing.assert_allclose(now[:2], began[:2], atol=2e-3)  # straight up
    refused = rig.node.core.refused  # a busy machine is slower than the chunks come
    assert set(refused) <= {"busy", "stale"}, refused


def test_the_description_may_come_by_topic_and_until_then_chunks_are_refused(rig):
    rig = rig()
    client, place = rig.client, list(START)
    feed = feeder(rig, place)
    core = rig.node.core
    assert rig.until(lambda: core.refused["pose"] > 0, each=feed)
    assert "robot_description" in core.last_refusal
    client.create_publisher(String, "robot_description", qos.LATCHED).publish(
        String(data=arm_urdf())
    )
    assert rig.until(lambda: core.accepted > 0, each=feed)


def test_reasons_of_refused_poses_are_told(rig):
    rig = rig(robot_description=arm_urdf())
    client, core = rig.client, rig.node.core
    assert rig.until(lambda: core.measured is not None, each=client.send_state)
    chunk(client, 1, lift=2.0)
    assert rig.until(lambda: core.refused["unreachable"] == 1, each=client.send_state)
    assert "tip at (" in core.last_refusal
    data = np.zeros((16, 7), np.float32)
    data[3, 4] = np.nan
    chunk(client, 2, data=data.ravel().tolist())
    assert rig.until(lambda: core.refused["not finite"] == 1, each=client.send_state)


@pytest.mark.parametrize("kind", ["twist", "pose"])
def test_motion_of_the_tool_is_sent(rig, tmp_path, kind):
    path = tmp_path / "outputs.yaml"
    path.write_text(OUTPUTS.replace("KIND", kind))
    rig = rig(outputs_file=str(path), robot_description=arm_urdf())
    got: list[TwistStamped | PoseStamped] = []
    message = TwistStamped if kind == "twist" else PoseStamped
    rig.client.create_subscription(message, "tool_motion", got.append, 50)
    place, began = list(START), heights(START)
    if kind == "twist":
        moved = lambda: any(m.twist.linear.z > 0.01 for m in got)  # noqa: E731
    else:
        moved = lambda: any(m.pose.position.z > began[2] + 0.01 for m in got)  # noqa: E731
    assert rig.until(moved, each=feeder(rig, place))
    assert {m.header.frame_id for m in got} == {"base"}
    assert all(m.header.stamp.sec > 0 for m in got)
    if kind == "pose":
        turn = got[-1].pose.orientation
        assert np.linalg.norm([turn.x, turn.y, turn.z, turn.w]) == pytest.approx(1.0)
        np.testing.assert_allclose(got[-1].pose.position.x, began[0], atol=5e-3)
        return
    speeds = [[m.twist.linear.x, m.twist.linear.y, m.twist.linear.z] for m in got]
    assert np.linalg.norm(speeds, axis=1).max() <= 0.3 + 1e-9
    rig.until(lambda: False, 1.0, each=lambda: rig.client.send_state(JOINTS, place))
    rig.node.soft_stop()
    last = lambda: got[-1].twist.linear.z == got[-1].twist.angular.x == 0.0  # noqa: E731
    assert rig.until(last)


def test_a_twist_needs_the_robot_description(rig, tmp_path):
    path = tmp_path / "outputs.yaml"
    path.write_text(OUTPUTS.replace("KIND", "twist"))
    with pytest.raises(OutputsError, match="needs the robot description"):
        rig(outputs_file=str(path), robot_description_timeout_s=0.0)


def test_jogging_needs_a_package_and_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "control_msgs", None)
    output = Output(JOINT_JOG, "jog", tuple(JOINTS[:6]))
    with pytest.raises(OutputsError, match="joint_jog needs the package control_msgs"):
        JogSender(SimpleNamespace(), output, list(range(6)))


def test_jogging_sends_velocities(rig, monkeypatch):
    """With a stand-in for control_msgs/JointJog, which no package index has."""

    def jog():
        return SimpleNamespace(header=SimpleNamespace(stamp=None))

    package, module = ModuleType("control_msgs"), ModuleType("control_msgs.msg")
    module.JointJog = jog
    package.msg = module
    monkeypatch.setitem(sys.modules, "control_msgs", package)
    monkeypatch.setitem(sys.modules, "control_msgs.msg", module)
    core = rig().node.core
    sent = []
    node = SimpleNamespace(
        create_publisher=lambda *_: SimpleNamespace(publish=sent.append),
        get_clock=core_clock,
    )
    sender = JogSender(node, Output(JOINT_JOG, "jog", ("joint2", "joint1"), gain=2.0), [1, 0])
    positions = np.array(START)
    core.filter.reset(positions)
    sender.send(Command(None, "waiting", ""), core)
    assert sent == []
    sender.send(Command(positions, "following", ""), core)
    sender.send(Command(None, "stopped", ""), core)
    assert [m.joint_names for m in sent] == [["joint2", "joint1"]] * 2
    assert sent[0].velocities == [0.0, 0.0]
    assert sent[0].duration == pytest.approx(core.settings.period_s)
    assert sent[-1].velocities == [0.0, 0.0]


def core_clock():
    stamp = SimpleNamespace(to_msg=lambda: "now")
    return SimpleNamespace(now=lambda: stamp)
