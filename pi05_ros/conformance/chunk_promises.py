"""Promises about action chunks, checked on those that came."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from typing import Any

from pi05_ros.conformance.heard import NS, PolicyRecord, ns
from pi05_ros.conformance.promises import (
    CHUNK,
    NODE,
    STATUS,
    TIMINGS,
    Checks,
    Verdict,
    absent,
    none_of,
)

CHUNKS: Checks[PolicyRecord] = Checks()
ACTIVE = 3
CLOCK_NS = NS // 20
"""Between a check in the node and the time that it writes into the message."""
ROUNDING_MS = 0.05
SHORT_PROMPT = 60
"""Prompts of so many characters are never cut."""


def _each(record: PolicyRecord, problem: Any) -> Verdict:
    """Verdict of a check of single chunks; `problem` gives a text or nothing."""
    broken = [
        f"chunk {heard.message.chunk_id}: {text}"
        for heard in record.chunks
        if (text := problem(heard.message))
    ]
    return none_of(broken, len(record.chunks), "chunks")


@CHUNKS.add("chunk sizes", CHUNK, "", "Row-major [horizon, len(names)], robot units, never NaN or "
            "infinite.")  # fmt: skip
def sizes(record: PolicyRecord) -> Verdict:
    """Lengths of data, meaning and unit, and finite numbers."""

    def problem(chunk: Any) -> str:
        columns = len(chunk.names)
        if not columns or len(set(chunk.names)) != columns:
            return f"names {list(chunk.names)}"
        if len(chunk.data) != columns * chunk.horizon or not chunk.horizon:
            return f"{len(chunk.data)} values for {chunk.horizon} x {columns}"
        if len(chunk.meaning) != columns or len(chunk.unit) != columns:
            return f"{len(chunk.meaning)} meanings and {len(chunk.unit)} units of {columns}"
        if not all(map(math.isfinite, chunk.data)):
            return "not finite"
        if max(chunk.meaning) > 3 or max(chunk.unit) > 8:
            return f"meaning {list(chunk.meaning)}, unit {list(chunk.unit)}"
        return ""

    return _each(record, problem)


@CHUNKS.add("chunk numbers", CHUNK, "", "Rises by one with each chunk of one policy_id; never "
            "reused before a new policy_id.")  # fmt: skip
def numbers(record: PolicyRecord) -> Verdict:
    """A chunk that was lost on the way leaves a gap, which is no fault of the node."""
    broken = [
        f"{b.chunk_id} after {a.chunk_id}" for a, b in record.pairs() if b.chunk_id <= a.chunk_id
    ]
    return none_of(broken, len(record.pairs()), "pairs of chunks")


@CHUNKS.add("chunk stamp", NODE, "Topics and services", "`header.stamp` = `observation_stamp` = "
            "the oldest stamp among the samples used")  # fmt: skip
def stamp(record: PolicyRecord) -> Verdict:
    """Both stamps against the stamps of the inputs."""

    def problem(chunk: Any) -> str:
        stamps = [ns(item) for item in chunk.input_stamps]
        if ns(chunk.header.stamp) != ns(chunk.observation_stamp):
            return "header.stamp is not observation_stamp"
        if not stamps or min(stamps) != ns(chunk.observation_stamp):
            return f"observation_stamp is not the oldest of {len(stamps)} stamps"
        return ""

    return _each(record, problem)


@CHUNKS.add("chunk inputs", CHUNK, "", "Source names (\"base_camera\", \"wrist_camera\", "
            "\"wrist_camera_2\", \"joint_states\") and the header stamp of the sample used of "
            "each, in the same order.")  # fmt: skip
def inputs(record: PolicyRecord) -> Verdict:
    """Joint states and at least one camera, a stamp each."""

    def problem(chunk: Any) -> str:
        names = list(chunk.input_names)
        cameras = [name for name in names if re.fullmatch(r"\w+_camera(_2)?", name)]
        if len(names) != len(chunk.input_stamps) or len(set(names)) != len(names):
            return f"{names} with {len(chunk.input_stamps)} stamps"
        if "joint_states" not in names or not cameras or len(cameras) + 1 != len(names):
            return f"input_names {names}"
        return ""

    return _each(record, problem)


@CHUNKS.add("steps past", CHUNK, "", "ceil((published_stamp - header.stamp) / step), at most "
            "horizon.")  # fmt: skip
def steps_past(record: PolicyRecord) -> Verdict:
    """The formula."""

    def problem(chunk: Any) -> str:
        step = ns(chunk.step)
        if step <= 0:
            return f"step {step} ns"
        age = ns(chunk.published_stamp) - ns(chunk.header.stamp)
        due = max(0, min(chunk.horizon, -(-age // step)))
        return "" if chunk.steps_past == due else f"steps_past {chunk.steps_past}, due {due}"

    return _each(record, problem)


@CHUNKS.add("answer age", NODE, "Which samples are used", "if its observation is older than "
            "`max_answer_age_s` (`late_chunks`)")  # fmt: skip
def answer_age(record: PolicyRecord) -> Verdict:
    """Age at publication."""
    limit = int(record.number("max_answer_age_s", 1.0) * NS)

    def problem(chunk: Any) -> str:
        age = ns(chunk.published_stamp) - ns(chunk.observation_stamp)
        return f"published {age / NS:.2f} s after" if age > limit + CLOCK_NS else ""

    return _each(record, problem)


@CHUNKS.add("skew", NODE, "Which samples are used", "more than `max_skew_s` behind the newest "
            "source")  # fmt: skip
def skew(record: PolicyRecord) -> Verdict:
    """Span of the stamps of one observation."""
    limit = int(record.number("max_skew_s", 0.25) * NS)

    def problem(chunk: Any) -> str:
        stamps = [ns(item) for item in chunk.input_stamps]
        span = max(stamps, default=0) - min(stamps, default=0)
        return f"stamps {span / NS:.3f} s apart" if span > limit else ""

    return _each(record, problem)


@CHUNKS.add(
    "new samples", NODE, "Which samples are used", "no new sample since the last inference"
)
def new_samples(record: PolicyRecord) -> Verdict:
    """No two chunks of the same samples one after the other."""
    broken = [
        f"chunks {a.chunk_id} and {b.chunk_id} answer the same samples"
        for a, b in record.pairs()
        if list(a.input_stamps) == list(b.input_stamps)
    ]
    return none_of(broken, len(record.pairs()), "pairs of chunks")


@CHUNKS.add("chunk order", NODE, "Which samples are used", "older than the sample before it")
def order(record: PolicyRecord) -> Verdict:
    """Stamps of a source never go back while the clock does not."""
    if record.clock_jumped:
        return absent("the clock jumped")
    broken = []
    for a, b in record.pairs():
        before = dict(zip(a.input_names, map(ns, a.input_stamps), strict=False))
        for name, at in zip(b.input_names, map(ns, b.input_stamps), strict=False):
            back = at < before.get(name, at)
            if back and ns(b.published_stamp) >= ns(a.published_stamp):
                broken.append(f"chunk {b.chunk_id}: {name} goes back")
    return none_of(broken, len(record.pairs()), "pairs of chunks")


@CHUNKS.add("seeds", NODE, "Parameters", "inference n of an activation is drawn with seed + n, "
            "and each chunk carries its own.")  # fmt: skip
def seeds(record: PolicyRecord) -> Verdict:
    """A seed rises at least as the number does (chunks are dropped); a reset starts again."""
    first = int(record.number("seed", 0))
    broken = []
    for a, b in record.pairs():
        drawn, made = b.seed - a.seed, b.chunk_id - a.chunk_id
        again = first <= b.seed < a.seed
        if drawn < made and not again:
            broken.append(f"chunk {b.chunk_id} has seed {b.seed} after {a.seed}")
    below = [f"seed {heard.message.seed}" for heard in record.chunks if heard.message.seed < first]
    return none_of(broken + below, len(record.pairs()), "pairs of chunks")


@CHUNKS.add("time of publication", CHUNK, "", "Time on the node's clock at which the chunk was "
            "published.")  # fmt: skip
def publication(record: PolicyRecord) -> Verdict:
    """Not after its arrival, and rising."""
    if record.clock_jumped:
        return absent("the clock jumped")
    broken = [
        f"chunk {heard.message.chunk_id}: {late / NS:.3f} s after it came"
        for heard in record.chunks
        if (late := ns(heard.message.published_stamp) - heard.clock_ns) > CLOCK_NS
    ]
    broken += [
        f"chunk {b.chunk_id} was published before {a.chunk_id}"
        for a, b in record.pairs()
        if 0 < ns(a.published_stamp) - ns(b.published_stamp) <= CLOCK_NS
    ]
    return none_of(broken, len(record.chunks), "chunks")


@CHUNKS.add("timings", TIMINGS, "", "vision + prefill + denoise as one measured interval")
def timings(record: PolicyRecord) -> Verdict:
    """Parts are not longer than the whole; NaN is "cannot be measured apart"."""
    if record.parameters.get("overlap"):
        return absent("overlap: the parts overlap")

    def problem(chunk: Any) -> str:
        times = chunk.timings
        stages = times.vision_ms + times.prefill_ms + times.denoise_ms
        slack = ROUNDING_MS + 0.02 * times.inference_ms
        if not 0 <= times.inference_ms <= times.total_ms + slack:
            return f"inference {times.inference_ms:.2f} of {times.total_ms:.2f} ms"
        if times.model_ms > times.inference_ms + slack:
            return f"model {times.model_ms:.2f} of {times.inference_ms:.2f} ms"
        if stages > times.model_ms + slack:
            return f"stages {stages:.2f} of {times.model_ms:.2f} ms"
        if not chunk.timings.denoise_steps:
            return "no denoise steps"
        return ""

    return _each(record, problem)


@CHUNKS.add("frame", CHUNK, "", "frame_id: empty, or the frame that all pose_groups have.")
def frame(record: PolicyRecord) -> Verdict:
    """No frame without pose groups, nor another one than theirs."""
    return _each(
        record,
        lambda chunk: (
            f"frame_id {chunk.header.frame_id!r}"
            if chunk.header.frame_id
            and {group.frame_id for group in chunk.pose_groups} != {chunk.header.frame_id}
            else ""
        ),
    )


@CHUNKS.add("only while active", NODE, "Topics and services", "only while active")
def only_while_active(record: PolicyRecord) -> Verdict:
    """Every chunk has a policy_id that a status of the active node showed."""
    if not record.statuses:
        return absent("no status")
    known = {item.message.policy_id for item in record.statuses if item.message.state == ACTIVE}
    return _each(
        record, lambda chunk: "" if chunk.policy_id in known else f"policy_id {chunk.policy_id!r}"
    )


@CHUNKS.add("chunk as status", STATUS, "", "Steps in each chunk and their duration in seconds.")
def as_status(record: PolicyRecord) -> Verdict:
    """Horizon, step and random weights of a chunk are those of the status of its policy_id."""
    known = {
        item.message.policy_id: item.message
        for item in record.statuses
        if item.message.state == ACTIVE
    }

    def problem(chunk: Any) -> str:
        status = known.get(chunk.policy_id)
        if status is None:
            return ""
        if chunk.random_weights != status.random_weights:
            return f"random_weights {chunk.random_weights}"
        if abs(ns(chunk.step) / NS - status.step_s) > 1e-6:
            return f"step {ns(chunk.step) / NS} s, status {status.step_s} s"
        shorter = chunk.horizon < status.horizon and chunk.kv_age
        if chunk.horizon != status.horizon and not shorter:
            return f"horizon {chunk.horizon}, status {status.horizon}"
        return ""

    return _each(record, problem) if known else absent("no status of an active node")


@CHUNKS.add("prompt in use", CHUNK, "", "Prompt that was used, after cleaning.")
def prompt(record: PolicyRecord) -> Verdict:
    """A chunk's prompt is one that a status showed, up to spaces, case, underscores and a cut."""

    def plain(text: str) -> str:
        return re.sub(r"[\s_]+", " ", text).strip().casefold()

    shown = {plain(item.message.prompt) for item in record.statuses}
    if not shown:
        return absent("no status")

    def problem(chunk: Any) -> str:
        used = plain(chunk.prompt)
        cut = len(used) > SHORT_PROMPT and any(text.startswith(used) for text in shown)
        return "" if used in shown or cut else f"prompt {chunk.prompt!r}"

    return _each(record, problem)


@CHUNKS.add("rate", NODE, "Parameters", "Inferences per second that are asked for.")
def rate(record: PolicyRecord) -> Verdict:
    """No more chunks than asked for; fewer is what diagnostics are for."""
    asked = record.number("rate_hz", 0.0)
    if not asked or len(record.chunks) < 10 or record.clock_jumped:
        return absent(f"{len(record.chunks)} chunks")
    stamps = [ns(heard.message.published_stamp) for heard in record.chunks]
    span = sum(max(0, b - a) for a, b in pairwise(stamps)) / NS
    measured = (len(stamps) - 1) / max(span, 1e-9)
    broken = [f"{measured:.2f} Hz, asked {asked:g} Hz"] if measured > 1.2 * asked else []
    return none_of(broken, len(stamps), f"chunks at {measured:.2f} Hz, asked {asked:g} Hz")
