"""ActionChunk messages from the policy's answers."""

from __future__ import annotations

import array

import numpy as np
from builtin_interfaces.msg import Duration, Time

from pi05_ros.msg import ActionChunk as ActionChunkMsg
from pi05_ros.msg import InferenceTimings
from pi05_ros.runtime.conversion import split_ns
from pi05_ros.runtime.inference import Answer, Job


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
    answer: Answer,
    *,
    chunk_id: int,
    policy_id: str,
    random_weights: bool,
    published_ns: int,
) -> ActionChunkMsg:
    """Everything but ``timings.total_ms``, which is set when the message is handed over."""
    chunk, snapshot = answer.chunk, job.snapshot
    stamp = time_msg(snapshot.stamp_ns)
    message = ActionChunkMsg()
    message.header.stamp = stamp
    message.observation_stamp = stamp
    message.input_names = list(snapshot.samples)
    message.input_stamps = [time_msg(item.stamp_ns) for item in snapshot.samples.values()]
    message.published_stamp = time_msg(published_ns)
    message.chunk_id = chunk_id
    message.policy_id = policy_id
    message.names = list(chunk.names)
    message.horizon = chunk.horizon
    message.step = duration_msg(chunk.dt)
    message.meaning = [int(item) for item in chunk.meanings]
    message.unit = [int(item) for item in chunk.units]
    message.data = float_array(chunk.actions)
    message.steps_past = steps_past(published_ns - snapshot.stamp_ns, chunk.dt, chunk.horizon)
    message.prompt = chunk.prompt
    message.seed = job.seed
    message.kv_age = chunk.kv_age
    message.random_weights = random_weights
    message.timings = timings_message(job, answer)
    return message


def timings_message(job: Job, answer: Answer) -> InferenceTimings:
    """Timings known when the inference has ended."""
    stages = answer.chunk.timings
    return InferenceTimings(
        queue_ms=(answer.started_ns - job.snapshot.received_ns) / 1e6,
        convert_ms=(answer.converted_ns - answer.started_ns) / 1e6,
        inference_ms=(answer.inferred_ns - answer.converted_ns) / 1e6,
        preprocess_ms=stages.preprocess_ms,
        vision_ms=stages.vision_ms,
        prefill_ms=stages.prefill_ms,
        denoise_ms=stages.denoise_ms,
        model_ms=stages.model_ms,
        postprocess_ms=stages.postprocess_ms,
        denoise_steps=answer.chunk.denoise_steps,
    )
