"""Stops, permission, heartbeat, speed, teleoperation and the typed status over ROS."""

from __future__ import annotations

import numpy as np
import pytest
from executor_client import JOINTS, START, Rig
from node_rig import build_and_close
from pi05_ros.msg import ExecutorStatus
from rclpy.parameter import Parameter
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, Empty
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from pi05_ros.ros import qos

ME = "/pi05_executor"


@pytest.fixture
def rig():
    yield from build_and_close(Loop)


class Loop(Rig):
    """A robot that does as it is told, a policy that wants joint1 at 0.4, and the status."""

    def __init__(self, **parameters):
        super().__init__(**parameters)
        self.statuses: list[ExecutorStatus] = []
        self.interventions: list[bool] = []
        self.place, self.number, self.stuck = list(START), 0, False
        client = self.client
        client.create_subscription(
            ExecutorStatus, f"{ME}/executor_status", self.statuses.append, qos.LATCHED
        )
        client.create_subscription(
            Bool, f"{ME}/intervention", lambda m: self.interventions.append(m.data), qos.LATCHED
        )

    def feed(self):
        if self.client.trajectories and not self.stuck:
            self.place[:6] = self.client.trajectories[-1].points[-1].positions
        self.client.send_state(JOINTS, self.place)
        self.number += 1
        if self.number % 8 == 0:
            self.client.send_chunk(self.number, target=0.4)

    def reach(self, mode, reason="", each=None):
        def there():
            last = self.statuses[-1] if self.statuses else None
            return last is not None and last.mode == mode and reason in last.reason

        def both():
            self.feed()
            if each is not None:
                each()

        assert self.until(there, each=both), self.statuses[-3:]
        return self.statuses[-1]

    def call(self, kind, name, **request):
        service = self.client.create_client(kind, f"{ME}/{name}")
        assert self.until(service.service_is_ready)
        future = service.call_async(kind.Request(**request))
        assert self.until(future.done, each=self.feed)
        return future.result()

    def assert_smooth(self):
        path = np.array([m.points[0].positions for m in self.client.trajectories])
        limits = self.node.core.limits
        velocity = np.diff(path, axis=0) / 0.05
        assert (np.abs(velocity) <= limits.velocity[:6] + 1e-4).all()
        assert (np.abs(np.diff(velocity, axis=0)) / 0.05 <= limits.acceleration[:6] + 1e-2).all()


def test_the_status_is_latched_and_typed(rig):
    rig = rig()
    status = rig.reach(ExecutorStatus.MODE_FOLLOWING)
    assert list(status.joints) == JOINTS
    assert status.policy_id == "test"
    assert status.chunk_id > 0
    assert status.enabled
    assert (status.stopped, status.halted, status.fault) == (False, False, "")
    assert not status.intervention
    assert status.speed_scale == 1
    assert len(status.commanded) == len(status.measured) == 7
    late = []
    rig.client.create_subscription(
        ExecutorStatus, f"{ME}/executor_status", late.append, qos.LATCHED
    )
    assert rig.until(lambda: late)


@pytest.mark.parametrize("latched", [True, False])
def test_a_halt_holds_as_long_as_it_is_true(rig, latched):
    rig = rig()
    publisher = rig.client.create_publisher(Bool, f"{ME}/halt", qos.LATCHED if latched else 1)
    rig.reach(ExecutorStatus.MODE_FOLLOWING)
    publisher.publish(Bool(data=True))
    assert rig.reach(ExecutorStatus.MODE_STOPPED, "halted").halted
    answer = rig.call(Trigger, "resume")
    assert (answer.success, answer.message) == (False, "halted")
    publisher.publish(Bool(data=False))
    rig.reach(ExecutorStatus.MODE_FOLLOWING)
    rig.assert_smooth()


def test_permission_is_asked_for_and_can_be_taken_back(rig):
    rig = rig(require_enable=True)
    rig.reach(ExecutorStatus.MODE_STOPPED, "not enabled")
    assert not rig.client.trajectories
    assert rig.call(SetBool, "enable", data=True).success
    rig.reach(ExecutorStatus.MODE_FOLLOWING)
    rig.call(SetBool, "enable", data=False)
    assert not rig.reach(ExecutorStatus.MODE_STOPPED, "not enabled").enabled


def test_a_silent_heartbeat_is_a_fault_that_resume_ends(rig):
    rig = rig(heartbeat_timeout_s=1.0)
    publisher = rig.client.create_publisher(Empty, f"{ME}/heartbeat", 1)
    beat = lambda: publisher.publish(Empty())  # noqa: E731
    rig.reach(ExecutorStatus.MODE_STOPPED, "no heartbeat")
    rig.reach(ExecutorStatus.MODE_FOLLOWING, each=beat)
    fault = rig.reach(ExecutorStatus.MODE_FAULT, "silent for more than 1 s").fault
    assert fault
    assert rig.call(Trigger, "resume").message == "no heartbeat"
    rig.reach(ExecutorStatus.MODE_FOLLOWING, each=beat)


def test_a_joint_that_sticks_is_a_fault(rig):
    rig = rig(following_lag_s=0.02)
    rig.stuck = True
    status = rig.reach(ExecutorStatus.MODE_FAULT, "does not follow")
    assert "joint1" in status.fault
    rig.stuck = False
    assert rig.call(Trigger, "resume").success
    rig.reach(ExecutorStatus.MODE_FOLLOWING)


def test_speed_scale_is_set_while_it_runs(rig):
    rig = rig(speed_scale=0.5)
    assert rig.node.core.speed_scale == 0.5
    for value, good in ((0.0, True), (1.5, False), (float("nan"), False), (1, True)):
        parameter = Parameter("speed_scale", value=float(value))
        (result,) = rig.node.set_parameters([parameter])
        assert result.successful == good
    assert rig.node.core.speed_scale == 1
    assert rig.node.set_parameters([Parameter("hold_chunks", value=True)])[0].successful
    assert rig.node.core.hold_chunks
    assert rig.node.core.speed_scale == 1


@pytest.mark.parametrize("kind", ["joint_state", "joint_trajectory"])
def test_teleoperation_takes_over_and_hands_back(rig, kind):
    rig = rig(teleop_type=kind)
    rig.reach(ExecutorStatus.MODE_FOLLOWING)
    if kind == "joint_state":
        publisher = rig.client.create_publisher(JointState, f"{ME}/teleop", 1)
        message = JointState(name=["joint1"], position=[-0.5])
    else:
        publisher = rig.client.create_publisher(JointTrajectory, f"{ME}/teleop", 1)
        point = JointTrajectoryPoint(positions=[-0.5])
        message = JointTrajectory(joint_names=["joint1"], points=[point])
    steer = lambda: publisher.publish(message)  # noqa: E731
    assert rig.reach(ExecutorStatus.MODE_TELEOPERATED, each=steer).intervention
    assert rig.until(lambda: rig.place[0] < -0.45, each=lambda: (rig.feed(), steer()))
    assert rig.until(lambda: rig.interventions[-1])
    rig.reach(ExecutorStatus.MODE_FOLLOWING)
    assert rig.until(lambda: not rig.interventions[-1], each=rig.feed)
    rig.call(SetBool, "take_over", data=True)
    rig.reach(ExecutorStatus.MODE_TELEOPERATED, "no target yet")
    rig.call(SetBool, "take_over", data=False)
    rig.reach(ExecutorStatus.MODE_FOLLOWING)
    rig.assert_smooth()
