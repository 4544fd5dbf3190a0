"""One inference from messages to a checked action chunk, as it runs in the worker thread."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from pi05_ros.errors import Pi05Error
from pi05_ros.policy.interface import ActionChunk, Observation, PolicyLike
from pi05_ros.runtime.inputs.conversion import ConversionError, compressed_to_rgb
from pi05_ros.runtime.inputs.observation_buffer import Snapshot

_DECODERS = ThreadPoolExecutor(3, thread_name_prefix="pi05_decoder")


class BadSampleError(Pi05Error, ValueError):
    """A sample that was accepted on arrival and could not be converted."""

    def __init__(self, source: str, error: ConversionError) -> None:
        super().__init__(f"{source}: {error}")
        self.source = source
        self.error = error


class BadChunkError(Pi05Error, ValueError):
    """The policy's answer is not a finite [H, A] array of the size it promised."""


@dataclass(frozen=True)
class Job:
    """Everything one inference needs; made by the executor thread, used by the worker.

    Attributes:
        generation: activation (or reset) it belongs to; a result of an older one is dropped.
        images: camera role -> (source name, converter of its messages).
        denoise_steps: None takes the policy's own.
        clock_jumps: how often the clock had jumped back when the job was made.
        now_ns: the clock that stamps are compared with; None where an inference takes no time,
            and observations have no age.

    """

    generation: int
    snapshot: Snapshot
    images: Mapping[str, tuple[str, Callable[[Any], np.ndarray]]]
    joints: str
    prompt: str
    seed: int
    denoise_steps: int | None
    clock_jumps: int = 0
    now_ns: Callable[[], int] | None = None


@dataclass(frozen=True)
class PreparedJob:
    """The observation of a job, and the monotonic times (ns) around its conversion."""

    observation: Observation
    started_ns: int
    converted_ns: int


@dataclass(frozen=True)
class PendingInference:
    """An inference after its first half, and the monotonic times (ns) so far."""

    prefilled: Any
    started_ns: int
    converted_ns: int


@dataclass(frozen=True)
class InferenceResult:
    """A checked chunk and the monotonic times (ns) around its making.

    Attributes:
        started_ns, converted_ns: around the conversion.
        began_ns: the policy was called; later than `converted_ns` where that waited for the
            inference before it.
        inferred_ns: the policy has answered.

    """

    chunk: ActionChunk
    started_ns: int
    converted_ns: int
    began_ns: int
    inferred_ns: int


def run(policy: PolicyLike, job: Job) -> InferenceResult:
    """Convert, infer, check.

    Raises:
        BadSampleError: an image could not be decoded.
        BadChunkError: the answer holds NaN or infinity, or has the wrong size.
        Exception: whatever the policy raises.

    """
    return infer(policy, job, prepare(job))


def prepare(job: Job) -> PreparedJob:
    """Convert what a job needs; raises BadSampleError."""
    started = time.monotonic_ns()
    observation = convert(job)
    return PreparedJob(observation, started, time.monotonic_ns())


def infer(policy: PolicyLike, job: Job, prepared: PreparedJob) -> InferenceResult:
    """Call the policy and check its answer, as `run` does.

    Raises:
        BadChunkError: the answer holds NaN or infinity, or has the wrong size.
        Exception: whatever the policy raises.

    """
    began = time.monotonic_ns()
    observation = dataclasses.replace(prepared.observation, age_s=age_s(job))
    chunk = policy.infer(observation, seed=job.seed, denoise_steps=job.denoise_steps)
    check(chunk)
    return InferenceResult(
        chunk, prepared.started_ns, prepared.converted_ns, began, time.monotonic_ns()
    )


def begin(policy: PolicyLike, job: Job) -> PendingInference:
    """First half of `run`: convert, then vision and prefill.

    Raises:
        BadSampleError: an image could not be decoded.
        Exception: whatever the policy raises.

    """
    prepared = prepare(job)
    prefilled = policy.prefill(
        prepared.observation, seed=job.seed, denoise_steps=job.denoise_steps
    )
    return PendingInference(prefilled, prepared.started_ns, prepared.converted_ns)


def finish(policy: PolicyLike, pending: PendingInference) -> InferenceResult:
    """Second half of `run`: denoise and check.

    Raises:
        BadChunkError: the answer holds NaN or infinity, or has the wrong size.
        Exception: whatever the policy raises.

    """
    chunk = policy.denoise(pending.prefilled)
    check(chunk)
    converted = pending.converted_ns
    return InferenceResult(chunk, pending.started_ns, converted, converted, time.monotonic_ns())


def convert(job: Job) -> Observation:
    """Messages of a job as an observation; raises BadSampleError.

    Compressed images are decoded side by side: the decoder works without the GIL.
    """
    samples = job.snapshot.samples

    def converted(role: str) -> np.ndarray:
        source, to_rgb = job.images[role]
        try:
            return to_rgb(samples[source].payload)
        except ConversionError as error:
            raise BadSampleError(source, error) from error

    packed = [role for role, (_, to_rgb) in job.images.items() if to_rgb is compressed_to_rgb]
    later = {role: _DECODERS.submit(converted, role) for role in packed[1:]}
    images = {role: converted(role) for role in job.images if role not in later}
    images |= {role: future.result() for role, future in later.items()}
    return Observation(
        images={role: images[role] for role in job.images},
        state=samples[job.joints].payload,
        prompt=job.prompt or None,
        stamp_ns=job.snapshot.stamp_ns,
        age_s=age_s(job),
    )


def age_s(job: Job) -> float:
    """Age of a job's observation now; 0 where an inference takes no time."""
    return 0.0 if job.now_ns is None else (job.now_ns() - job.snapshot.stamp_ns) / 1e9


def check(chunk: ActionChunk) -> None:
    """Refuse a chunk that no consumer could use; raises BadChunkError."""
    actions = np.asarray(chunk.actions)
    if actions.ndim != 2 or actions.shape[1] != len(chunk.names) or not actions.shape[0]:
        raise BadChunkError(f"chunk has shape {actions.shape} for {len(chunk.names)} names")
    finite = np.isfinite(actions)
    if not finite.all():
        step, column = np.argwhere(~finite)[0]
        raise BadChunkError(
            f"chunk holds {int((~finite).sum())} values that are not finite, the first at step "
            f"{step}, {chunk.names[column]}"
        )
