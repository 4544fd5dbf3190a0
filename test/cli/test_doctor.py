"""`pi05 doctor` never crashes, and its verdicts fit what it found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from pi05_ros.cli.main import main
from pi05_ros.doctor import assets, hardware, live_topics, software
from pi05_ros.doctor.checks import Check, Level, ask, guarded

CAMERA: dict[str, Any] = {
    "type": "sensor_msgs/msg/Image", "kind": "image", "publishers": 1, "count": 90,
    "rate_hz": 30.0, "age_s": [0.01, 0.012, 0.03], "compressed": False, "encoding": "rgb8",
    "width": 640, "height": 480,
}  # fmt: skip
JOINTS: dict[str, Any] = {
    "type": "sensor_msgs/msg/JointState", "kind": "joints", "publishers": 1, "count": 300,
    "rate_hz": 100.0, "age_s": [0.001, 0.002, 0.01], "names": ["a", "b"],
}  # fmt: skip


def judge(camera: dict[str, Any], joints: dict[str, Any] = JOINTS) -> dict[str, Check]:
    found = {"/base_camera/image_raw": {**CAMERA, **camera}, "/joint_states": joints}
    return {check.name: check for check in live_topics.judge(found, "", ["a", "b"], 0.5)}


def test_a_home_that_is_not_known_is_a_path_that_is_not_there() -> None:
    (found,) = assets.checkpoint("~no_such_user/pi05")
    assert found.level is Level.FAIL
    assert "~no_such_user/pi05" in found.detail
    assert assets.tokenizer(None, "~no_such_user/pi05")[0].level in (Level.OK, Level.FAIL)


def test_healthy_robot() -> None:
    checks = judge({})
    assert {check.level for check in checks.values()} == {Level.OK}
    assert "30.0 Hz, 640x480 rgb8" in checks["/base_camera/image_raw"].detail


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"count": 0}, "no message came"),
        ({"encoding": "32FC1"}, "32FC1"),
        ({"age_s": [0.9, 1.2, 1.4]}, "older than max_age_s"),
        ({"age_s": [-3.0, -2.9, -2.8]}, "future"),
    ],
)
def test_sick_camera(change: dict[str, Any], text: str) -> None:
    check = judge(change)["/base_camera/image_raw"]
    assert check.level is Level.WARN
    assert text in check.detail
    assert check.fix


@pytest.mark.parametrize(
    ("wish", "level", "text"),
    [("vulkan", Level.WARN, "accepted: egl, osmesa, ray"), ("ray", Level.OK, " with ray")],
)
def test_rendering_is_judged_as_the_demo_will_find_it(
    wish: str, level: Level, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUJOCO_GL", wish)
    (check,) = hardware.rendering()
    assert check.level is level
    assert text in check.detail
    assert check.fix == ("unset MUJOCO_GL" if level is Level.WARN else "")


def test_missing_joint_is_named() -> None:
    check = judge({}, {**JOINTS, "names": ["a", "elbow"]})["/joint_states"]
    assert "also needs b" in check.detail


def test_publishers_that_disagree_are_named() -> None:
    said = "joint states disagree about b: 0.000 and 0.800 in turn; two publishers"
    check = judge({}, {**JOINTS, "conflicts": [said]})["/joint_states"]
    assert check.level is Level.WARN
    assert said in check.detail


def test_clock_skew_between_machines() -> None:
    assert judge({"age_s": [-2.0, -1.9, -1.8]})["clock skew"].level is Level.WARN


def test_no_topics_at_all() -> None:
    checks = live_topics.judge({}, "", [], 0.5)
    assert [check.name for check in checks] == ["camera topics", "joint states"]
    assert all(check.level is Level.MISSING and check.fix for check in checks)


def test_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "torn.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    other = tmp_path / "other.safetensors"
    save_file({"state": np.zeros(7)}, other)
    levels = {
        None: Level.INFO,
        "random:tiny": Level.OK,
        "random:tiny:3": Level.OK,
        "random:tiny:x": Level.FAIL,
        "random:tiny:" + "9" * 19: Level.FAIL,
        str(other): Level.FAIL,
        "random:gigantic": Level.FAIL,
        str(tmp_path / "absent"): Level.FAIL,
        str(tmp_path / "torn.safetensors"): Level.FAIL,
        str(Path(__file__).parents[1] / "data/openpi_tiny/tiny.safetensors"): Level.OK,
    }
    for path, level in levels.items():
        (check,) = assets.checkpoint(path)
        assert check.level is level, path


def test_optional_packages_are_held_to_the_releases_we_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorrt.py").write_text('__version__ = "8.6.1"')
    (tmp_path / "tensorrt_rtx.py").write_text('__version__ = "1.6.0"')
    root = str(Path(__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), root]))
    (check,) = hardware.tensorrt()
    assert check.level is Level.MISSING
    assert "8.6.1 is not supported" in check.detail
    assert "1.6.0 is not supported" in check.detail
    assert hardware.modelopt()[0].level is Level.OK
    import modelopt

    monkeypatch.setattr(modelopt, "__version__", "0.42.0")
    (check,) = hardware.modelopt()
    assert check.level is Level.MISSING
    assert "0.43 is the oldest" in check.detail


@pytest.mark.parametrize("value", ["nan", "-1", "inf", "soon"])
def test_times_must_be_times(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--seconds", "--max-age"):
        with pytest.raises(SystemExit) as caught:
            main(["doctor", option, value])
        assert caught.value.code == 2
        assert "0 to 3600" in capsys.readouterr().err


def test_absent_ros_is_named_with_its_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "_there", lambda module: module != "rclpy")
    (check,) = software.ros()
    assert check.level is Level.FAIL
    assert "setup.bash" in check.fix


def test_unset_ros_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "_there", lambda module: True)
    monkeypatch.delenv("AMENT_PREFIX_PATH", raising=False)
    (check,) = software.ros()
    assert "AMENT_PREFIX_PATH" in check.detail


def test_discovery_range(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, level in (("LOCALHOST", Level.OK), ("OFF", Level.WARN), ("SUBNET", Level.INFO)):
        monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", value)
        monkeypatch.delenv("ROS_LOCALHOST_ONLY", raising=False)
        assert software.discovery()[0].level is level


def test_a_check_that_raises_becomes_a_line() -> None:
    def broken() -> list[Check]:
        raise OSError("no such driver")

    (check,) = guarded("GPU", broken)
    assert check.level is Level.WARN
    assert "no such driver" in check.detail


def test_a_process_that_aborts_is_survived() -> None:
    with pytest.raises(RuntimeError, match="code"):
        ask("import os; os.abort()")
    with pytest.raises(RuntimeError, match="no answer"):
        ask("import time; time.sleep(60)", timeout_s=0.5)
    assert ask("print(1)") == 1


def test_report_without_anything(tmp_path: Path) -> None:
    """No ROS environment, no torch, no optional package: a report and exit code 1."""
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so is missing')")
    (tmp_path / "mujoco.py").write_text("raise RuntimeError('no GL')")
    root = str(Path(__file__).parents[2])
    env = {k: v for k, v in os.environ.items() if not k.startswith(("AMENT", "ROS", "RMW"))}
    env["PYTHONPATH"] = os.pathsep.join([str(tmp_path), root])
    done = subprocess.run(
        [sys.executable, "-m", "pi05_ros.cli.main", "doctor", "--json", "--seconds", "0"],
        capture_output=True,
        text=True,
        check=False,
        env=env,
        cwd=root,
    )
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    levels = {check["name"]: check["level"] for check in report["checks"]}
    assert levels["torch"] == "fail"
    assert levels["ROS 2"] == "fail"
    assert not report["works"]


def test_report_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--seconds", "0", "--checkpoint", "random:tiny"]) == 0
    assert "basic job can run" in capsys.readouterr().out


PUBLISHER = """
import time
import rclpy
from rclpy.node import Node
from sensor_msgs.msg import Image, JointState
rclpy.init()
node = Node("camera_driver")
images = node.create_publisher(Image, "/arm/base_camera/image_raw", 1)
joints = node.create_publisher(JointState, "/arm/joint_states", 1)
image = Image(height=2, width=4, step=12, encoding="bgr8", data=bytes(24))
state = JointState(name=["a", "b"], position=[0.0, 1.0])
while True:
    for message, publisher in ((image, images), (state, joints)):
        message.header.stamp = node.get_clock().now().to_msg()
        publisher.publish(message)
    time.sleep(0.02)
