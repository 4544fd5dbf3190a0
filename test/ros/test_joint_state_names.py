"""Joint states of two arms with the same joint names, on one topic."""

import pytest
from node_rig import NodeRig, build_and_close
from rclpy.node import Node
from sensor_msgs.msg import JointState

from pi05_ros.ros.robot.joint_state_names_node import SPECS, JointStateNamesNode
from pi05_ros.runtime.parameter_specs import ParameterError

SOURCES = ["left/joint_states=left_", "right/joint_states="]


class Arms(Node):
    def __init__(self, context):
        super().__init__("two_arms_with_one_name", context=context)
        self.arms = {
            side: self.create_publisher(JointState, f"{side}/joint_states", 10)
            for side in ("left", "right")
        }
        self.got = []
        self.create_subscription(JointState, "joint_states", self.got.append, 50)


class Rig(NodeRig):
    def __init__(self, **parameters):
        super().__init__(JointStateNamesNode, Arms, {"sources": SOURCES, **parameters})

    def until(self, condition, each):
        for _ in range(6000):
            each()
            self.executor.spin_once(timeout_sec=0.01)
            if condition():
                return True
        return False


@pytest.fixture
def rig():
    yield from build_and_close(Rig)


def test_each_message_is_passed_on_with_its_prefix_and_stamp(rig):
    rig = rig()

    def send():
        for side, value in (("left", 1.0), ("right", 2.0)):
            state = JointState(name=["waist", "elbow"], position=[value, -value], velocity=[0.5])
            state.header.stamp.sec = 7
            rig.client.arms[side].publish(state)

    names = lambda: {tuple(m.name) for m in rig.client.got}  # noqa: E731
    both = {("left_waist", "left_elbow"), ("waist", "elbow")}
    assert rig.until(lambda: names() == both, send)
    for message in rig.client.got:
        value = 1.0 if message.name[0].startswith("left_") else 2.0
        assert (list(message.position), list(message.velocity)) == ([value, -value], [0.5])
        assert message.header.stamp.sec == 7


@pytest.mark.parametrize(
    "sources",
    [[""], ["left/joint_states"], ["=x"], ["a=x", "b=x"], ["a=x", "a=y"], ["joint_states=x"]],
)
def test_sources_that_cannot_be_are_refused(rig, sources):
    with pytest.raises(ParameterError, match="sources"):
        rig(sources=sources)


def test_the_parameter_is_described():
    assert "topic=prefix" in SPECS["sources"].text
