"""Joint limits of the executor node: its files, its robot description or the latched topic."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from std_msgs.msg import String

from pi05_ros.execution.limit_sources.urdf_limits import read_urdf
from pi05_ros.execution.limits import (
    LimitsError,
    MergedLimits,
    limits_from_yaml,
    merge_limits,
)
from pi05_ros.ros import qos
from pi05_ros.ros.executor_parameters import ExecutorParameters
from pi05_ros.ros.topic_fit import TopicSide, type_name, unheard_publishers
from pi05_ros.runtime.parameter_specs import ParameterError

TOPIC = "robot_description"


def read_limits(p: ExecutorParameters, robot_description: str) -> MergedLimits:
    """Merge the files of the parameters and a robot description, where there is one."""
    files = [
        (Path(name).name, limits_from_yaml(Path(os.path.expanduser(name))))
        for name in (p.limits_file, p.moveit_limits_file)
        if name
    ]
    urdf = read_urdf(robot_description) if robot_description else None
    return merge_limits(files, urdf, p.joints, p.acceleration_time_s, p.jerk_time_s)


def wait_for_description(node: Node, timeout_s: float) -> str:
    """Text of the latched topic `robot_description`, empty if none comes in time."""
    texts: list[str] = []
    subscription = node.create_subscription(
        String, TOPIC, lambda message: texts.append(message.data), qos.LATCHED
    )
    try:
        _spin(node, lambda: bool(texts), timeout_s)
    finally:
        node.destroy_subscription(subscription)
    return texts[0] if texts else ""


def _spin(node: Node, done: Callable[[], bool], timeout_s: float) -> None:
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)
    try:
        end = time.monotonic() + timeout_s
        while not done() and time.monotonic() < end:
            executor.spin_once(timeout_sec=0.05)
    finally:
        executor.remove_node(node)
        executor.shutdown()


def limits_of_node(node: Node, p: ExecutorParameters) -> MergedLimits:
    """Limits of the parameters; asks the topic where they need a robot description they lack.

    Raises:
        LimitsError: as `merge_limits`, also if no robot description comes in time.
        ParameterError: neither files nor a robot description are given, and none comes.

    """
    problem: LimitsError | None = None
    if p.limits_file or p.robot_description or p.moveit_limits_file:
        try:
            return read_limits(p, p.robot_description)
        except LimitsError as error:
            if p.robot_description or "cannot read" in str(error):
                raise
            problem = error
    topic, timeout_s = node.resolve_topic_name(TOPIC), p.robot_description_timeout_s
    node.get_logger().info(f"waiting up to {timeout_s:g} s for the robot description on {topic}")
    text = wait_for_description(node, timeout_s)
    if text:
        return read_limits(p, text)
    waited = f"no robot description came on {topic} within {timeout_s:g} s"
    misfit = unheard_publishers(node, topic, (TopicSide(type_name(String), qos.LATCHED),))
    waited += f": {misfit.text}" if misfit else ""
    if problem is not None:
        raise LimitsError(f"{problem}; {waited}")
    raise ParameterError(
        "limits_file is empty; accepted: a YAML file with joint_limits, or the parameter "
        f"robot_description; {waited}"
    )
