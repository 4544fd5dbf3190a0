"""`pi05 bench node`: what the policy node costs besides inference.

The node, a publisher of synthetic cameras and joint states and a recorder run as processes of
their own, over DDS. Overhead of a chunk is timings.total_ms - timings.inference_ms: from the
moment the node took the newest used sample from the middleware to the moment it handed the
chunk over, without the policy's call. Joint states are counted by the node's diagnostics.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pi05_ros.bags.chunk_record import read_chunks
from pi05_ros.policy.robots.profile_yaml import load_profile
from pi05_ros.replay.live import (
    NODE,
    SETTLE_S,
    START_S,
    WRITE_S,
    read_diagnostics,
    write_parameters,
)
from pi05_ros.replay.summary import Spread, latencies_ms
from pi05_ros.ros.processes.children import (
    Child,
    ChildError,
    Children,
    ros_environment,
)
from pi05_ros.runtime.parameters import ParameterError, PolicyParameters

SETTLED = 0.25  # share of the run left out of memory figures: caches fill up
SERIES = 25  # points of the memory series
MIB = 2**20

# Acceptance: (figure, limit, text)
LIMITS = (
    ("overhead_p50_ms", 2.0, "overhead p50 <= 2 ms"),
    ("overhead_p99_ms", 10.0, "overhead p99 <= 10 ms"),
    ("joint_states_lost", 0.03, "joint states delivered >= 97 %"),
    ("rss_growth_mib", 5.0, "resident memory growth <= 5 MiB"),
)

ACCEPTED = (
    ("duration", 2, 86400, "seconds"),
    ("width", 1, 4096, "pixels"),
    ("height", 1, 4096, "pixels"),
    ("camera-hz", 0.1, 1000, "per second"),
    ("joint-hz", 0.1, 10000, "per second"),
)


@dataclass(frozen=True)
class NodeFigures:
    """Result of one run.

    Attributes:
        machine: CPU, cores, Python.
        setting: what was asked.
        chunks, asked: received, and rate times duration.
        overhead_ms: total - inference per chunk.
        queue_ms: newest used sample -> inference started.
        inference_ms: the policy's call.
        latency_ms: oldest used sample's stamp -> chunk received in the recorder.
        delivered: input -> share of its messages that reached the node's callback.
        skipped: ticks without a chunk, by reason.
        rss_mib: resident memory at the end.
        rss_growth_mib: from a quarter of the run to its end.
        rss_series_mib: resident memory at even distances over the run.
        cpu_share: of one core, node process only, inference included.
        publisher_late_p99_ms: how late the publisher was; large values mean a busy machine.

    """

    machine: str
    setting: str
    seconds: float
    chunks: int
    asked: float
    overhead_ms: Spread
    queue_ms: Spread
    inference_ms: Spread
    latency_ms: Spread
    delivered: dict[str, float]
    skipped: dict[str, int]
    rss_mib: float
    rss_growth_mib: float
    rss_series_mib: tuple[float, ...]
    cpu_share: float
    publisher_late_p99_ms: float

    def limits(self) -> list[tuple[str, bool]]:
        """Acceptance limits and whether they are met."""
        values = {
            "overhead_p50_ms": self.overhead_ms.p50,
            "overhead_p99_ms": self.overhead_ms.p99,
            "joint_states_lost": 1.0 - self.delivered.get("joint_states", 0.0),
            "rss_growth_mib": self.rss_growth_mib,
        }
        return [(text, values[name] <= limit) for name, limit, text in LIMITS]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the benchmark."""
    parser.add_argument("--duration", type=float, default=30.0, help="seconds of load")
    parser.add_argument("--rate", type=float, default=10.0, help="inferences per second")
    parser.add_argument("--checkpoint", default="random:tiny")
    parser.add_argument("--robot", default="sim_arm")
    parser.add_argument(
        "--cameras", type=int, default=2, help="cameras of the robot that are used"
    )
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--camera-hz", type=float, default=30.0)
    parser.add_argument("--joint-hz", type=float, default=100.0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the model")
    parser.add_argument("--out", type=Path, default=Path("out/bench_node"))
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    parser.add_argument("--check", action="store_true", help="exit code 1 if a limit is not met")


def measure(args: argparse.Namespace) -> NodeFigures:
    """Run the load and collect the figures.

    Raises:
        RosMissingError, ChildError, BagError, ParameterError: it cannot run; one clear text.

    """
    roles = load_profile(args.robot).camera_roles
    if not 1 <= args.cameras <= len(roles):
        raise ParameterError(
            f"--cameras is {args.cameras}; accepted: 1 to {len(roles)} for robot {args.robot}"
        )
    roles = roles[: args.cameras]
    values = {
        "checkpoint": args.checkpoint,
        "robot": args.robot,
        "rate_hz": float(args.rate),
        "threads": args.threads,
        "camera_roles": list(roles),
    }
    PolicyParameters.from_values(values)
    environment, _ = ros_environment()
    write_parameters(args.out / "node_params.yaml", values)
    chunk_bag = args.out / "chunks"
    load = [
        f"--{name}={value}"
        for name, value in (
            ("node", NODE), ("robot", args.robot), ("cameras", args.cameras),
            ("seconds", args.duration), ("width", args.width), ("height", args.height),
            ("camera-hz", args.camera_hz), ("joint-hz", args.joint_hz),
        )
    ]  # fmt: skip
    with Children(environment, args.out / "logs") as children:
        ros = ("--ros-args", "--params-file", str(args.out / "node_params.yaml"))
        node = children.start_module("policy_node", "pi05_ros.ros.policy_node", *ros)
        recorder = children.start_module(
            "recorder", "pi05_ros.ros.processes.chunk_recorder",
            "--node", NODE, "--out", str(chunk_bag), "--clock-map", str(args.out / "none.json"),
            talks=True,
        )  # fmt: skip
        publisher = children.start_module(
            "publisher", "pi05_ros.ros.processes.load_publisher", *load, talks=True
        )
        children.wait_event(publisher, "ready", 10 * START_S)
        children.wait_event(recorder, "matched", START_S)
        publisher.send("go")
        memory, cpu_share = _watch(children, node, args.duration)
        done = children.wait_event(publisher, "done", START_S)
        time.sleep(SETTLE_S)
        code = children.stop(recorder, WRITE_S)
        if code != 0:
            raise ChildError(f"recorder ended with code {code}:\n{recorder.tail()}")
    return _figures(args, chunk_bag, done, memory, cpu_share)


def _watch(children: Children, node: Child, seconds: float) -> tuple[np.ndarray, float]:
    """Resident bytes once a second, and the CPU share over the run."""
    samples = []
    start, cpu = time.monotonic(), node.cpu_seconds()
    while time.monotonic() - start < seconds:
        children.check()
        samples.append(node.resident_bytes())
        time.sleep(min(1.0, seconds / 20))
    elapsed = time.monotonic() - start
    return np.asarray(samples, np.float64), (node.cpu_seconds() - cpu) / elapsed


def _figures(
    args: argparse.Namespace,
    chunk_bag: Path,
    done: dict[str, Any],
    memory: np.ndarray,
    cpu_share: float,
) -> NodeFigures:
    chunks = read_chunks(chunk_bag)
    # Ticks after the last message find nothing new; they are not counted.
    inference, inputs = read_diagnostics(chunk_bag, chunks[-1].received_ns if chunks else None)
    settled = memory[int(SETTLED * len(memory)) :]
    edge = max(1, len(settled) // 10)
    growth = float(np.median(settled[-edge:]) - np.median(settled[:edge]))

    def spread(name: str) -> Spread:
        return Spread.of([chunk.timings[name] for chunk in chunks])

    overhead = [chunk.timings["total_ms"] - chunk.timings["inference_ms"] for chunk in chunks]
    prefix = "skipped_ticks."
    return NodeFigures(
        machine=machine(),
        setting=(
            f"{args.checkpoint}, {args.cameras} cameras {args.width}x{args.height} at "
            f"{args.camera_hz:g} Hz, joint states at {args.joint_hz:g} Hz, {args.rate:g} Hz, "
            f"{args.threads} model threads"
        ),
        seconds=args.duration,
        chunks=len(chunks),
        asked=args.rate * args.duration,
        overhead_ms=Spread.of(overhead),
        queue_ms=spread("queue_ms"),
        inference_ms=spread("inference_ms"),
        latency_ms=Spread.of(latencies_ms(chunks)),
        delivered={
            name: int(inputs.get(f"{name}.received", 0)) / sent
            for name, sent in done["sent"].items()
            if sent
        },
        skipped={
            key.removeprefix(prefix): int(value)
            for key, value in inference.items()
            if key.startswith(prefix)
        },
        rss_mib=float(memory[-1]) / MIB,
        rss_growth_mib=growth / MIB,
        rss_series_mib=tuple(
            round(float(memory[i]) / MIB, 2)
            for i in np.linspace(0, len(memory) - 1, SERIES).astype(int)
        ),
        cpu_share=cpu_share,
        publisher_late_p99_ms=float(done["late_p99_ms"]),
    )


def machine() -> str:
    """CPU model, usable cores, Python and kernel."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} cores, Python {platform.python_version()}, {platform.system()}"


def rows(figures: NodeFigures) -> list[tuple[str, str]]:
    """Label and value of every figure."""
    skipped = ", ".join(f"{count} {reason}" for reason, count in figures.skipped.items())
    delivered = ", ".join(f"{name} {share:.1%}" for name, share in figures.delivered.items())
    return [
        ("chunks", f"{figures.chunks} of {figures.asked:.0f} in {figures.seconds:g} s"),
        ("overhead (total - inference)", figures.overhead_ms.text()),
        ("of it waiting for the start", figures.queue_ms.text()),
        ("inference", figures.inference_ms.text()),
        ("sample stamp -> chunk received", figures.latency_ms.text()),
        ("messages delivered", delivered),
        ("skipped ticks", skipped or "none"),
        ("resident memory", f"{figures.rss_mib:.0f} MiB, grew {figures.rss_growth_mib:+.2f} MiB"),
        ("CPU of the node", f"{figures.cpu_share:.0%} of one core"),
        ("publisher late", f"p99 {figures.publisher_late_p99_ms:.1f} ms"),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="pi05 bench node", description="cost of the policy node")
    add_arguments(parser)
    args = parser.parse_args(argv)
    for option, low, high, unit in ACCEPTED:
        value = getattr(args, option.replace("-", "_"))
        if not low <= value <= high:
            raise ParameterError(f"--{option} is {value}; accepted: {low} to {high} {unit}")
    figures = measure(args)
    limits = figures.limits()
    if args.json:
        report = asdict(figures) | {"limits": dict(limits)}
        print(json.dumps(report, indent=2))
    elif args.markdown:
        print(f"{figures.setting}; {figures.machine}\n\n| figure | value |\n|---|---|")
        print("\n".join(f"| {label} | {value} |" for label, value in rows(figures)))
    else:
        print(f"{figures.setting}\n{figures.machine}")
        print("\n".join(f"{label:32} {value}" for label, value in rows(figures)))
        for text, met in limits:
            print(f"{'met' if met else 'NOT MET':32} {text}")
    return 1 if args.check and not all(met for _, met in limits) else 0


if __name__ == "__main__":
    sys.exit(main())
