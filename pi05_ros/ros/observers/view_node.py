"""The live half of `pi05 view`: a node that listens and shows.

It publishes for RViz what Foxglove gets over its websocket: `~/tool_path` (nav_msgs/Path),
`~/markers` (visualization_msgs/MarkerArray) and `~/<role>/model_image` (sensor_msgs/Image). The
first two need packages that a small ROS installation lacks; without them the node says so.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image, JointState

from pi05_ros.bags.chunk_record import record_from_message
from pi05_ros.msg import ActionChunk, ExecutorStatus
from pi05_ros.policy.robots.profile import RobotProfile
from pi05_ros.ros import process
from pi05_ros.ros.qos import CHUNK, JOINTS, LATCHED, own
from pi05_ros.ros.topic_fit import TopicFit
from pi05_ros.runtime.inputs import conversion
from pi05_ros.view.presenter import MakePresenter, Sink
from pi05_ros.view.tool_path import ToolPose

IMAGES = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)


@dataclass(frozen=True)
class LiveNames:
    """Namespace, and names of the nodes that are watched."""

    namespace: str
    policy: str
    executor: str


class RosSink:
    """Publishes for RViz, and hands everything on."""

    def __init__(self, node: Node, roles: Sequence[str], other: Sink) -> None:
        self._node, self._other = node, other
        self._images = {
            role: node.create_publisher(Image, f"~/{role}/model_image", 2) for role in roles
        }
        self._path: Any = None
        self._markers: Any = None
        try:
            from nav_msgs.msg import Path

            self._path = node.create_publisher(Path, "~/tool_path", 2)
        except ImportError:
            node.get_logger().info("no ~/tool_path: nav_msgs is not installed")
        try:
            from visualization_msgs.msg import MarkerArray

            self._markers = node.create_publisher(MarkerArray, "~/markers", 2)
        except ImportError:
            node.get_logger().info("no ~/markers: visualization_msgs is not installed")

    def image(self, role: str, stamp_ns: int, pixels: np.ndarray) -> None:
        """See `presenter.Sink`."""
        message = Image(
            height=pixels.shape[0],
            width=pixels.shape[1],
            encoding="rgb8",
            step=3 * pixels.shape[1],
        )
        message.header.stamp.sec, message.header.stamp.nanosec = conversion.split_ns(stamp_ns)
        message.header.frame_id = f"{role}_camera"
        message.data = np.ascontiguousarray(pixels).tobytes()
        self._images[role].publish(message)
        self._other.image(role, stamp_ns, pixels)

    def data(self, topic: str, stamp_ns: int, values: Mapping[str, Any]) -> None:
        """See `presenter.Sink`."""
        self._other.data(topic, stamp_ns, values)

    def path(self, stamp_ns: int, frame: str, poses: Sequence[ToolPose]) -> None:
        """See `presenter.Sink`."""
        self._other.path(stamp_ns, frame, poses)
        sec, nanosec = conversion.split_ns(stamp_ns)
        if self._path is not None:
            from geometry_msgs.msg import PoseStamped
            from nav_msgs.msg import Path

            path = Path()
            path.header.frame_id = frame
            path.header.stamp.sec, path.header.stamp.nanosec = sec, nanosec
            for pose in poses:
                each = PoseStamped(header=path.header)
                place, turn = each.pose.position, each.pose.orientation
                place.x, place.y, place.z = (float(value) for value in pose.position)
                turn.x, turn.y, turn.z, turn.w = pose.quaternion
                path.poses.append(each)
            self._path.publish(path)
        if self._markers is not None:
            from geometry_msgs.msg import Point
            from visualization_msgs.msg import Marker, MarkerArray

            line = Marker(ns="chunk", id=0, type=Marker.LINE_STRIP, action=Marker.ADD)
            line.header.frame_id = frame
            line.header.stamp.sec, line.header.stamp.nanosec = sec, nanosec
            line.pose.orientation.w = 1.0
            line.scale.x = 0.006
            line.color.r, line.color.g, line.color.b, line.color.a = 1.0, 0.6, 0.1, 1.0
            line.points = [
                Point(x=float(p.position[0]), y=float(p.position[1]), z=float(p.position[2]))
                for p in poses
            ]
            self._markers.publish(MarkerArray(markers=[line]))


class ViewNode(Node):  # type: ignore[misc]  # rclpy has no types
    """Listens to cameras, joints, chunks and executor status.

    Args:
        names: of the nodes and their namespace.
        robot: whose cameras are shown.
        make: the presenter of this robot.
        sink: gets everything.
        kwargs: of rclpy's Node.

    """

    def __init__(
        self,
        names: LiveNames,
        robot: RobotProfile,
        make: MakePresenter,
        sink: Sink,
        **kwargs: Any,
    ) -> None:
        super().__init__("pi05_view", namespace=names.namespace or None, **kwargs)
        self._presenter = make(RosSink(self, robot.camera_roles, sink))
        for role in robot.camera_roles:
            topic = f"{role}_camera/image_raw"
            kinds: tuple[tuple[Any, str, Callable[[Any], np.ndarray]], ...] = (
                (Image, topic, conversion.image_to_rgb),
                (CompressedImage, f"{topic}/compressed", conversion.compressed_to_rgb),
            )
            for kind, name, convert in kinds:
                take = functools.partial(self._image, role, convert)
                self.create_subscription(kind, name, take, IMAGES)
        self.create_subscription(JointState, "joint_states", self._joints, own(JOINTS))
        self.create_subscription(
            ActionChunk, f"{names.policy}/action_chunk", self._chunk, own(CHUNK)
        )
        self.create_subscription(
            ExecutorStatus, f"{names.executor}/executor_status", self._executor, own(LATCHED)
        )
        TopicFit(self).look_each_second()

    def _now(self) -> int:
        return int(self.get_clock().now().nanoseconds)

    def _image(self, role: str, convert: Callable[[Any], np.ndarray], message: Any) -> None:
        stamp = conversion.stamp_ns(message.header.stamp)
        self._presenter.image(role, stamp, functools.partial(convert, message))

    def _joints(self, message: JointState) -> None:
        self._presenter.joints(self._now(), message.name, message.position)

    def _chunk(self, message: ActionChunk) -> None:
        try:
            self._presenter.chunk(record_from_message(message, self._now()))
        except ValueError as error:
            self.get_logger().warning(f"chunk: {error}", throttle_duration_sec=10.0)

    def _executor(self, message: ExecutorStatus) -> None:
        self._presenter.executor(self._now(), message)


def run_live_view(names: LiveNames, robot: RobotProfile, make: MakePresenter, sink: Sink) -> int:
    """Show until a signal comes."""
    stop = process.start([])
    if stop is None:
        return 2
    node = ViewNode(names, robot, make, sink)
    try:
        while not stop.is_set():
            rclpy.spin_once(node, timeout_sec=0.2)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
    return 0
