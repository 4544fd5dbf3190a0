"""A node as a process: signals at any time, log folders that cannot be written, odd parameters."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pi05_ros.ros import process

ROOT = Path(__file__).parents[2]
PRELUDE = """
import os, signal, sys
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: os._exit(0))
print("up", flush=True)
from pi05_ros.ros.policy_node import main
sys.exit(main())
"""
ARGUMENTS = ("--ros-args", "-p", "checkpoint:=random:tiny")


def start(*arguments, **env):
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE, *ARGUMENTS, *arguments],
        env={**os.environ, **env}, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def test_the_prelude_is_that_of_the_installed_executables():
    text = (ROOT / "CMakeLists.txt").read_text()
    assert "signal.signal(number, lambda *_: os._exit(0))" in text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("delay_s", [0.0, 1.0])
def test_a_signal_at_any_time_of_the_start_ends_with_code_0(number, delay_s):
    node = start()
    try:
        assert node.stdout.readline() == b"up\n"
        time.sleep(delay_s)
        node.send_signal(number)
        assert node.wait(60) == 0
    finally:
        node.kill()
        node.wait()
        node.stdout.close()


def test_a_second_interrupt_at_the_end_changes_nothing():
    node = start()
    try:
        for line in node.stdout:
            if b"no checkpoint" in line or b"pi05" in line or b"up" in line:
                break
        end = time.monotonic() + 60
        node.send_signal(signal.SIGINT)
        while node.poll() is None and time.monotonic() < end:
            node.send_signal(signal.SIGINT)
            time.sleep(0.002)
        assert node.wait(60) == 0
    finally:
        node.kill()
        node.wait()
        node.stdout.close()


def test_a_log_folder_that_cannot_be_written_does_not_end_the_node(monkeypatch, tmp_path):
    monkeypatch.setenv("ROS_LOG_DIR", "/proc/no/such/place")
    assert not process._can_write_logs()
    node = start(ROS_LOG_DIR="/proc/no/such/place")
    try:
        lines = [node.stdout.readline(), node.stdout.readline()]
        assert b"no log file" in lines[1], lines
        time.sleep(1.0)
        assert node.poll() is None
        node.send_signal(signal.SIGTERM)
        assert node.wait(60) == 0
    finally:
        node.kill()
        node.wait()
        node.stdout.close()
    monkeypatch.setenv("ROS_LOG_DIR", str(tmp_path / "new"))
    assert process._can_write_logs()


def test_every_unknown_parameter_is_named_at_start(bench, capfd):
    bench({"entirely_different": 3, "rate_herz": 5.0, "qos_overrides./x.depth": 1})
    lines = capfd.readouterr().err
    assert "'entirely_different' is unknown and ignored" in lines
    assert "did you mean 'rate_hz'" in lines
    assert "qos_overrides" not in lines
