"""Nodes that only listen: the live view, and metrics for Prometheus."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from pi05_ros.msg import ActionChunk, ExecutorStatus
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image, JointState

from pi05_ros import resources
from pi05_ros.policy.robots.profile_yaml import load_profile
from pi05_ros.ros.observers.diagnostics_metrics import (
    RULES,
    DiagnosticsMetrics,
    metrics_table,
)
from pi05_ros.ros.observers.metrics_node import SPECS
from pi05_ros.ros.observers.view_node import LiveNames, ViewNode
from pi05_ros.ros.processes.domain import free_domain_id
from pi05_ros.runtime.parameter_specs import markdown_table
from pi05_ros.view.model_images import ModelImages
from pi05_ros.view.presenter import Presenter
from pi05_ros.view.tool_path import Tool, ToolPose

PATIENCE_S = 60.0
ROBOT = load_profile("sim_arm")
LATCHED = QoSProfile(
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)


class Kept:
    """A sink that keeps the newest of everything."""

    def __init__(self) -> None:
        self.images: dict[str, np.ndarray] = {}
        self.records: dict[str, Mapping[str, Any]] = {}
        self.poses: Sequence[ToolPose] = ()

    def image(self, role: str, stamp_ns: int, pixels: np.ndarray) -> None:
        self.images[role] = pixels

    def data(self, topic: str, stamp_ns: int, values: Mapping[str, Any]) -> None:
        self.records[topic] = values

    def path(self, stamp_ns: int, frame: str, poses: Sequence[ToolPose]) -> None:
        self.poses = poses


def test_the_live_view_shows_what_nodes_say_and_publishes_it_for_rviz() -> None:
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=free_domain_id())
    executor = SingleThreadedExecutor(context=context)
    sink = Kept()
    tool = Tool(
        ("joint1",),
        "base",
        "made up",
        lambda joints: ToolPose(np.append(joints, [0, 0]), np.eye(3)),
    )
    names = LiveNames("view_test", "pi05_policy", "pi05_executor")
    make = partial(Presenter, images=ModelImages(ROBOT, 32), tool=tool)
    node = ViewNode(names, ROBOT, make, sink, context=context)
    talker = rclpy.create_node("view_test_talker", namespace="view_test", context=context)
    for each in (node, talker):
        executor.add_node(each)
    try:
        camera = talker.create_publisher(Image, "base_camera/image_raw", 5)
        joints = talker.create_publisher(JointState, "joint_states", 5)
        chunks = talker.create_publisher(ActionChunk, "pi05_policy/action_chunk", 5)
        status = talker.create_publisher(ExecutorStatus, "pi05_executor/executor_status", LATCHED)
        shown: list[Image] = []
        talker.create_subscription(Image, "pi05_view/base/model_image", shown.append, 5)
        paths: list[Any] = []
        nav = pytest.importorskip("nav_msgs.msg")
        talker.create_subscription(nav.Path, "pi05_view/tool_path", paths.append, 5)
        markers: list[Any] = []
        marks = pytest.importorskip("visualization_msgs.msg")
        talker.create_subscription(marks.MarkerArray, "pi05_view/markers", markers.append, 5)
        status.publish(ExecutorStatus(mode=ExecutorStatus.MODE_HOLDING, reason="no chunk"))

        def say() -> None:
            now = talker.get_clock().now().to_msg()
            image = Image(height=2, width=4, encoding="rgb8", step=12, data=[200] * 24)
            image.header.stamp = now
            camera.publish(image)
            state = JointState(name=list(ROBOT.state_names), position=[0.5] * 7)
            state.header.stamp = now
            joints.publish(state)
            chunk = ActionChunk(
                names=list(ROBOT.action_names), horizon=2, data=[0.25] * 14, meaning=[0] * 7,
                unit=[0] * 7, input_names=["base_camera"], input_stamps=[now], chunk_id=3,
            )  # fmt: skip
            chunk.step.nanosec = 50_000_000
            chunk.observation_stamp = chunk.published_stamp = now
            chunks.publish(chunk)

        def complete() -> bool:
            return bool(
                sink.images and len(sink.poses) and "executor" in sink.records
                and shown and paths and markers
            )  # fmt: skip

        wait(complete, executor, say)
    finally:
        executor.shutdown()
        for each in (node, talker):
            each.destroy_node()
        rclpy.shutdown(context=context)
    assert sink.images["base"].shape == (32, 32, 3)
    assert sink.records["executor"]["mode"] == "holding"
    assert sink.records["chunk"]["chunk_id"] == 3
    assert (shown[0].height, shown[0].width, len(shown[0].data)) == (32, 32, 32 * 32 * 3)
    assert paths[0].header.frame_id == "base"
    assert [pose.pose.position.x for pose in paths[0].poses] == [0.25, 0.25]
    assert len(markers[0].markers[0].points) == 2


def wait(
    done: Callable[[], bool], executor: SingleThreadedExecutor, say: Callable[[], None]
) -> None:
    end = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < end
        say()
        for _ in range(20):
            executor.spin_once(timeout_sec=0.02)


# -- metrics -----------------------------------------------------------------------------


def test_metrics_have_names_units_and_texts_and_end_with_their_node() -> None:
    clock = [100.0]
    metrics = DiagnosticsMetrics(lambda: clock[0])
    metrics.take(
        "/a/pi05_policy: inputs",
        1,
        {
            "base_camera.age_ms": "250", "base_camera.received": "7",
            "joint_states.age_ms": "none", "base_camera.refused.stale": "2",
            "clock_jumps": "1", "base_camera.last_error": "no",
        },
    )  # fmt: skip
    metrics.take(
        "/a/pi05_policy: inference",
        0,
        {"rate_hz": "9.9", "inference_p95_ms": "83.20", "skipped_ticks.late": "4", "errors": "0"},
    )
    metrics.take("/pi05_executor: executor", 2, {"mode": "fault", "intervention": "True"})
    metrics.take("/camera: driver", 0, {"rate_hz": "30"})

    def value(name: str, **labels: str) -> float | None:
        found = metrics.registry.get_sample_value(name, {"node": "/a/pi05_policy", **labels})
        return found

    assert value("pi05_input_age_seconds", source="base_camera") == pytest.approx(0.25)
    assert value("pi05_input_age_seconds", source="joint_states") is None
    assert value("pi05_input_refused_total", source="base_camera", reason="stale") == 2
    assert value("pi05_chunk_rate_hertz") == pytest.approx(9.9)
    assert value("pi05_stage_seconds", stage="inference", percentile="95") == pytest.approx(0.0832)
    assert value("pi05_skipped_ticks_total", reason="late") == 4
    assert value("pi05_diagnostics_level", entry="inputs") == 1
    mode = {"node": "/pi05_executor", "mode": "fault"}
    assert metrics.registry.get_sample_value("pi05_executor_mode", mode) == 1
    clock[0] += 60
    assert value("pi05_chunk_rate_hertz") is None
    assert value("pi05_diagnostics_age_seconds", entry="inference") == 60
    for rule in RULES:
        assert re.fullmatch(
            r"pi05_[a-z_]+(_total|_seconds|_hertz|_ratio|_intervention)", rule.name
        )
        assert rule.text.endswith(".")
    for family in metrics.collect():
        assert family.documentation


def test_the_metrics_node_serves_on_this_machine_only() -> None:
    domain = free_domain_id()
    command = [sys.executable, "-m", "pi05_ros.ros.observers.metrics_node", "--ros-args"]
    command += ["-p", "port:=0", "-r", "__node:=metrics_test"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "ROS_DOMAIN_ID": str(domain)},
    )
    assert process.stderr is not None
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain)
    talker = rclpy.create_node("metrics_test_talker", context=context)
    try:
        said = ""
        while "/metrics" not in said:
            said = process.stderr.readline()
            assert said, "the node ended"
        url = re.findall(r"http://\S+", said)[0]
        assert url.startswith("http://127.0.0.1:")
        diagnostics = talker.create_publisher(DiagnosticArray, "/diagnostics", 10)
        entry = DiagnosticStatus(
            name="/metrics_test: inference", values=[KeyValue(key="rate_hz", value="12.5")]
        )
        text, end = "", time.monotonic() + PATIENCE_S
        while "/metrics_test" not in text:
            assert time.monotonic() < end, text
            diagnostics.publish(DiagnosticArray(status=[entry]))
            time.sleep(0.1)
            with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
                text = answer.read().decode()
        assert 'pi05_chunk_rate_hertz{node="/metrics_test"} 12.5' in text
        assert "# HELP pi05_chunk_rate_hertz Chunks published per second." in text
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
        talker.destroy_node()
        rclpy.shutdown(context=context)


def test_the_dashboard_asks_for_metrics_that_are_served() -> None:
    dashboard = json.loads((resources.config_dir() / "grafana" / "pi05.json").read_text())
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"pi05_[a-z_]+", target["expr"])
    }
    served = {rule.name for rule in RULES}
    assert asked <= served | {"pi05_executor_mode", "pi05_diagnostics_level"}
    assert len(asked) > 6


BEGIN, END = "<!-- {}:begin -->", "<!-- {}:end -->"


def test_the_documented_tables_are_those_of_the_code() -> None:
    text = (Path(__file__).parents[2] / "docs" / "watching.md").read_text(encoding="utf-8")
    for word, wanted in (("parameters", markdown_table(SPECS)), ("metrics", metrics_table())):
        inside = text.split(BEGIN.format(word))[1].split(END.format(word))[0]
        assert inside.strip() == wanted.strip()
