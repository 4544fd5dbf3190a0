"""Subscriptions to the cameras and the joint states, feeding `Inputs`.

Images are taken when an inference is due and not as they come, and without the GIL, which
inference needs as well. Then the few header fields that decide whether a message is usable are
checked; pixels are touched in the worker thread, and only those that are used.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from rclpy.callback_groups import CallbackGroup
from rclpy.clock import JumpHandle
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription
from rclpy.utilities import get_rmw_implementation_identifier
from sensor_msgs.msg import CompressedImage, Image, JointState

from pi05_ros.resources import config_dir
from pi05_ros.ros import process, qos
from pi05_ros.ros.policy_parts.frame_wait import FrameWait
from pi05_ros.ros.policy_parts.image_take import ImageTake, NoImageTakeError, Taken, rclpy_take
from pi05_ros.ros.policy_parts.input_reader import InputReader, TakenOnDemand
from pi05_ros.ros.policy_parts.managed import ManagedPart
from pi05_ros.ros.policy_parts.policy_host import PolicyHost
from pi05_ros.ros.processes.children import FASTDDS_PROFILE_VARIABLES
from pi05_ros.ros.topic_fit import node_of, type_name
from pi05_ros.runtime.edge_log import EdgeLog
from pi05_ros.runtime.inputs import conversion
from pi05_ros.runtime.inputs.observation_buffer import NS, Inputs
from pi05_ros.runtime.inputs.page_locked import pixel_memory
from pi05_ros.runtime.inputs.sources import JOINTS, camera_source, limits, make_inputs
from pi05_ros.runtime.parameters import ParameterError, PolicyParameters

SILENT_NS = 3 * NS


class Subscriptions(ManagedPart):
    """The subscriptions of one node, and the buffers that they fill.

    Args:
        node: creates the subscriptions.
        host: brings the robot profile.
        on_sample: called after each accepted message.
        log: told about bad messages.

    Messages are taken on demand, by `take`, unless the node runs on simulated time: that may wait
    for an answer to its last message, so the executor takes them as they come.

    Attributes:
        inputs: the buffers; without sources while the node is not configured.
        cameras: role -> (source name, converter from the stored payload to RGB).

    """

    def __init__(
        self, node: Node, host: PolicyHost, on_sample: Callable[[], None], log: EdgeLog
    ) -> None:
        self._node = node
        self._host = host
        self._on_sample = on_sample
        self._log = log
        self._readers: dict[str, InputReader] = {}  # by source; the joints are last
        self._wait = FrameWait(
            lambda: {name: item for name, item in self._readers.items() if name != JOINTS},
            lambda name, since_ns: self.inputs.complete_since((name,), since_ns),
            self.take,
        )
        self._group: CallbackGroup | None = None
        self._steps_back: JumpHandle | None = None
        self._roles: tuple[str, ...] = ()
        self.cameras: dict[str, tuple[str, Callable[[Any], np.ndarray]]] = {}
        self.inputs = Inputs((), limits(PolicyParameters(), ()))

    def configure(self, parameters: PolicyParameters) -> None:
        """Subscribe to the cameras that are wanted and to the joint states."""
        robot = self._host.policy.robot
        roles = parameters.roles or robot.camera_roles
        check_roles(roles, robot)
        self._roles = tuple(roles)
        self.inputs = make_inputs(parameters, self._roles, robot.state_names)
        self._steps_back = process.on_step_back(self._node, self._observe_clock)
        on_demand = not self._node.get_parameter("use_sim_time").value
        self._group = TakenOnDemand() if on_demand else None
        for role in roles:
            self._add_camera(role, parameters.transport(role), parameters.camera_reliability)
        self._readers[JOINTS] = InputReader(
            self._node,
            JointState,
            JOINTS,
            self._receive_joints,
            lambda error: self._reject(JOINTS, "malformed", str(error)),
            lambda current: qos.JOINTS,
            {"qos_overriding_options": qos.overridable()},
            self._group,
        )

    @property
    def on_demand(self) -> bool:
        """Whether `take` has to be called for messages to come."""
        return self._group is not None

    def take(self, names: Collection[str] | None = None) -> None:
        """Take what has come, of some sources or all; without effect where the executor does."""
        if self._group is None:
            return
        for name, reader in self._readers.items():
            if names is None or name in names:
                overwritten = reader.overwritten
                reader.take()
                self.inputs.sources[name].received += reader.overwritten - overwritten

    def take_since(self, since_ns: int, over_ns: int) -> int | None:
        """Take the frames that should have come after a time, and all joint states.

        Args:
            since_ns: monotonic time.
            over_ns: end of the wait for frames.

        Returns:
            When to call again; None if nothing is left to wait for, and all has been taken.

        """
        self.take((JOINTS,))  # before the frames, which are waited for
        again_ns = self._wait.take_since(since_ns, over_ns)
        if again_ns is None:
            self.take()
        return again_ns

    def apply(self, parameters: PolicyParameters) -> None:
        """Take over changed limits."""
        self.inputs.limits = limits(parameters, self._roles)

    def cleanup(self) -> None:
        """Remove the subscriptions; samples are freed."""
        if self._steps_back is not None:
            self._steps_back.unregister()
            self._steps_back = None
        while self._readers:
            self._readers.popitem()[1].destroy()
        self._roles = ()
        self.cameras = {}
        self.inputs = Inputs((), limits(PolicyParameters(), ()))

    def follow_publishers(self) -> None:
        """Adapt the reliability of camera subscriptions, doubt mixed ones; for now and then."""
        for name, reader in self._readers.items():
            reader.follow()
            if name != JOINTS:
                self._doubt_turns(name, reader)

    def _add_camera(self, role: str, transport: str, reliability: str) -> None:
        name = camera_source(role)
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
            raise ParameterError(
                f"camera role {role!r} is no ROS name, so there can be no topic for it; accepted: "
                "letters, digits and _ (LeRobot: give the feature another role with camera_map)"
            )
        topic = f"{name}/image_raw"
        if transport == "compressed":
            kind, topic = CompressedImage, f"{topic}/compressed"
            check, convert = conversion.check_compressed, conversion.compressed_to_rgb
            conversion.load_decoders(pixel_memory())
        else:
            kind = Image
            check, convert = conversion.check_image, conversion.image_to_rgb
        self.cameras[role] = (name, convert)
        self._readers[name] = InputReader(
            self._node,
            kind,
            topic,
            self._receiver(name, check),
            lambda error: self._reject(name, "malformed", str(error)),
            lambda current: self._camera_qos(name, topic, kind, reliability, current),
            {"qos_overriding_options": qos.overridable_depth()},
            self._group,
            self._image_take(kind),
            has_bell=True,
        )

    def _doubt_turns(self, name: str, reader: InputReader) -> None:
        """Two cameras on one topic: which of them a chunk has seen is left to chance."""
        source, turns = self.inputs.sources[name], reader.publishers.take_turns
        found = self._node.get_publishers_info_by_topic(reader.topic)
        if len(found) < 2 or not turns(time.monotonic_ns()):
            source.doubt = ""
            return
        names = sorted({node_of(info) for info in found})
        source.doubt = (
            f"images of several publishers come by turns ({len(found)} in {', '.join(names)}); "
            "give each camera a topic of its own"
        )
        self._log.report(name, "publishers", source.doubt)

    def _image_take(self, kind: Any) -> Callable[[Subscription], Taken | None]:
        """How images are taken on demand: without the GIL where that can be done."""
        try:
            return ImageTake(kind)
        except NoImageTakeError as error:
            self._node.get_logger().warning(
                f"images are taken through rclpy, which holds up inferences: {error}"
            )
            return rclpy_take

    def _camera_qos(
        self, name: str, topic: str, kind: Any, reliability: str, current: QoSProfile | None
    ) -> QoSProfile:
        """Profile that follows the reliability of the publishers, and whether anything comes.

        Publishers of another type count for nothing: the node names them elsewhere.
        """
        full_name = self._node.resolve_topic_name(topic)
        publishers = [
            info
            for info in self._node.get_publishers_info_by_topic(full_name)
            if info.topic_type == type_name(kind)
        ]
        silent = current is not None and bool(publishers) and self._is_silent(name)
        self.inputs.sources[name].note = _no_message_cause() if silent else ""
        if reliability == "best_effort":
            return qos.INPUT
        reliable = all(
            item.qos_profile.reliability == ReliabilityPolicy.RELIABLE for item in publishers
        )
        if reliability == "reliable":
            if not reliable:
                self._log.report(
                    topic,
                    "qos",
                    "a publisher is best effort, so that with camera_reliability:=reliable its "
                    "messages do not come",
                )
        elif not publishers:
            return current or qos.INPUT
        elif not reliable:
            return qos.INPUT
        large = current is qos.INPUT_LARGE and bool(publishers)
        return qos.INPUT_LARGE if silent or large else qos.INPUT_RELIABLE

    def _observe_clock(self) -> None:
        now_ns = self._node.get_clock().now().nanoseconds
        if self.inputs.went_back(now_ns):  # many small steps back are a jump, too
            self.inputs.observe_clock(now_ns)

    def _is_silent(self, name: str) -> bool:
        """Whether no message of a source came for some seconds, or ever since it is read."""
        reader, last_ns = self._readers.get(name), self.inputs.sources[name].last_received_ns
        if reader is None:
            return False
        since_ns = max(last_ns or 0, reader.created_ns)
        return time.monotonic_ns() - since_ns > SILENT_NS

    def _receive_joints(self, message: JointState, mono_ns: int) -> None:
        source = self.inputs.sources[JOINTS]
        dropped = source.dropped.total()
        stamp_ns = conversion.stamp_ns(message.header.stamp)
        now_ns = self._node.get_clock().now().nanoseconds
        if self.inputs.offer_joints(JOINTS, message, stamp_ns, now_ns, mono_ns):
            self._on_sample()
        if source.dropped.total() != dropped:
            self._log.report(JOINTS, "dropped", source.last_error)

    def _receiver(self, name: str, check: Callable[[Any], None]) -> Callable[[Any, int], None]:
        """What is done with each message of a camera."""

        def received(message: Any, mono_ns: int) -> None:
            try:
                check(message)
                stamp_ns = conversion.stamp_ns(message.header.stamp)
            except conversion.ConversionError as error:
                self._reject(name, error.code, str(error), mono_ns)
                return
            now_ns = self._node.get_clock().now().nanoseconds
            if self.inputs.offer(name, message, stamp_ns, now_ns, mono_ns):
                self._on_sample()
            else:
                self._log.report(name, "dropped", self.inputs.sources[name].last_error)

        return received

    def _reject(self, name: str, code: str, text: str, mono_ns: int | None = None) -> None:
        self.inputs.reject(name, code, text, time.monotonic_ns() if mono_ns is None else mono_ns)
        self._log.report(name, code, text)


def _no_message_cause() -> str:
    """What to look at where a publisher is there and no message comes."""
    cause = "; a publisher is there"
    fast_dds = get_rmw_implementation_identifier().startswith("rmw_fastrtps")
    if fast_dds and not any(os.environ.get(name) for name in FASTDDS_PROFILE_VARIABLES):
        return (
            f"{cause}: images above 0.5 MB need, where they are published, export "
            f"{FASTDDS_PROFILE_VARIABLES[0]}={config_dir() / 'fastdds_images.xml'}"
        )
    return f"{cause}: do its message type and QoS fit, and do both run in one ROS domain?"


def check_roles(roles: Sequence[str], robot: Any) -> None:
    """Refuse cameras that the robot lacks, and a choice without those that it needs."""
    unknown = [role for role in roles if role not in robot.camera_roles]
    if unknown:
        raise ParameterError(
            f"camera_roles names {', '.join(unknown)}; {robot.name} has "
            f"{', '.join(robot.camera_roles)}"
        )
    missing = [role for role in robot.required_roles if role not in roles]
    if missing:
        raise ParameterError(f"camera_roles lacks {', '.join(missing)}, which {robot.name} needs")
