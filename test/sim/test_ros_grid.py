"""Grids of sessions through ROS: what is run, what is kept, what the table says."""

from __future__ import annotations

import pytest

from pi05_ros.cli.main import main
from pi05_ros.sim.episodes import Setting
from pi05_ros.sim.ros_grid import RESULTS, TABLE, ros_jobs, run_grid

FAST = Setting(denoise_steps=3, chunking="rtc-trained")


def session(job):
    return {
        "done": {seed: seed != 1 for seed in job.seeds},
        "to_command_ms": [80.0, 100.0, 120.0],
        "split_ms": {"input": [10.0, 20.0, 30.0], "denoise": [float("nan")] * 3},
        "chunks": 40,
        "watched_s": 10.0,
    }


def test_sessions_are_run_once_and_tabulated(tmp_path):
    todo = ros_jobs([Setting(), FAST], [4.0, 10.0], ["pick_red", "push_blue"], [0, 1])
    asked, said = [], []

    def run(job):
        if len(asked) == 5:
            raise KeyboardInterrupt
        asked.append(job)
        return session(job)

    with pytest.raises(KeyboardInterrupt):
        run_grid(todo, tmp_path, run)
    with (tmp_path / RESULTS).open("a") as file:
        file.write('{"key": "cut o')
    asked.clear()
    rows = run_grid(todo, tmp_path, run, said.append)
    assert (len(rows), len(asked), len(said)) == (8, 3, 5)
    assert {job.task for job in asked} == {"pick_red", "push_blue"}
    table = (tmp_path / TABLE).read_text()
    assert "| denoise_steps=3 chunking=rtc-trained | 10 | push_blue | 1 of 2 | 4.0 |" in table
    assert "| 100 / 120 | 20.0 | - |" in table
    assert len({job.name for job in todo}) == 8
    assert todo[0].name == "ros-pick_red"
    assert todo[-1].name == "ros-push_blue-denoise_steps-3-chunking-rtc-trained-10Hz"


def test_what_nodes_do_not_have_is_refused(tmp_path, capsys):
    with pytest.raises(ValueError, match="--delay-ms is not for --ros"):
        ros_jobs([Setting(delay_ms=100)], [4.0], ["pick_red"], [0])
    words = ["eval", "--ros", "--nudge", "1", "--out", str(tmp_path)]
    assert main(words) == 2
    assert "--nudge is not for --ros" in capsys.readouterr().err
    assert main(["eval", "--ros", "--rate", "fast", "--out", str(tmp_path)]) == 2
    assert "'fast'" in capsys.readouterr().err


def test_the_split_adds_up_to_the_whole():
    from pi05_ros import msg
    from pi05_ros.sim.ros_session import PARTS, split

    chunk = msg.ActionChunk()
    chunk.observation_stamp.sec, chunk.published_stamp.sec = 100, 101
    times = {"queue": 5, "convert": 3, "preprocess": 2, "vision": 10, "prefill": 20}
    times |= {"denoise": 30, "model": 60, "total": 75}
    for name, value in times.items():
        setattr(chunk.timings, f"{name}_ms", float(value))
    parts = split(chunk, int(101.04e9))
    assert tuple(parts) == PARTS
    assert sum(parts.values()) == pytest.approx(1040.0)
    assert (parts["input"], parts["convert"], parts["node"], parts["output"]) == (925, 5, 5, 40)
