"""Space of the executor node: its file, and the robot description with the shapes of the links."""

from __future__ import annotations

import os
from pathlib import Path

from rclpy.node import Node

from pi05_ros.execution.limits import JointLimits
from pi05_ros.execution.space.make_guard import make_guard
from pi05_ros.execution.space.space_file import SpaceError
from pi05_ros.execution.space.space_guard import SpaceGuard
from pi05_ros.ros.executor_limits import TOPIC, wait_for_description
from pi05_ros.ros.executor_parameters import ExecutorParameters


def guard_of_node(node: Node, p: ExecutorParameters, limits: JointLimits) -> SpaceGuard | None:
    """What watches the space, None without a space file; the latched topic is asked if need be.

    Raises:
        SpaceError: as `make_guard`, or no robot description comes in time.

    """
    if not p.space_file:
        return None
    timeout_s = p.robot_description_timeout_s
    text = p.robot_description or wait_for_description(node, timeout_s)
    if not text:
        raise SpaceError(
            "space_file needs the shapes of the robot description: none came on "
            f"{node.resolve_topic_name(TOPIC)} within {timeout_s:g} s, and the parameter "
            "robot_description is empty"
        )
    path = Path(os.path.expanduser(p.space_file))
    guard, notes = make_guard(path, text, limits, 1.0 / p.control_rate_hz)
    for note in notes:
        node.get_logger().warning(f"space: {note}")
    return guard
