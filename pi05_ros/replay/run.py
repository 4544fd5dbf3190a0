"""Shared by `pi05 replay` and `pi05 demo`: choose topics, run, summarize, write files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pi05_ros.bags.bag import Bag, BagError, BagWriter, require_place
from pi05_ros.bags.cdr_messages import ACTION_CHUNK
from pi05_ros.bags.chunk_record import CHUNK_TOPIC, CHUNKS, ChunkRecord
from pi05_ros.bags.lerobot_recording import episodes_in, is_dataset, open_recording
from pi05_ros.bags.topics import JOINT_STATES, PROMPT, Source, find_sources
from pi05_ros.policy.checkpoints.loading import read_recipe
from pi05_ros.policy.checkpoints.recipe import Recipe
from pi05_ros.policy.robots.profile import RobotProfile
from pi05_ros.replay.live import LiveOptions, LiveResult, run_live
from pi05_ros.replay.offline import OfflineReplay, UntimedPolicy
from pi05_ros.replay.plots import plot_replay
from pi05_ros.replay.summary import ReplaySummary, Spread, latencies_ms
from pi05_ros.runtime.inputs.sources import camera_source
from pi05_ros.runtime.parameters import ParameterError, PolicyParameters
from pi05_ros.runtime.policy_loading import load_policy


@dataclass(frozen=True)
class Chosen:
    """Inputs of a replay.

    Attributes:
        sources: bag topic per input.
        roles: cameras that are used, in the robot profile's order.
        absent: inputs of cameras that the bag lacks and the robot profile does not require.
        robot: whose inputs they are.
        notes: what is odd about the bag, one sentence each.

    """

    sources: dict[str, Source]
    roles: tuple[str, ...]
    absent: tuple[str, ...]
    robot: RobotProfile
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """A finished replay: its chunks, its figures, and the bag they are in."""

    chunks: list[ChunkRecord]
    summary: ReplaySummary
    bag: Path


def recipe_of(parameters: PolicyParameters) -> Recipe:
    """What the parameters say about a policy, without loading weights.

    Raises:
        ParameterError: no checkpoint was named.
        PolicyError: no such profile or checkpoint.

    """
    if not parameters.checkpoint:
        raise ParameterError("checkpoint is empty; accepted: a path, random:tiny, random:pi05")
    return read_recipe(parameters.checkpoint, robot=parameters.robot or None)


def robot_of(parameters: PolicyParameters) -> RobotProfile:
    """Robot profile that the parameters lead to; raises as `recipe_of`."""
    return recipe_of(parameters).profile


def choose(
    bag: Bag,
    robot: RobotProfile,
    mapping: Mapping[str, str],
    namespace: str = "",
    roles: Sequence[str] = (),
    with_prompt: bool = True,
) -> Chosen:
    """Find the topics for a robot's cameras and joints.

    Cameras that the profile does not require are used if the bag has them.

    Raises:
        BagError: a needed topic is missing, ambiguous or of the wrong type.
        ParameterError: a role that the robot does not have.

    """
    unknown = [role for role in roles if role not in robot.camera_roles]
    if unknown:
        raise ParameterError(
            f"camera_roles names {', '.join(unknown)}; robot {robot.name} has "
            f"{', '.join(robot.camera_roles)}"
        )
    wanted = tuple(roles) or robot.camera_roles
    needed = tuple(roles) or robot.required_roles
    required = [*(camera_source(role) for role in needed), JOINT_STATES]
    optional = [camera_source(role) for role in wanted if role not in needed]
    if with_prompt:
        optional.append(PROMPT)
    sources = find_sources(bag, required, optional, mapping, namespace)
    for name in (*required, *(n for n in optional if n in sources and n != PROMPT)):
        if bag.topics[sources[name].topic].count == 0:
            raise BagError(f"{sources[name].topic} in {bag.path} holds no messages")
    unused = sorted(set(mapping) - set(sources))
    if unused:
        raise BagError(
            f"--map names {', '.join(unused)}, but robot {robot.name} only has the inputs "
            f"{', '.join([*required, *optional])}"
        )
    return Chosen(
        sources,
        tuple(role for role in wanted if camera_source(role) in sources),
        tuple(name for name in map(camera_source, wanted) if name not in sources),
        robot,
        bag.notes,
    )


def _require_place(path: Path, out: Path) -> None:
    """Raise BagError if the results in `out` would replace the bag that is replayed, or no bag."""
    result = out / CHUNKS
    require_place(result)
    if result.resolve() in (path.resolve(), path.resolve().parent):
        raise BagError(f"the results in {out} would replace the bag {path}; give another --out")


def run_offline(
    path: Path,
    chosen: Chosen,
    parameters: PolicyParameters,
    out: Path,
    base: str,
    loops: int,
    policy: Any = None,
) -> Outcome:
    """Offline replay into `out`/chunks; loads the policy unless one is given."""
    _require_place(path, out)
    policy = policy if policy is not None else load_policy(parameters, UntimedPolicy)
    out.mkdir(parents=True, exist_ok=True)
    chunks: list[ChunkRecord] = []
    times: list[float] = []
    with open_recording(path, chosen.robot) as bag, BagWriter(out / CHUNKS) as writer:
        writer.add_topic(CHUNK_TOPIC, ACTION_CHUNK)
        replay = OfflineReplay(bag, chosen.sources, policy, parameters, chosen.roles, base, loops)
        for chunk in replay:
            writer.write(CHUNK_TOPIC, chunk.record.received_ns, chunk.message)
            chunks.append(chunk.record)
            times.append(chunk.inference_ms)
    counts = replay.counts
    notes = [f"bag: {note}" for note in chosen.notes]
    notes += [
        _dropped(count, reason, counts.errors.get(reason, ""))
        for reason, count in counts.dropped.items()
    ]
    if not chunks:
        notes += [f"{reason}: {text}" for reason, text in sorted(counts.refusals.items())]
    if counts.jumps:
        notes.append(f"the clock went back {counts.jumps} times; buffers were emptied each time")
    if counts.leaps:
        notes.append(f"the clock went on by more than an hour {counts.leaps} times at once")
    summary = ReplaySummary(
        bag=str(path),
        mode="offline",
        rate_hz=parameters.rate_hz,
        active_s=counts.clock_s,
        chunks=len(chunks),
        expected=float(counts.ticks),
        skipped=dict(counts.skipped),
        latency_ms=Spread.of([]),
        inference_ms=Spread.of(times),
        policy=describe(policy),
        notes=tuple(notes),
        assumptions=tuple(policy.info.assumptions),
        doubts=tuple(policy.info.doubts),
    )
    return Outcome(chunks, summary, out / CHUNKS)


def _playable(path: Path, robot: RobotProfile, out: Path) -> Path:
    """The bag that the player plays: an episode of a dataset is written as one."""
    if not is_dataset(path):
        return path
    if len(episodes_in(path)) > 1:
        raise BagError(
            f"{path} has several episodes, and live replay plays one: give {path}/episode_0 (or "
            "another), or --offline"
        )
    with open_recording(path, robot) as episode, BagWriter(out / "episode") as writer:
        for message in episode.messages():
            writer.write_raw(message.topic, message.msgtype, message.log_ns, message.raw)
    return out / "episode"


def run_online(
    path: Path,
    chosen: Chosen,
    values: Mapping[str, Any],
    parameters: PolicyParameters,
    out: Path,
    base: str = "auto",
    speed: float = 1.0,
    loops: int = 1,
    say: Callable[[str], None] = lambda text: None,
) -> Outcome:
    """Live replay into `out`/chunks."""
    _require_place(path, out)
    path = _playable(path, chosen.robot, out)
    recipe = recipe_of(parameters)
    node_values = {**values, "camera_roles": list(chosen.roles)}
    options = LiveOptions(path, chosen.sources, node_values, out, base, speed, loops)
    result = run_live(options, say)
    summary = ReplaySummary(
        bag=str(path),
        mode="live",
        rate_hz=parameters.rate_hz,
        active_s=result.clock_s,
        chunks=len(result.chunks),
        expected=parameters.rate_hz * result.clock_s,
        skipped=result.skipped,
        latency_ms=Spread.of(latencies_ms(result.chunks)),
        inference_ms=Spread.of([chunk.timings["inference_ms"] for chunk in result.chunks]),
        policy={"checkpoint": parameters.checkpoint},
        notes=(*(f"bag: {note}" for note in chosen.notes), *_live_notes(result, speed)),
        assumptions=recipe.assumptions,
        doubts=recipe.doubts,
    )
    return Outcome(result.chunks, summary, result.bag)


def write_files(
    outcome: Outcome, out: Path, chosen: Chosen, bag: Path, plot: bool, title: str
) -> list[Path]:
    """summary.json and replay.png; returns what was written.

    Raises:
        BagError: they cannot be written.

    """
    written = [outcome.bag, out / "summary.json"]
    try:
        outcome.summary.write(written[-1])
        if plot and outcome.chunks:
            written.append(out / "replay.png")
            topic = chosen.sources[JOINT_STATES].topic
            names = outcome.chunks[0].names
            with open_recording(bag, chosen.robot) as opened:
                measured = joint_history(opened, topic, names)
            plot_replay(written[-1], outcome.chunks, outcome.summary, measured, title)
    except OSError as error:
        raise BagError(f"cannot write {written[-1]}: {error.strerror or error}") from error
    return written


def joint_history(
    bag: Bag, topic: str, names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Stamps in ns ``[n]`` and positions ``[n, len(names)]`` of a bag; None if names differ."""
    from pi05_ros.runtime.inputs.conversion import ConversionError, stamp_ns
    from pi05_ros.runtime.inputs.joint_states import JointStateMerger, merge_message

    joints = JointStateMerger(names)
    stamps: list[int] = []
    rows: list[np.ndarray] = []
    for message in bag.messages([topic]):
        try:
            decoded = message.decode()
            merged = merge_message(joints, decoded, stamp_ns=stamp_ns(decoded.header.stamp))
        except (BagError, ConversionError):
            continue  # counted by the replay
        if merged is not None:
            rows.append(merged.positions.astype(np.float32))
            stamps.append(max(merged.stamps_ns))
    return (np.asarray(stamps), np.stack(rows)) if rows else None


