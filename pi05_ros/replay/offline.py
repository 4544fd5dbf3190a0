"""Offline replay: the node's input logic and the policy over a bag, without DDS or a clock.

Time is the bag's. Ticks come at the asked rate from the first message on, messages arrive when
they were recorded, an inference takes no time: the run of an infinitely fast machine. The same
bag, policy and parameters give the same chunks, bit for bit, on the same machine.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pi05_ros.bags.bag import Bag
from pi05_ros.bags.cdr_messages import NS, decode
from pi05_ros.bags.chunk_record import ChunkRecord, chunk_message, record_from_message
from pi05_ros.bags.timeline import TimedMessage, read_timeline
from pi05_ros.bags.topics import JOINT_STATES, PROMPT, Source
from pi05_ros.policy.chunking.continuation import DelayEstimator
from pi05_ros.policy.chunking.continuing import ContinuingPolicy, Started
from pi05_ros.policy.errors import PolicyError
from pi05_ros.policy.interface import ActionChunk
from pi05_ros.runtime.inference import BadSampleError, InferenceResult, Job, PolicyLike
from pi05_ros.runtime.inputs import conversion
from pi05_ros.runtime.inputs.observation_buffer import CLOCK_JUMP_NS, Problem
from pi05_ros.runtime.inputs.sources import camera_source, make_inputs
from pi05_ros.runtime.loop import InferenceLoop
from pi05_ros.runtime.parameters import PolicyParameters
from pi05_ros.runtime.text import prompt_in_use

LEAP_NS = 3600 * NS  # ticks in a gap this long are not counted: stamps of zero, wrong log times


@dataclass(frozen=True)
class OfflineChunk:
    """One chunk of an offline replay: as message for the bag, as record, and its real timings."""

    message: Any
    record: ChunkRecord
    inference_ms: float


@dataclass
class OfflineCounts:
    """What happened besides chunks.

    Attributes:
        ticks: how often an inference was due.
        skipped: ticks without a chunk, by reason.
        dropped: messages that could not be used, by source and reason.
        errors: what was wrong with the last of them.
        jumps: how often the clock went back.
        leaps: how often it went on by more than `LEAP_NS` at once.
        clock_s: bag time covered, leaps left out.
        without_prompt: whether no prompt was known when the newest inference started.
        refusals: the newest sentence of each reason for which a tick was without an inference.
        no_prompt: what the policy said the first time.

    """

    ticks: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    errors: dict[str, str] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)
    jumps: int = 0
    leaps: int = 0
    clock_s: float = 0.0
    without_prompt: bool = False
    no_prompt: Exception | None = None

    def lost_tick(self, computing: bool) -> None:
        """Not counted: ticks of a bag are lost by waiting for images only."""

    def started(self, job: Job) -> None:
        """Not counted: it ends in a chunk or in one of the following."""

    def refused(self, problems: Sequence[Problem]) -> None:
        """Count a tick without an inference."""
        texts = {f"{problem.source} {problem.code}": problem.text for problem in problems}
        for reason in sorted(texts):
            self.skipped[reason] += 1
        self.refusals |= texts

    def bad_sample(self, bad: BadSampleError) -> None:
        """Count a sample that did not convert."""
        self.skipped[f"{bad.source} {bad.error.code}"] += 1

    def dropped_chunk(self, reason: str, text: str) -> None:
        """Count a chunk that the node would not publish."""
        self.skipped["chunk not finite" if reason == "nan" else f"chunk {reason}"] += 1

    def failed(self, error: Exception) -> None:
        """Count a tick before the first prompt; what else the policy refuses ends the replay."""
        if not (self.without_prompt and isinstance(error, PolicyError)):
            raise error
        self.no_prompt = self.no_prompt or error
        self.skipped["no prompt"] += 1


class BagClocks:
    """The clocks of the loop, set to the time of the bag."""

    def __init__(self) -> None:
        self._now_ns = self._mono_ns = 0

    def set(self, now_ns: int, mono_ns: int) -> None:
        """Set both."""
        self._now_ns, self._mono_ns = now_ns, mono_ns

    def now_ns(self) -> int:
        """Bag time."""
        return self._now_ns

    def mono_ns(self) -> int:
        """Bag time played so far."""
        return self._mono_ns


class UntimedPolicy(ContinuingPolicy):
    """Chunks that continue each other are made for a delay of one step, whatever they took.

    That is what the fastest machine has. A measured delay would change the chunks from run to run.
    """

    def denoise(self, started: Started) -> ActionChunk:
        """Second half, see `ContinuingPolicy.denoise`."""
        step_s = self.info.step_s
        self._delay = DelayEstimator(step_s, initial_s=step_s)
        return super().denoise(started)


def converters(
    sources: Mapping[str, Source], roles: tuple[str, ...]
) -> dict[str, tuple[str, Callable[[Any], np.ndarray]]]:
    """Role -> (source name, converter from its message to RGB)."""
    found: dict[str, tuple[str, Callable[[Any], np.ndarray]]] = {}
    for role in roles:
        name = camera_source(role)
        compressed = sources[name].compressed
        convert = conversion.compressed_to_rgb if compressed else conversion.image_to_rgb
        found[role] = (name, convert)
    return found


def offline_identity(policy: Any, parameters: PolicyParameters) -> str:
    """policy_id of offline chunks: the same for the same weights and parameters."""
    text = f"{policy.info.checkpoint_hash} {policy.info.robot} {parameters!r}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class OfflineReplay:
    """Iterate over it to get the chunks; read `counts` afterwards.

    Args:
        bag: an open bag.
        sources: its topics for each input.
        policy: a loaded policy.
        parameters: of the node; rate, seed, prompt, limits are used.
        roles: cameras, all of which must deliver.
        base: time base, see `pi05_ros.bags.timeline`.
        loops: how often the bag is played.

    """

    def __init__(
        self,
        bag: Bag,
        sources: Mapping[str, Source],
        policy: PolicyLike,
        parameters: PolicyParameters,
        roles: tuple[str, ...],
        base: str = "auto",
        loops: int = 1,
    ) -> None:
        self.counts = OfflineCounts()
        self._bag = bag
        self._sources = dict(sources)
        self._policy = policy
        self._parameters = parameters
        self._base = base
        self._loops = loops
        images = converters(sources, roles)
        self._inputs = make_inputs(parameters, roles, policy.robot.state_names)
        self._period_ns = round(NS / parameters.rate_hz)
        self._prompt = parameters.prompt
        self._identity = offline_identity(policy, parameters)
        self._made: list[OfflineChunk] = []
        self._clocks = BagClocks()
        self._loop = InferenceLoop(
            policy,
            self._inputs,
            images,
            lambda: parameters,
            self._prompt_in_use,
            self._clocks,
            self.counts,
            self._deliver,
            ages=False,
        )

    def __iter__(self) -> Iterator[OfflineChunk]:
        played_ns = 0  # stands for the node's monotonic clock
        next_tick: int | None = None
        last: TimedMessage | None = None
        for _ in range(self._loops):
            start_ns = played_ns
            for message in read_timeline(self._bag, self._sources, self._base):
                mono_ns = start_ns + message.offset_ns
                now_ns = message.clock_ns
                if last is not None and not -CLOCK_JUMP_NS <= now_ns - last.clock_ns <= LEAP_NS:
                    self._loop.give_up()
                    next_tick = None
                    self.counts.leaps += now_ns > last.clock_ns
                elif last is not None:
                    self.counts.clock_s += max(0, now_ns - last.clock_ns) / NS
                if next_tick is None:
                    next_tick = now_ns + self._period_ns
                # What was due before this message came.
                to_mono = mono_ns - now_ns
                while True:
                    due = self._loop.due_since_ns
                    over = None if due is None else due + self._loop.wait_ns - to_mono
                    if over is not None and over < min(next_tick, now_ns):
                        yield from self._try_start(over, over + to_mono)
                    elif next_tick < now_ns:
                        self._clocks.set(next_tick, next_tick + to_mono)
                        self.counts.ticks += 1
                        self._loop.tick()
                        yield from self._try_start(next_tick, next_tick + to_mono)
                        next_tick += self._period_ns
                    else:
                        break
                self._take(message, now_ns, mono_ns)
                yield from self._try_start(now_ns, mono_ns)
                last = message
                played_ns = mono_ns
            played_ns += 1
        self.counts.jumps = self._inputs.clock_jumps
        if self.counts.no_prompt is not None and self.counts.without_prompt:
            raise self.counts.no_prompt  # none came at all

    def _prompt_in_use(self) -> str:
        prompt = prompt_in_use(self._prompt, self._policy.robot.default_prompt)
        self.counts.without_prompt = not prompt
        return prompt

    def _take(self, message: TimedMessage, now_ns: int, mono_ns: int) -> None:
        """Feed one message to the buffers, checked as the node checks it on arrival."""
        name = message.source
        try:
            decoded = decode(message.raw, message.msgtype)
        except Exception as error:  # rosbags raises several kinds
            self._drop(name, "malformed", error, mono_ns)
            return
        if name == PROMPT:
            self._prompt = decoded.data
            self.counts.without_prompt = not self._prompt_in_use()
            return
        try:
            stamp_ns = conversion.stamp_ns(decoded.header.stamp)
            if name == JOINT_STATES:
                self._take_joints(decoded, stamp_ns, now_ns, mono_ns)
                return
            if self._sources[name].compressed:
                conversion.check_compressed(decoded)
            else:
                conversion.check_image(decoded)
        except conversion.ConversionError as error:
            self._drop(name, error.code, error, mono_ns)
            return
        if not self._inputs.offer(name, decoded, stamp_ns, now_ns, mono_ns):
            self.counts.dropped[f"{name} out of order or without stamp"] += 1

    def _take_joints(self, message: Any, stamp_ns: int, now_ns: int, mono_ns: int) -> None:
        source = self._inputs.sources[JOINT_STATES]
        before = source.dropped.copy()
        self._inputs.offer_joints(JOINT_STATES, message, stamp_ns, now_ns, mono_ns)
        for code in source.dropped - before:
            self.counts.dropped[f"{JOINT_STATES} {code}"] += 1
            self.counts.errors[f"{JOINT_STATES} {code}"] = source.last_error

    def _drop(self, name: str, code: str, error: Exception, mono_ns: int) -> None:
        if name != PROMPT:
            self._inputs.reject(name, code, str(error), mono_ns)
        self.counts.dropped[f"{name} {code}"] += 1
        self.counts.errors[f"{name} {code}"] = str(error)

    def _try_start(self, now_ns: int, mono_ns: int) -> Iterator[OfflineChunk]:
        """Run the inference that is due, if it may start now."""
        self._clocks.set(now_ns, mono_ns)
        self._loop.try_start()
        yield from self._made
        self._made.clear()

    def _deliver(self, job: Job, result: InferenceResult, chunk_id: int, now_ns: int) -> None:
        message = chunk_message(
            result.chunk,
            inputs=[(name, sample.stamp_ns) for name, sample in job.snapshot.samples.items()],
            published_ns=now_ns,
            chunk_id=chunk_id,
            policy_id=self._identity,
            random_weights=bool(self._policy.info.random_weights),
        )
        elapsed_ms = (result.inferred_ns - result.began_ns) / 1e6
        self._made.append(OfflineChunk(message, record_from_message(message, now_ns), elapsed_ms))
