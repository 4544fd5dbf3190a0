"""Pose columns of robot profiles: what is read, what is refused, and the message on the wire."""

import dataclasses

import numpy as np
import pytest

from pi05_ros.bags.cdr_messages import ACTION_CHUNK, decode, encode
from pi05_ros.bags.chunk_record import chunk_message, record_from_message
from pi05_ros.policy.errors import RobotProfileError
from pi05_ros.policy.interface import ActionChunk, ActionMeaning
from pi05_ros.policy.pose_groups import EULER, ROTATION_COLUMNS, PoseGroup
from pi05_ros.policy.robots.profile_yaml import load_profile, parse_profile
from pi05_ros.runtime.isolation.records import pack_chunk, unpack_chunk


def profile(rotation="quaternion_xyzw", meaning="task_pose", **changes):
    names = ["x", "y", "z", *(f"r{i}" for i in range(ROTATION_COLUMNS.get(rotation, 4)))]
    angle = rotation == "rotation_vector" or rotation in EULER
    unit = "degree" if angle else "dimensionless"
    actions = [
        {"name": name, "meaning": meaning, "unit": "mm" if i < 3 else unit}
        for i, name in enumerate(names)
    ]
    group = {
        "name": "hand",
        "frame": "base",
        "tool": "tool0",
        "columns": names,
        "rotation": rotation,
    }
    if meaning != "task_pose":
        group["axes"] = "tool"
    return {
        "control_hz": 10,
        "cameras": [{"role": "base", "slot": "base_0_rgb", "required": True}],
        "state": [{"name": "j", "unit": "rad"}],
        "actions": [*actions, {"name": "grip", "meaning": "absolute", "unit": "meter"}],
        "poses": [{**group, **changes}],
    }


@pytest.mark.parametrize("rotation", ROTATION_COLUMNS)
@pytest.mark.parametrize("meaning", ["task_pose", "task_delta", "task_from_start"])
def test_every_rotation_and_meaning_is_read(rotation, meaning):
    robot = parse_profile("mine", profile(rotation, meaning))
    (group,) = robot.pose_groups
    assert (group.frame, group.tool, group.rotation) == ("base", "tool0", rotation)
    assert group.axes == ("" if meaning == "task_pose" else "tool")
    assert len(group.columns) == 3 + ROTATION_COLUMNS[rotation]
    assert PoseGroup.of(group.as_dict()) == group
    assert len(EULER) == 24


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rotation": "euler_xyx"}, "accepted: none, rotation_vector"),
        ({"rotation": "quaternion"}, "accepted: none"),
        ({"rotation": "rot6d_rows"}, "takes 9"),
        ({"frame": ""}, "frame is empty"),
        ({"tool": "base"}, "frame and tool are both"),
        ({"columns": ["x", "y", "z", "r0", "r1", "r2", "grip"]}, "meanings absolute, task_pose"),
        ({"columns": ["x", "y", "z", "r0", "r1", "r2", "r2"]}, "different"),
        ({"columns": ["x", "y", "z", "r0", "r1", "r2", "nope"]}, "'nope'"),
        ({"columns": ["r0", "y", "z", "x", "r1", "r2", "r3"]}, "'r0' is in dimensionless"),
        ({"axes": "base"}, "accepted: none for task_pose"),
        ({"axis": "base"}, "unknown key 'axis'"),
    ],
)
def test_what_a_group_lacks_is_named(changes, words):
    data = profile()
    data["poses"][0].update(changes)
    with pytest.raises(RobotProfileError, match=words):
        parse_profile("mine", data)


def test_changes_need_their_axes():
    with pytest.raises(RobotProfileError, match=r"axes is ''; accepted: base, tool"):
        parse_profile("mine", profile(meaning="task_delta", axes=""))


def test_a_missing_key_is_not_guessed():
    for key in ("name", "frame", "tool", "columns", "rotation"):
        data = profile()
        del data["poses"][0][key]
        with pytest.raises(RobotProfileError, match=key):
            parse_profile("mine", data)


def test_a_pose_without_a_group_is_refused():
    data = profile()
    data["poses"] = []
    with pytest.raises(RobotProfileError, match="'x' has meaning task_pose and is in no pose"):
        parse_profile("mine", data)


def test_a_column_or_link_in_two_groups_is_refused():
    data = profile("none")
    data["poses"].append({**data["poses"][0], "name": "again", "tool": "other"})
    with pytest.raises(RobotProfileError, match="'x' is in pose groups 'hand' and 'again'"):
        parse_profile("mine", data)


def test_libero_in_meters_and_radians():
    robot = load_profile("libero_poses")
    model = np.array([1.0, -1.0, 2.0, 1.0, -0.5, 0.0, 1.0])
    wire = [m.command(np.array([v]))[0] for m, v in zip(robot.action_maps, model, strict=True)]
    np.testing.assert_allclose(wire, [0.05, -0.05, 0.05, 0.5, -0.25, 0.0, 1.0])
    assert robot.pose_groups[0].axes == "base"
    assert set(robot.action_meanings[:6]) == {ActionMeaning.TASK_DELTA}


@pytest.fixture
def chunk():
    robot = load_profile("libero_poses")
    actions = np.arange(21, dtype=np.float32).reshape(3, 7)
    return ActionChunk(
        actions, actions, robot.action_names, robot.action_meanings, robot.command_units,
        0.05, "go", 1, 2, pose_groups=robot.pose_groups,
    )  # fmt: skip


def _encoded(chunk):
    message = chunk_message(
        chunk, inputs=[("joint_states", 5)], published_ns=9, chunk_id=1, policy_id="a",
        random_weights=False,
    )  # fmt: skip
    return encode(message)


def test_groups_survive_a_bag_and_another_process(chunk):
    record = record_from_message(decode(_encoded(chunk), ACTION_CHUNK), 7)
    assert record.pose_groups == chunk.pose_groups
    assert unpack_chunk(pack_chunk(chunk)).pose_groups == chunk.pose_groups


def test_chunks_of_release_0_1_0_have_no_groups(chunk):
    plain = dataclasses.replace(chunk, pose_groups=())
    raw = _encoded(plain)
    assert raw.endswith(bytes(4))
    record = record_from_message(decode(raw[:-4], ACTION_CHUNK), 7)  # as 0.1.0 wrote it
    assert record.pose_groups == ()
    np.testing.assert_array_equal(record.data, plain.actions)
    assert record.denoise_steps == 2


def test_damaged_chunks_are_still_errors(chunk):
    raw = _encoded(chunk)
    with pytest.raises(Exception, match=r"."):
        decode(raw[: len(raw) // 2], ACTION_CHUNK)


def test_the_ros_message_has_the_groups(chunk):
    messages = pytest.importorskip("pi05_ros.ros.messages")
    (group,) = chunk.pose_groups
    message = messages.pose_group_message(group)
    assert (message.frame_id, message.tool_frame_id) == ("panda_link0", "panda_hand_tcp")
    assert list(message.columns) == list(group.columns)
    assert (message.rotation, message.axes) == (message.ROTATION_VECTOR, message.AXES_BASE)
    constants = {
        getattr(message, name) for name in dir(type(message)) if name.startswith("ROTATION_")
    }
    assert constants <= set(ROTATION_COLUMNS)