def describe(policy: Any) -> dict[str, Any]:
    """Identity of a policy for summaries."""
    info = policy.info
    return {
        "checkpoint": info.checkpoint,
        "checkpoint_hash": info.checkpoint_hash,
        "robot": info.robot,
        "backend": info.backend,
        "device": info.device,
        "precision": [info.precision.vision, info.precision.prefill, info.precision.denoise],
    }


def _dropped(count: int | str, reason: str, why: str) -> str:
    return f"dropped message: {count} x {reason}" + (f" ({why})" if why else "")


def _live_notes(result: LiveResult, speed: float) -> list[str]:
    """What a reader of live figures must know."""
    notes = [f"{count} {reason}" for reason, count in result.dropped.items()]
    for key, count in result.inputs.items():
        name, _, code = key.partition(".dropped.")
        if code:
            why = result.inputs.get(f"{name}.last_error", "")
            notes.append(
                f"dropped message: {count} x {name} {code}" + (f" ({why})" if why else "")
            )
    if speed != 1.0:
        notes.append(f"played at speed {speed:g}: latency is in bag time")
    late = result.player.get("late_p99_ms", 0.0)
    if late > 20.0:
        notes.append(f"the player was late (p99 {late:.0f} ms): this machine is overloaded")
    for name, sent in result.player.get("sent", {}).items():
        received = result.inputs.get(f"{name}.received")
        if received is not None and int(received) < 0.95 * sent:
            notes.append(f"{name}: {received} of {sent} messages reached the node")
    return notes
