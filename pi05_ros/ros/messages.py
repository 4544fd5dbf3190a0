"""ActionChunk and PolicyStatus messages from what the policy gives and says of itself."""

from __future__ import annotations

import array
from dataclasses import asdict
from typing import Any

import numpy as np
from builtin_interfaces.msg import Duration, Time
from rclpy.duration import Duration as RclpyDuration
from rclpy.node import Node

from pi05_ros.msg import ActionChunk as ActionChunkMsg
from pi05_ros.msg import InferenceTimings, PolicyStatus
from pi05_ros.msg import PoseGroup as PoseGroupMsg
from pi05_ros.policy.pose_groups import PoseGroup
from pi05_ros.ros import qos
from pi05_ros.runtime.inference import InferenceResult, Job
from pi05_ros.runtime.inputs.conversion import split_ns
from pi05_ros.runtime.parameters import PolicyParameters
from pi05_ros.runtime.text import printable


def time_msg(nanoseconds: int) -> Time:
    """builtin_interfaces/Time from nanoseconds."""
    sec, nanosec = split_ns(nanoseconds)
    return Time(sec=sec, nanosec=nanosec)


def duration_msg(seconds: float) -> Duration:
    """builtin_interfaces/Duration from seconds."""
    sec, nanosec = split_ns(round(seconds * 1e9))
    return Duration(sec=sec, nanosec=nanosec)


def steps_past(age_ns: int, step_s: float, horizon: int) -> int:
    """Leading steps whose time has passed: ceil(age / step), within [0, horizon]."""
    step_ns = round(step_s * 1e9)
    return max(0, min(horizon, -(-age_ns // step_ns)))


def float_array(values: np.ndarray) -> array.array[float]:
    """Row-major float32 as the array type that rclpy fields take without a check per value."""
    return array.array("f", np.ascontiguousarray(values, np.float32).tobytes())


def chunk_message(
    job: Job,
    result: InferenceResult,
    *,
    chunk_id: int,
    policy_id: str,
    random_weights: bool,
    published_ns: int,
) -> ActionChunkMsg:
    """Everything but ``timings.total_ms``, which is set when the message is handed over."""
    chunk, snapshot = result.chunk, job.snapshot
    stamp = time_msg(snapshot.stamp_ns)
    message = ActionChunkMsg()
    message.header.stamp = stamp
    message.observation_stamp = stamp
    message.input_names = list(snapshot.samples)
    message.input_stamps = [time_msg(item.stamp_ns) for item in snapshot.samples.values()]
    message.published_stamp = time_msg(published_ns)
    message.chunk_id = chunk_id
    message.policy_id = policy_id
    message.names = [printable(name) for name in chunk.names]
    message.horizon = chunk.horizon
    message.step = duration_msg(chunk.dt)
    message.meaning = [int(item) for item in chunk.meanings]
    message.unit = [int(item) for item in chunk.units]
    message.data = float_array(chunk.actions)
    message.steps_past = steps_past(published_ns - snapshot.stamp_ns, chunk.dt, chunk.horizon)
    message.prompt = printable(chunk.prompt)
    message.seed = job.seed
    message.kv_age = chunk.kv_age
    message.random_weights = random_weights
    message.timings = timings_message(job, result)
    message.pose_groups = [pose_group_message(group) for group in chunk.pose_groups]
    return message


def pose_group_message(group: PoseGroup) -> PoseGroupMsg:
    """A pose group as it is in an ActionChunk message."""
    return PoseGroupMsg(
        name=printable(group.name),
        frame_id=printable(group.frame),
        tool_frame_id=printable(group.tool),
        columns=[printable(name) for name in group.columns],
        rotation=group.rotation,
        axes=group.axes,
    )


def timings_message(job: Job, result: InferenceResult) -> InferenceTimings:
    """Timings known when the inference has ended."""
    waited_ns = result.started_ns - job.snapshot.received_ns
    waited_ns += result.began_ns - result.converted_ns
    return InferenceTimings(
        queue_ms=waited_ns / 1e6,
        convert_ms=(result.converted_ns - result.started_ns) / 1e6,
        inference_ms=(result.inferred_ns - result.began_ns) / 1e6,
        **asdict(result.chunk.timings),
        denoise_steps=int(result.chunk.denoise_steps),
    )


def status_message(
    state: int,
    parameters: PolicyParameters,
    info: Any | None,
    policy_id: str,
    message: str,
    prompt: str,
) -> PolicyStatus:
    """Status without its stamp.

    Args:
        state: of the lifecycle.
        parameters: of the node.
        info: `PolicyInfo` while a policy is loaded.
        policy_id: of the activation, or empty.
        message: last error or refusal.
        prompt: the one in use.

    """
    status = PolicyStatus(
        state=state,
        policy_id=policy_id,
        checkpoint=printable(parameters.checkpoint),
        random_weights=parameters.checkpoint.startswith("random:"),
        robot=printable(parameters.robot),
        denoise_steps=parameters.denoise_steps,
        rate_hz=parameters.rate_hz,
        prompt=printable(prompt),
        message=printable(message),
    )
    if info is not None:
        status.checkpoint_hash = info.checkpoint_hash
        status.random_weights = bool(info.random_weights)
        status.robot = printable(info.robot)
        status.backend = info.backend
        status.backend_reason = printable(info.backend_reason)
        status.device = str(info.device)
        status.precision_vision = info.precision.vision
        status.precision_prefill = info.precision.prefill
        status.precision_denoise = info.precision.denoise
        status.horizon = info.horizon
        status.step_s = info.step_s
        status.denoise_steps = parameters.denoise_steps or info.denoise_steps
        status.assumptions = [printable(text) for text in info.assumptions]
        status.doubts = [printable(text) for text in info.doubts]
    return status


class StatusPublisher:
    """Publishes a status if it differs from the one before."""

    def __init__(self, node: Node) -> None:
        self._node = node
        # Not a lifecycle publisher: it has to speak while the node is unconfigured too.
        self._publisher = node.create_publisher(PolicyStatus, "~/status", qos.LATCHED)
        self._last: PolicyStatus | None = None

    def publish(self, status: PolicyStatus, *, force: bool = False) -> None:
        """Stamp and publish; `force` sends it even if nothing changed."""
        if status == self._last and not force:
            return
        self._last = status
        stamped = PolicyStatus(
            **{name: getattr(status, name) for name in status.get_fields_and_field_types()}
        )
        stamped.stamp = time_msg(self._node.get_clock().now().nanoseconds)
        self._publisher.publish(stamped)

    def flush(self, timeout_s: float) -> None:
        """Wait until subscribers have the last status, for the end of the process."""
        if hasattr(self._publisher, "wait_for_all_acked"):
            self._publisher.wait_for_all_acked(RclpyDuration(nanoseconds=int(timeout_s * 1e9)))