"""


def test_live_topics_are_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    from pi05_ros.ros.processes.domain import free_domain_id

    monkeypatch.setenv("ROS_DOMAIN_ID", str(free_domain_id()))
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    driver = subprocess.Popen([sys.executable, "-c", PUBLISHER])
    try:
        checks = {c.name: c for c in live_topics.topics("arm", 4.0, ["a", "c"], 0.5)}
    finally:
        driver.kill()
        driver.wait()
    assert "4x2 bgr8" in checks["/arm/base_camera/image_raw"].detail
    assert checks["/arm/base_camera/image_raw"].level is Level.OK
    assert "also needs c" in checks["/arm/joint_states"].detail
    assert checks["clock skew"].level is Level.OK


@pytest.mark.parametrize(
    ("gpu", "wanted", "found", "level", "message"),
    [
        (None, None, {"TensorRT for RTX": "1.7"}, Level.OK, "no GPU here"),
        ("sm120", "TensorRT for RTX", {"TensorRT for RTX": "1.7"}, Level.OK, "for this GPU"),
        ("sm90", "TensorRT", {"TensorRT": "11.4"}, Level.OK, "cuda backend is the faster way"),
        ("sm110", "TensorRT", {"TensorRT for RTX": "1.7"}, Level.MISSING, "pip install tensorrt"),
        ("sm89", "TensorRT for RTX", {}, Level.MISSING, "pi05_ros[tensorrt-rtx]"),
    ],
)
def test_the_tensorrt_that_suits_the_gpu_is_named(
    gpu: str | None,
    wanted: str | None,
    found: dict[str, str],
    level: Level,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing = {
        "TensorRT": "not installed: pip install tensorrt-cu13",
        "TensorRT for RTX": 'not installed: pip install "pi05_ros[tensorrt-rtx]"',
    }
    facts = {"found": found, "missing": missing, "gpu": gpu, "wanted": wanted}
    monkeypatch.setattr(hardware, "ask", lambda script: facts)
    (check,) = hardware.tensorrt()
    assert check.level is level
    assert message in check.detail
