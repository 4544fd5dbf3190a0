"""`pi05 bench serve`: what a policy server adds to inference, and how many robots one GPU serves.

The server is a process of its own (`pi05 serve`, or without a checkpoint one whose policy answers
at once), the robots are threads of this one that ask at their rate over loopback. Added latency
is the round trip minus the server's own time in the policy, of the same request.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pi05_ros.bench.bench_requests import ServeBenchRequest
from pi05_ros.policy.remote.array_codec import pack, unpack
from pi05_ros.policy.remote.connection import MAX_ANSWER
from pi05_ros.policy.robots.profile import RobotProfile
from pi05_ros.policy.robots.profile_yaml import load_profile
from pi05_ros.serving.errors import ServingError
from pi05_ros.serving.server import ServerOptions

INSTANT = "instant"
WARM_UP = 10  # requests per robot that are not counted
CONNECT_S, ANSWER_S = 30.0, 60.0


@dataclass(frozen=True)
class Row:
    """One number of robots.

    Attributes:
        robots: clients that ask at a time.
        requests, errors: counted requests, and those answered with an error.
        missed: answers later than the deadline.
        round_trip_ms, added_ms: p50 and p99.
        infer_ms: mean time of one request in the policy.
        server_cpu_ms: CPU time of the server process per request, the policy's included.

    """

    robots: int
    requests: int
    errors: int
    missed: int
    round_trip_ms: tuple[float, float]
    added_ms: tuple[float, float]
    infer_ms: float
    server_cpu_ms: float


@dataclass
class Robot:
    """What one client thread has seen."""

    round_trip_ms: list[float] = field(default_factory=list)
    infer_ms: list[float] = field(default_factory=list)
    errors: int = 0


def request_of(robot: RobotProfile, height: int, width: int) -> bytes:
    """One packed observation in our own form, random pixels."""
    rng = np.random.default_rng(0)
    images = {
        role: rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        for role in robot.camera_roles[:2]
    }
    return pack({"images": images, "state": np.zeros(len(robot.state_names)), "prompt": "pick"})


def drive(
    port: int, frame: bytes, rate: float, seconds: float, start: threading.Barrier, robot: Robot
) -> None:
    """Thread of one robot: ask at a rate, absolute times, no catching up."""
    from pi05_ros.policy.remote.request_socket import RequestSocket

    socket = RequestSocket(f"ws://127.0.0.1:{port}", None, CONNECT_S, MAX_ANSWER)
    try:
        socket.receive(time.monotonic() + ANSWER_S)
        for _ in range(WARM_UP):
            end_s = time.monotonic() + ANSWER_S
            socket.send(frame, end_s)
            socket.receive(end_s)
        start.wait(120)
        begin = time.monotonic()
        tick = 0
        while (due := begin + tick / rate) < begin + seconds:
            time.sleep(max(0.0, due - time.monotonic()))
            sent = time.monotonic()
            socket.send(frame, sent + ANSWER_S)
            answer = socket.receive(sent + ANSWER_S)
            elapsed_ms = 1e3 * (time.monotonic() - sent)
            if isinstance(answer, str):
                robot.errors += 1
            else:
                robot.round_trip_ms.append(elapsed_ms)
                robot.infer_ms.append(float(unpack(answer).value["server_timing"]["infer_ms"]))
            tick = max(tick + 1, int((time.monotonic() - begin) * rate) + 1)
    finally:
        socket.close()


def cpu_s(pid: int) -> float:
    """User and system time of a process so far, seconds: its clock of clock_getcpuclockid(3)."""
    return time.clock_gettime((~pid << 3) | 2)


def measure(port: int, pid: int, robots: int, frame: bytes, args: ServeBenchRequest) -> Row:
    """One number of robots against a running server."""
    seen = [Robot() for _ in range(robots)]
    start = threading.Barrier(robots + 1)
    threads = [
        threading.Thread(
            target=drive, args=(port, frame, args.rate, args.seconds, start, robot), daemon=True
        )
        for robot in seen
    ]
    for thread in threads:
        thread.start()
    start.wait(120)
    before = cpu_s(pid)
    for thread in threads:
        thread.join(args.seconds + 120)
    used = cpu_s(pid) - before
    trips = np.array([ms for robot in seen for ms in robot.round_trip_ms])
    infer = np.array([ms for robot in seen for ms in robot.infer_ms])
    errors = sum(robot.errors for robot in seen)
    count = len(trips) + errors

    def spread(values: np.ndarray) -> tuple[float, float]:
        if not len(values):
            return (float("nan"), float("nan"))
        p50, p99 = np.percentile(values, [50, 99])
        return (round(float(p50), 3), round(float(p99), 3))

    return Row(
        robots=robots,
        requests=count,
        errors=errors,
        missed=int((trips > args.deadline_ms).sum()),
        round_trip_ms=spread(trips),
        added_ms=spread(trips - infer),
        infer_ms=round(float(infer.mean()), 3) if len(infer) else float("nan"),
        server_cpu_ms=round(1e3 * used / max(1, count), 3),
    )


def serve_instant(robot: str, max_frame: int = ServerOptions.max_frame) -> None:
    """Server whose policy answers zeros at once; ends on SIGTERM."""
    from pi05_ros.backends.engine import Precision
    from pi05_ros.policy.interface import ActionChunk, Observation, PolicyInfo
    from pi05_ros.serving.metadata import server_metadata
    from pi05_ros.serving.server import PolicyServer
    from pi05_ros.serving.service import serve_until_signal
    from pi05_ros.serving.session import Session

    profile = load_profile(robot)
    zeros = np.zeros((profile.horizon or 50, len(profile.action_names)), np.float32)

    class Instant:
        robot = profile
        info = PolicyInfo(
            INSTANT, INSTANT, True, profile.name, INSTANT, "", "cpu", Precision(), 1, len(zeros),
            profile.step_s, profile.action_names, profile.camera_roles, profile.state_names, "",
        )  # fmt: skip

        def infer(
            self, obs: Observation, *, seed: int | None = None, denoise_steps: int | None = None
        ) -> ActionChunk:
            return ActionChunk(
                zeros, zeros, profile.action_names, profile.action_meanings,
                profile.command_units, profile.step_s, "", seed or 0, 1,
            )  # fmt: skip

        def warm_up(self) -> Any:
            return None

        def close(self) -> None:
            return None

    policy = Instant()
    options = ServerOptions(port=0, max_frame=max_frame)
    metadata = server_metadata(policy.info, profile, "", options.max_frame)
    server = PolicyServer(profile, lambda: metadata, lambda: Session(policy), options)
    serve_until_signal(server, lambda port: print(f"serving on 127.0.0.1:{port}", flush=True))


def measure_serving(request: ServeBenchRequest, show: Callable[[Row], None]) -> list[Row]:
    """Start a server, measure each number of robots, end the server.

    Raises:
        ServingError: the server did not start; its own message is on stderr.

    """
    command = [sys.executable, "-m", "pi05_ros.cli.main", "serve", request.checkpoint or "",
               "--robot", request.robot, "--port", "0", *request.serve]  # fmt: skip
    if not request.checkpoint:
        command = [sys.executable, "-c", "import sys; from pi05_ros.bench.serve import "
                   "serve_instant; serve_instant(sys.argv[1])", request.robot]  # fmt: skip
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        if ":" not in line:
            raise ServingError("the policy server did not start")
        port = int(line.rsplit(":", 1)[1])
        frame = request_of(load_profile(request.robot), *request.image)
        rows = []
        for robots in request.robots:
            rows.append(measure(port, server.pid, robots, frame, request))
            show(rows[-1])
        return rows
    finally:
        server.terminate()
        server.wait(30)
