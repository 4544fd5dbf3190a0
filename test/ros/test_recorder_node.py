"""The episode recorder with real nodes: bags of tasks, of faults, of take-overs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pi05_ros.msg import RecorderStatus, TaskStatus
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image
from std_srvs.srv import SetBool, Trigger
from task_rig import TaskRig

from pi05_ros.bags.bag import Bag, BagError
from pi05_ros.bags.cdr_messages import COMPRESSED_IMAGE, IMAGE, decode, encode, image_message
from pi05_ros.bags.recording.episode_bag import KeptMessage
from pi05_ros.ros import process, qos
from pi05_ros.ros.recorder.image_packing import JpegPacking
from pi05_ros.ros.recorder.recorder_node import EpisodeRecorder
from pi05_ros.ros.recorder.recorder_parameters import SPECS
from pi05_ros.runtime.inputs.jpeg import decode_jpeg
from pi05_ros.runtime.parameter_specs import markdown_table

ME = "/episode_recorder"


class RecorderRig(TaskRig):
    """A task rig with a recorder and a camera."""

    def __init__(self, folder, recorder=None, **parameters):
        super().__init__(**parameters)
        values = {"folder": str(folder), "flush_s": 0.1, **(recorder or {})}
        overrides = [Parameter(name, value=value) for name, value in values.items()]
        self.recorder = EpisodeRecorder(context=self.context, parameter_overrides=overrides)
        self.nodes.append(self.recorder)
        self.executor.add_node(self.recorder)
        self.recorder_statuses: list[RecorderStatus] = []
        person = self.person
        person.create_subscription(
            RecorderStatus, f"{ME}/status", self.recorder_statuses.append, qos.LATCHED
        )
        self.camera = person.create_publisher(Image, "base_camera/image_raw", 1)
        person.create_timer(0.1, self.shoot)
        assert self.recorder.trigger_configure() == TransitionCallbackReturn.SUCCESS
        assert self.recorder.trigger_activate() == TransitionCallbackReturn.SUCCESS

    def shoot(self):
        image = Image(width=32, height=24, encoding="rgb8", step=96, data=bytes(32 * 24 * 3))
        image.header.stamp = self.person.get_clock().now().to_msg()
        self.camera.publish(image)

    def hears_all(self):
        wanted = {
            "/pi05_task/status", "/joint_states", "/pi05_executor/executor_status", "/prompt",
        }  # fmt: skip
        prompt = self.task._calls._prompt  # heard by policy and recorder
        return wanted <= set(self.recorder._topics.topics) and prompt.get_subscription_count() >= 2

    @property
    def last(self):
        return self.recorder_statuses[-1] if self.recorder_statuses else RecorderStatus()


@pytest.fixture
def rig(tmp_path):
    made = []

    def build(recorder=None, **parameters):
        made.append(RecorderRig(tmp_path / "bags", recorder, **parameters))
        made[-1].activate()
        assert made[-1].until(made[-1].hears_all)
        return made[-1]

    yield build
    for each in made:
        each.recorder.end()
        each.close()


def test_a_task_is_a_bag_with_all_that_belongs_to_it(rig):
    rig = rig(on_take_over="continue", recorder={"jpeg_quality": 90})
    handle = rig.send(record=True)
    assert rig.until(lambda: rig.moving)
    rig.person.steering = True
    assert rig.until(lambda: abs(rig.person.place[1] - 0.6) < 0.01)
    rig.person.steering = False
    assert rig.until(lambda: rig.feedback_state == "running")
    assert rig.until(lambda: rig.last.state == RecorderStatus.STATE_RECORDING)
    seen = rig.policy.number
    assert rig.until(lambda: rig.policy.number > seen + 5)  # all of the hand-back has been heard
    rig.call(SetBool, "/pi05_task/finish", data=True)
    _, result = rig.result(handle)
    assert result.outcome == "success"
    assert "not whole" not in result.message
    with Bag(result.bag_path) as bag:
        assert bag.whole, bag.notes
        goal_id = bytes(handle.goal_id.uuid).hex()
        custom = bag.custom
        assert custom["goal_id"] == goal_id
        assert custom["prompt"] == "push the cube"
        assert (custom["termination_reason"], custom["outcome"]) == ("done", "success")
        assert custom["policy.checkpoint_hash"] == "sha256:1234"
        assert "joint1" in custom["robot_profile"]
        assert json.loads(custom["executor_parameters"])["require_enable"] is True
        found = {}
        for message in bag.messages():
            found.setdefault(message.topic, []).append(message.decode())
    assert {
        "/prompt", "/joint_states", "/pi05_policy/action_chunk", "/pi05_policy/status",
        "/pi05_executor/executor_status", "/pi05_executor/joint_commands",
        "/pi05_executor/intervention", "/pi05_executor/teleop", "/pi05_task/status",
        "/diagnostics", "/joint_trajectory_controller/joint_trajectory",
        "/base_camera/image_raw/compressed",
    } <= set(found)  # fmt: skip
    assert [m.data for m in found["/prompt"]][-1] == "push the cube"
    states = [m.state for m in found["/pi05_task/status"]]
    assert states[0] == TaskStatus.STATE_PREPARING
    assert TaskStatus.STATE_TAKEN_OVER in states
    assert states[-1] == TaskStatus.STATE_IDLE
    assert found["/pi05_task/status"][-1].outcome == "success"
    flags = [m.data for m in found["/pi05_executor/intervention"]]
    assert flags[-1] is False or flags[-1] == 0
    assert any(flags)
    commands = np.array([m.position for m in found["/pi05_executor/joint_commands"]])
    assert abs(commands[:, 1] - 0.6).min() < 0.02, "what the person wanted was commanded"


def test_the_last_seconds_are_saved_on_a_fault_and_on_demand(rig, tmp_path):
    rig = rig()
    rig.reach("running")
    rig.arm.core.interlocks.fault = "joint1 does not follow"
    assert rig.until(lambda: [*(tmp_path / "bags").glob("*_fault/metadata.yaml")])
    saved = rig.call(Trigger, f"{ME}/save")
    assert saved.success

    def whole(path):
        try:
            with Bag(path) as bag:
                return bag.whole
        except BagError:  # it is being written
            return False

    place = next((tmp_path / "bags").glob("*_fault"))
    assert rig.until(lambda: whole(place))
    with Bag(place) as bag:
        assert "joint1 does not follow" in bag.custom["fault"]
        assert bag.custom["prompt"] == "push the cube"
        assert bag.topics["/pi05_policy/action_chunk"].count
    assert rig.until(lambda: whole(saved.message))


def test_a_bag_by_hand_and_what_is_refused(rig, tmp_path):
    rig = rig()
    assert not rig.call(SetBool, f"{ME}/record", data=False).success
    started = rig.call(SetBool, f"{ME}/record", data=True)
    assert rig.until(lambda: rig.last.state == RecorderStatus.STATE_RECORDING)
    assert rig.until(lambda: rig.last.messages > 10)
    assert rig.call(SetBool, f"{ME}/record", data=False).message == started.message
    assert rig.until(lambda: rig.last.state == RecorderStatus.STATE_READY)
    assert rig.last.whole
    with Bag(started.message) as bag:
        assert bag.whole
        assert bag.topics["/base_camera/image_raw"].msgtype == IMAGE
    rig.recorder.trigger_deactivate()
    assert not rig.call(Trigger, f"{ME}/save").success
    (tmp_path / "file").write_text("")
    overrides = [Parameter("folder", value=str(tmp_path / "file" / "bags"))]
    other = EpisodeRecorder(context=rig.context, parameter_overrides=overrides, namespace="other")
    process.autostart(other)  # says so, and leaves it where it was
    assert other.trigger_configure() == TransitionCallbackReturn.FAILURE
    other.destroy_node()


def test_images_are_packed_where_they_can_be():
    told = []
    pack = JpegPacking(95, told.append)
    pixels = np.full((24, 32, 3), (200, 40, 90), np.uint8)
    message = image_message(pixels, 5)
    packed = pack(KeptMessage("/cam/image_raw", IMAGE, 7, encode(message)))
    assert (packed.topic, packed.msgtype) == ("/cam/image_raw/compressed", COMPRESSED_IMAGE)
    image = decode(packed.raw, COMPRESSED_IMAGE)
    assert image.header.stamp.nanosec == 5
    assert np.abs(decode_jpeg(image.data.tobytes()).astype(int) - pixels).max() <= 4
    message.encoding = "32FC1"
    odd = KeptMessage("/depth/image_raw", IMAGE, 7, encode(message))
    assert pack(odd) is odd
    assert pack(odd) is odd
    assert len(told) == 1
    broken = KeptMessage("/cam/image_raw", IMAGE, 7, b"\x00\x01\x00\x00\x01")
    assert pack(broken) is broken


def test_the_documented_parameters_are_those_of_the_node():
    docs = Path(__file__).parents[2] / "docs" / "recording.md"
    assert markdown_table(SPECS) in docs.read_text(encoding="utf-8")
