"""Hand-overs in recordings, and what becomes of them in datasets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from rosbags.interfaces import Nodetype

from pi05_ros.bags.bag import Bag, BagWriter
from pi05_ros.bags.cdr_messages import (
    EXECUTOR_STATUS,
    NS,
    TASK_STATUS,
    image_message,
    joint_state_message,
    string_message,
    time_message,
    typestore,
)
from pi05_ros.cli.main import main
from pi05_ros.replay.handovers import read_handovers

NAMES = [*(f"joint{i}" for i in range(1, 7)), "gripper"]
START = 50 * NS


def executor_status(stamp_ns, intervention):
    kind = typestore().types[EXECUTOR_STATUS]
    blank = {"string": "", "bool": False, "float64": 0.0, "uint8": 0, "uint64": 0}
    fields = {}
    for name, (shape, kinds) in typestore().fielddefs[EXECUTOR_STATUS][1]:
        if shape == Nodetype.BASE:
            fields[name] = blank[kinds[0]]
        elif shape != Nodetype.NAME:
            count = kinds[1] if shape == Nodetype.ARRAY else 0
            fields[name] = [] if kinds[0][1][0] == "string" else np.zeros(count)
    fields |= {"stamp": time_message(stamp_ns), "intervention": intervention}
    return kind(**fields)


def task_status(stamp_ns, outcome):
    return typestore().types[TASK_STATUS](
        stamp=time_message(stamp_ns), state=2, goal_id="7", prompt="push", record=True,
        time_limit_s=1.0, speed_scale=0.0, termination_reason="done", outcome=outcome, message="",
        last_refused="",
    )  # fmt: skip


def write(path: Path, outcome: str = "success") -> Path:
    """Three seconds: the policy commands 0.1, from 1 s to 2 s a person wants joint2 at 0.7."""
    events = [(START, "/prompt", string_message("push"))]
    for index in range(300):
        stamp = START + index * NS // 100
        steered = 100 <= index < 200
        state = joint_state_message(NAMES, np.full(7, index / 100), stamp)
        events.append((stamp, "/joint_states", state))
        command = joint_state_message(NAMES, np.full(7, 0.5 if steered else 0.1), stamp)
        events.append((stamp, "/pi05_executor/joint_commands", command))
        if steered:
            target = joint_state_message(["joint2"], np.array([0.7]), 0)  # without a stamp
            events.append((stamp, "/pi05_executor/teleop", target))
        if index % 5 == 0:
            for camera in ("base_camera", "wrist_camera"):
                image = image_message(np.full((48, 64, 3), index % 256, np.uint8), stamp)
                events.append((stamp, f"/{camera}/image_raw", image))
        if index in (0, 100, 150, 200):
            events.append(
                (stamp, "/pi05_executor/executor_status", executor_status(stamp, steered))
            )
    events.append((START + 3 * NS, "/pi05_task/status", task_status(START + 3 * NS, outcome)))
    with BagWriter(path) as bag:
        for stamp, topic, message in events:
            bag.write(topic, stamp, message)
    return path


def test_segments_targets_and_outcome_are_read(tmp_path):
    with Bag(write(tmp_path / "bag", "failure")) as bag:
        found = read_handovers(bag, NAMES)
    assert found.outcome == "failure"
    times = START + np.array([0.5, 0.999, 1.0, 1.5, 1.999, 2.0, 2.9]) * NS
    assert found.intervention(times).tolist() == [False, False, True, True, True, False, False]
    actions, count = found.humanize(times, NAMES, np.full((7, 7), 0.5))
    assert count == 3
    assert actions[3].tolist() == [0.5, 0.7, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert (actions[[0, 1, 5, 6]] == 0.5).all()


@pytest.mark.parametrize("kind", ["targets", "commands"])
@pytest.mark.parametrize("version", ["3.0", "2.1"])
def test_datasets_have_intervention_and_success(tmp_path, kind, version, capsys):
    pq = pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("av")
    write(tmp_path / "bags" / "one")
    write(tmp_path / "bags" / "two", "unknown")
    out = tmp_path / "out"
    words = ["dataset", str(tmp_path / "bags"), "--out", str(out), "--robot", "sim_arm"]
    assert main([*words, "--version", version, "--intervention-actions", kind]) == 0
    said = capsys.readouterr().out
    assert "of a person" in said
    info = json.loads((out / "meta" / "info.json").read_text())
    for name in ("intervention", "success", "success_known"):
        assert info["features"][name] == {"dtype": "bool", "shape": [1], "names": None}
    tables = [pq.read_table(path) for path in sorted((out / "data").rglob("*.parquet"))]
    assert len(tables) == 2
    for table, known in zip(tables, (True, False), strict=True):
        rows = table.to_pydict()
        flags = np.array(rows["intervention"])
        seconds = np.array(rows["timestamp"])
        inside = (seconds > 1.0) & (seconds < 1.95)
        assert flags[inside].all()
        assert not flags[(seconds < 0.95) | (seconds > 2.05)].any()
        assert set(rows["success"]) == {known}
        assert set(rows["success_known"]) == {known}
        actions = np.array(rows["action"])
        wanted = 0.7 if kind == "targets" else 0.5
        assert np.allclose(actions[inside][:, 1], wanted)
        assert np.allclose(actions[inside][:, 0], 0.5)
        assert np.allclose(actions[seconds < 0.95], 0.1)
    assert main([*words, "--version", version]) == 0, "the same command goes on"
