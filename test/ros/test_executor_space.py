"""The executor node with a space file: what it refuses, and what its status says."""

from __future__ import annotations

import pytest
from executor_client import START, Rig, follow
from node_rig import build_and_close
from pi05_ros.msg import ExecutorStatus

from pi05_ros.execution.space.space_file import SpaceError
from pi05_ros.ros import qos

URDF = """<robot name="r"><link name="base"/><link name="boom"><collision>
<origin xyz="0.5 0 0"/><geometry><box size="1 0.1 0.1"/></geometry></collision></link>
<joint name="joint1" type="revolute"><parent link="base"/><child link="boom"/><axis xyz="0 0 1"/>
<limit lower="-2.6" upper="2.6" velocity="2" effort="1"/></joint></robot>"""
SPACE = """space:
  margin_m: 0.2
  stop_m: 0.05
  boxes:
    - {name: crate, size_m: [0.2, 0.2, 0.2], position_m: [0.8, 0.6, 0]}
"""


@pytest.fixture
def space_file(tmp_path):
    pytest.importorskip("pinocchio")
    pytest.importorskip("coal")
    file = tmp_path / "space.yaml"
    file.write_text(SPACE)
    return str(file)


@pytest.fixture
def make_rig():
    yield from build_and_close(Rig)


def test_the_status_says_what_holds_the_arm_and_where(make_rig, space_file):
    rig = make_rig(space_file=space_file, robot_description=URDF, control_rate_hz=50.0)
    client, seen, number = rig.client, [], [1]
    client.create_subscription(
        ExecutorStatus, "pi05_executor/executor_status", seen.append, qos.LATCHED
    )

    def push():
        place = list(START)
        if client.trajectories:
            place[:6] = client.trajectories[-1].points[0].positions
        client.send_state(values=place)
        number[0] += 1
        if number[0] % 5 == 0:
            client.send_chunk(number[0], target=1.2)

    follow(rig, number[0])
    assert rig.until(lambda: any(s.space_held for s in seen), each=push)
    status = next(s for s in seen if s.space_held)
    assert status.mode == ExecutorStatus.MODE_HOLDING
    assert status.space_watched
    assert list(status.space_pair) == ["boom", "crate"]
    assert status.reason.startswith("boom would touch crate: 0.0")
    assert status.space_frame == "base"
    assert 0.6 < status.space_at[0] < 1.0
    near = lambda: {v.get("space_nearest") for _, v in client.diagnostics}  # noqa: E731
    assert rig.until(lambda: "boom / crate" in near(), each=push)
    path = [m.points[0].positions[0] for m in client.trajectories]
    assert max(path) < 0.5  # at 0.51 rad the middle of the boom would be at the crate's corner


def test_without_a_robot_description_it_is_refused(make_rig, space_file):
    with pytest.raises(SpaceError, match=r"none came on .*robot_description within 0.1 s"):
        make_rig(space_file=space_file, robot_description_timeout_s=0.1)
