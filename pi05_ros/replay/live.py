"""Live replay: node, player and recorder as processes of their own, over DDS, in real time.

Latency is measured on the bag's clock. The player keeps the recorded distances in time and notes
which bag time belongs to which monotonic time; the recorder notes the monotonic time at which
each chunk arrives and logs it at the bag time of that moment. Log time - observation stamp is
then the age that the oldest used sample had when the chunk reached a subscriber in another
process: transport, waiting for a tick, inference and transport again, as on the robot.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pi05_ros.bags.bag import Bag, BagError
from pi05_ros.bags.cdr_messages import DIAGNOSTICS
from pi05_ros.bags.chunk_record import CHUNKS, ChunkRecord, read_chunks
from pi05_ros.bags.play_plan import PlayPlan
from pi05_ros.bags.topics import CAMERAS, Source
from pi05_ros.ros.processes.children import STOP_S, ChildError, Children, ros_environment
from pi05_ros.strict_yaml import dump_yaml

NODE = "/pi05_policy"
START_S = 60.0
LOAD_S = 600.0  # for loading the checkpoint
LONGEST_S = 7 * 86400.0
WRITE_S = 120.0  # the recorder keeps everything in memory and writes it at the end
SETTLE_S = 1.3  # after the last message: the last chunk, and one more report of diagnostics


@dataclass(frozen=True)
class LiveOptions:
    """One live replay.

    Attributes:
        bag: path of the bag.
        sources: topics for the inputs.
        parameters: parameters of the policy node, by ROS name.
        out: folder for chunks, logs and parameters.
        base, speed, loops: as in `PlayPlan`.

    """

    bag: Path
    sources: Mapping[str, Source]
    parameters: Mapping[str, Any]
    out: Path
    base: str = "auto"
    speed: float = 1.0
    loops: int = 1


@dataclass(frozen=True)
class LiveResult:
    """What a live replay gave.

    Attributes:
        chunks: in the order of arrival.
        bag: the bag they were recorded to.
        clock_s: bag time played.
        skipped: ticks without a chunk, by the node's reason.
        dropped: chunks made but not published, and failed inferences.
        inputs: counters of the node per input, as in its diagnostics.
        player: figures of the player.

    """

    chunks: list[ChunkRecord]
    bag: Path
    clock_s: float
    skipped: dict[str, int]
    dropped: dict[str, int]
    inputs: dict[str, str]
    player: dict[str, Any]


def write_parameters(path: Path, values: Mapping[str, Any]) -> None:
    """Parameter file that fits the node under any name."""
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
    document = {"/**": {"ros__parameters": plain}}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dump_yaml(document, sort_keys=True), encoding="utf-8")


def run_live(options: LiveOptions, say: Callable[[str], None] = lambda text: None) -> LiveResult:
    """Replay a bag into a policy node and record its chunks.

    Raises:
        RosMissingError: no ROS 2 here.
        ChildError: a process failed; the text holds its log.
        BagError: the bag cannot be read, or what was recorded.

    """
    environment, domain = ros_environment()
    length_s = bag_seconds(options.bag) / options.speed * options.loops
    if length_s > LONGEST_S:
        raise BagError(
            f"{options.bag} would play for {length_s:.0f} s, going by its log times; accepted: "
            f"{LONGEST_S:.0f} s. Wrong log times? --offline leaps over gaps"
        )
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    clock_map, chunk_bag = out / "clock_map.json", out / CHUNKS
    clock_map.unlink(missing_ok=True)
    transports = {
        f"camera_transport.{name.removesuffix('_camera').replace('_camera_2', '_2')}": (
            "compressed" if source.compressed else "raw"
        )
        for name, source in options.sources.items()
        if name in CAMERAS
    }
    parameters = {**transports, **options.parameters, "use_sim_time": True}
    write_parameters(out / "node_params.yaml", parameters)
    plan = PlayPlan(
        bag=str(options.bag),
        sources=tuple(options.sources.values()),
        base=options.base,
        speed=options.speed,
        loops=options.loops,
        clock_map=str(clock_map),
        bring_up=NODE,
        configure_timeout_s=LOAD_S,
    )
    plan.write(out / "plan.json")
    with Children(environment, out / "logs") as children:
        arguments = ("--ros-args", "--params-file", str(out / "node_params.yaml"))
        node = children.start_module("policy_node", "pi05_ros.ros.policy_node", *arguments)
        recorder = children.start_module(
            "recorder", "pi05_ros.ros.processes.chunk_recorder",
            "--node", NODE, "--out", str(chunk_bag), "--clock-map", str(clock_map), talks=True,
        )  # fmt: skip
        player = children.start_module(
            "player", "pi05_ros.ros.processes.bag_player", str(out / "plan.json"), talks=True
        )
        say(f"node, player and recorder start (domain {domain}, this machine only)")
        children.wait_event(player, "ready", LOAD_S + START_S)
        children.wait_event(recorder, "matched", START_S)
        say("node active, playing")
        player.send("go")
        done = children.wait_event(player, "done", length_s * 1.5 + START_S)
        time.sleep(SETTLE_S)
        children.check()
        for child, timeout_s in ((recorder, WRITE_S), (player, STOP_S), (node, STOP_S)):
            code = children.stop(child, timeout_s)
            if code != 0 and child is not player:
                raise ChildError(
                    f"{child.name} ended with code {code} when asked to stop:\n{child.tail()}"
                )
    return _result(chunk_bag, done)


def bag_seconds(path: Path) -> float:
    """Length of a bag by its log times."""
    with Bag(path) as bag:
        return bag.seconds


def _result(chunk_bag: Path, done: Mapping[str, Any]) -> LiveResult:
    """Read what the recorder wrote."""
    inference, inputs = read_diagnostics(chunk_bag)
    chunks = read_chunks(chunk_bag)
    dropped = {
        "failed inferences": int(inference.get("errors", 0)),
        "chunks not published": int(inference.get("dropped_chunks", 0)),
    }
    return LiveResult(
        chunks=chunks,
        bag=chunk_bag,
        clock_s=float(done["clock_s"]),
        skipped=skipped_ticks(inference),
        dropped={reason: count for reason, count in dropped.items() if count},
        inputs=inputs,
        player=dict(done),
    )


def skipped_ticks(counters: Mapping[str, Any]) -> dict[str, int]:
    """Ticks without a chunk by reason, from the node's counters."""
    found = {key.partition("skipped_ticks.")[2]: value for key, value in counters.items()}
    return {reason: int(count) for reason, count in found.items() if reason}


def read_diagnostics(
    path: Path, until_ns: int | None = None
) -> tuple[dict[str, str], dict[str, str]]:
    """Last values of the node's two diagnostics entries in a bag: inference, inputs.

    Args:
        path: bag.
        until_ns: log time after which the inference entry is not read any more.

    """
    inference: dict[str, str] = {}
    inputs: dict[str, str] = {}
    with Bag(path) as bag:
        topics = [topic.name for topic in bag.topics.values() if topic.msgtype == DIAGNOSTICS]
        for message in bag.messages(topics):
            for status in message.decode().status:
                values = {item.key: item.value for item in status.values}
                if status.name.endswith(": inference"):
                    late = until_ns is not None and message.log_ns > until_ns
                    inference = inference if late else values
                elif status.name.endswith(": inputs") and len(values) > 1:
                    inputs = values
    return inference, inputs
