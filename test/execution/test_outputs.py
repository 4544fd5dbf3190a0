"""Outputs: reading them, and what is planned ahead for whole trajectories."""

from __future__ import annotations

import numpy as np
import pytest

from pi05_ros.execution.executor import Executor, ExecutorSettings
from pi05_ros.execution.limits import JointLimits
from pi05_ros.execution.outputs import OutputsError, default_outputs, read_outputs
from pi05_ros.execution.strategies import make_strategy
from pi05_ros.execution.timed_chunk import TimedChunk

JOINTS = ("a", "b", "hand")
GOOD = """outputs:
  - {kind: trajectory_chunk, topic: arm/joint_trajectory, joints: [b, a]}
  - {kind: gripper_command, topic: hand/gripper_cmd, joints: [hand], scale: -0.8, offset: 0.8}
"""


def test_outputs_of_a_file(tmp_path):
    path = tmp_path / "outputs.yaml"
    path.write_text(GOOD)
    arm, hand = read_outputs(path, JOINTS)
    assert (arm.kind, arm.joints, arm.gripper) == ("trajectory_chunk", ("b", "a"), False)
    assert (hand.scale, hand.offset, hand.gripper) == (-0.8, 0.8, True)
    assert arm.message_names == ("b", "a")


def test_controllers_may_have_other_names_for_the_joints(tmp_path):
    path = tmp_path / "outputs.yaml"
    path.write_text(GOOD.replace("[b, a]", "[b, a], names: [elbow, waist]"))
    arm, hand = read_outputs(path, JOINTS)
    assert (arm.joints, arm.message_names) == (("b", "a"), ("elbow", "waist"))
    assert hand.message_names == ("hand",)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[b, a]", "[b]", "every joint must be commanded once: a by 0 outputs"),
        ("[b, a]", "[b, a, hand]", "hand by 2 outputs"),
        ("[b, a]", "[b, a, c]", "commands c, which is none of the joints"),
        ("[b, a]", "b", "joints is b; accepted: a list"),
        ("trajectory_chunk", "torque", "kind is torque; accepted: trajectory"),
        ("scale: -0.8", "scale: 0", "scale is 0"),
        ("scale: -0.8", "scale: fast", "scale is fast; accepted: a finite number"),
        ("scale: -0.8", "scal: 1", "scal is not known; did you mean scale"),
        ("[hand]", "[hand, a]", "accepted: one for gripper_command"),
        ("[b, a]", "[b, a], names: [x]", "names is .*accepted: the controller's name of each"),
        ("[b, a]", "[b, a], names: [x, x]", "names is .*once"),
        ("arm/joint_trajectory", "''", "topic is"),
        (GOOD, "outputs: []", "needs a list outputs"),
        (GOOD, "- 1", "needs a list outputs"),
    ],
)
def test_files_with_a_fault_are_named(tmp_path, old, new, message):
    path = tmp_path / "outputs.yaml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(OutputsError, match=message) as error:
        read_outputs(path, JOINTS)
    assert "outputs.yaml" in str(error.value)


def test_a_single_arm_needs_no_file():
    arm, hand = default_outputs(JOINTS, "forward", "hand")
    assert (arm.topic, arm.joints) == ("forward_position_controller/commands", ("a", "b"))
    assert (hand.topic, hand.gripper) == ("gripper_controller/commands", True)
    (all_,) = default_outputs(JOINTS, "trajectory", "")
    assert all_.joints == JOINTS


@pytest.mark.parametrize("limiting", ["path", "joint"])
@pytest.mark.parametrize("strategy", ["rtc", "replace", "ensemble"])
def test_the_preview_is_what_is_commanded_later_and_ends_at_rest(limiting, strategy):
    limits = JointLimits(("a", "b"), [-2, -2], [2, 2], [1.0, 1.0], [4, 4])
    settings = ExecutorSettings(period_s=0.02, limiting=limiting)
    executor = Executor(limits, make_strategy(strategy, 2), settings)
    s = np.arange(30)[:, None] * 0.05
    rows = np.hstack([0.5 * np.sin(s * 2), 0.3 * s])
    executor.measure(np.zeros(2), 0)
    assert executor.preview(1.0) is None
    executor.offer(TimedChunk(0, 50_000_000, rows, "p", 1), 0)
    commands = []
    planned = None
    for k in range(60):
        now = k * 20_000_000
        executor.measure(np.zeros(2) if not commands else commands[-1], now)
        commands.append(executor.tick(now).positions)
        if k == 10:
            planned, velocities = executor.preview(0.5)
    assert planned[:25] == pytest.approx(np.array(commands[10:35]), abs=1e-12)
    assert planned[-1] == pytest.approx(planned[-2])
    assert velocities[-1] == pytest.approx([0, 0])
    rate = np.diff(planned, axis=0) / 0.02
    assert (np.abs(rate) <= limits.velocity + 1e-6).all()
    assert (np.abs(np.diff(rate, axis=0)) / 0.02 <= limits.acceleration + 1e-4).all()
