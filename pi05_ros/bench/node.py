"""`pi05 bench node`: what the policy node costs besides inference.

The node, a publisher of synthetic cameras and joint states and a recorder run as processes of
their own, over DDS. Overhead of a chunk is timings.total_ms - timings.inference_ms: from the
moment the node took the newest used sample from the middleware to the moment it handed the
chunk over, without the policy's call. Joint states are counted by the node's diagnostics.
"""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pi05_ros.bags.chunk_record import read_chunks
from pi05_ros.bench.bench_requests import NodeBenchRequest
from pi05_ros.policy.robots.profile_yaml import load_profile
from pi05_ros.replay.live import (
    NODE,
    SETTLE_S,
    START_S,
    WRITE_S,
    read_diagnostics,
    skipped_ticks,
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
MIB = 2**20

# Acceptance: (figure, limit, text)
LIMITS = (
    ("overhead_p50_ms", 2.0, "overhead p50 <= 2 ms"),
    ("overhead_p99_ms", 10.0, "overhead p99 <= 10 ms"),
    ("joint_states_lost", 0.03, "joint states delivered >= 97 %"),
    ("rss_growth_mib", 5.0, "resident memory growth <= 5 MiB"),
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


def measure_node(request: NodeBenchRequest) -> NodeFigures:
    """Run the load and collect the figures.

    Raises:
        RosMissingError, ChildError, BagError, ParameterError: it cannot run; one clear text.

    """
    roles = load_profile(request.robot).camera_roles
    if not 1 <= request.cameras <= len(roles):
        raise ParameterError(
            f"--cameras is {request.cameras}; accepted: 1 to {len(roles)} for robot "
            f"{request.robot}"
        )
    roles = roles[: request.cameras]
    values = {
        "checkpoint": request.checkpoint,
        "robot": request.robot,
        "prompt": request.prompt,
        "rate_hz": float(request.rate),
        "threads": request.threads,
        "backend": request.backend,
        **{f"precision.{stage}": request.precision for stage in ("vision", "prefill", "denoise")},
        "camera_roles": list(roles),
    }
    PolicyParameters.from_values(values)
    environment, _ = ros_environment()
    write_parameters(request.out / "node_params.yaml", values)
    chunk_bag = request.out / "chunks"
    load = [
        f"--{name}={value}"
        for name, value in (
            ("node", NODE), ("robot", request.robot), ("cameras", request.cameras),
            ("seconds", request.duration), ("width", request.width), ("height", request.height),
            ("camera-hz", request.camera_hz), ("joint-hz", request.joint_hz),
        )
    ]  # fmt: skip
    with Children(environment, request.out / "logs") as children:
        ros = ("--ros-args", "--params-file", str(request.out / "node_params.yaml"))
        node = children.start_module("policy_node", "pi05_ros.ros.policy_node", *ros)
        recorder = children.start_module(
            "recorder", "pi05_ros.ros.processes.chunk_recorder",
            "--node", NODE, "--out", str(chunk_bag), "--clock-map", str(request.out / "none.json"),
            talks=True,
        )  # fmt: skip
        publisher = children.start_module(
            "publisher", "pi05_ros.ros.processes.load_publisher", *load, talks=True
        )
        children.wait_event(publisher, "ready", 10 * START_S)
        children.wait_event(recorder, "matched", START_S)
        publisher.send("go")
        memory, cpu_share = _watch(children, node, request.duration)
        done = children.wait_event(publisher, "done", START_S)
        time.sleep(SETTLE_S)
        code = children.stop(recorder, WRITE_S)
        if code != 0:
            raise ChildError(f"recorder ended with code {code}:\n{recorder.tail()}")
    return _figures(request, chunk_bag, done, memory, cpu_share)


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
    request: NodeBenchRequest,
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
    return NodeFigures(
        machine=machine(),
        setting=(
            f"{request.checkpoint}, {request.cameras} cameras {request.width}x{request.height} at "
            f"{request.camera_hz:g} Hz, joint states at {request.joint_hz:g} Hz, "
            f"{request.rate:g} Hz, {request.threads} model threads"
        ),
        seconds=request.duration,
        chunks=len(chunks),
        asked=request.rate * request.duration,
        overhead_ms=Spread.of(overhead),
        queue_ms=spread("queue_ms"),
        inference_ms=spread("inference_ms"),
        latency_ms=Spread.of(latencies_ms(chunks)),
        delivered={
            name: int(inputs.get(f"{name}.received", 0)) / sent
            for name, sent in done["sent"].items()
            if sent
        },
        skipped=skipped_ticks(inference),
        rss_mib=float(memory[-1]) / MIB,
        rss_growth_mib=growth / MIB,
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
