"""Faults of the engine process while the arm moves: when they are noticed, what the arm does.

    python scripts/engine_faults.py --count 20            # with .venv/ros_env.sh sourced
    python scripts/engine_faults.py --kinds kill --count 3

The simulated arm, the policy node with `isolation:=process` and the executor node run in real
time. In turn the engine process is killed (SIGKILL) or stopped for 3 s (SIGSTOP). Each fault gives
the time until the node says so, the time until chunks come again, and the commands meanwhile. It
fails if a command steps farther than the arm's velocity limit allows, if the arm is not held in
between, if chunks do not come again, or if the node keeps anything.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
import yaml
from pi05_ros.msg import ActionChunk, PolicyStatus
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.signals import SignalHandlerOptions
from trajectory_msgs.msg import JointTrajectory

from pi05_ros.resources import config_dir
from pi05_ros.ros.processes.bring_up import bring_up
from pi05_ros.ros.processes.children import Child, Children, ros_environment
from pi05_ros.sim.evaluation.evaluate import LIMITS_FILE
from pi05_ros.sim.evaluation.ros_grid import RosJob
from pi05_ros.sim.evaluation.ros_session import start_nodes
from pi05_ros.sim.evaluation.setting import Setting
from pi05_ros.sim.training.shipped import CHECKPOINT
from pi05_ros.tables import markdown_table

KINDS = ("kill", "stop")
STOPPED_S = 3.0
PATIENCE_S = 180.0
SETTLED_CHUNKS = 5
STILL = 1e-6  # rad between two commands of an arm that is held
SLACK = 1.01  # of the velocity limit: positions are rounded to float32 on their way
GROWTH = {"descriptors": 0, "threads": 0, "children": 0, "shared memory": 0, "memory MiB": 16.0}


class IsolatedJob(RosJob):
    """A session whose engine is in a process of its own."""

    def policy_parameters(self, checkpoint: str) -> dict[str, Any]:
        """Parameters of the policy node."""
        own = {"isolation": "process", "engine_restart_s": 0.2}
        return {**super().policy_parameters(checkpoint), **own}


@dataclass(frozen=True)
class FaultOutcome:
    """One fault; times in seconds since it."""

    kind: str
    noticed_s: float
    again_s: float
    lost_chunks: int
    text: str
    step_of_limit: float  # largest step of a command over what the velocity limit allows
    held: bool
    left: dict[str, float] = field(default_factory=dict)


class FaultWatcher(Node):
    """Notes what the nodes say and command."""

    def __init__(self) -> None:
        super().__init__("fault_watcher")
        latched = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.status = ""
        self.chunks: list[float] = []
        self.joints: list[str] = []
        self.commands: list[tuple[float, np.ndarray]] = []
        self.create_subscription(PolicyStatus, "pi05_policy/status", self._on_status, latched)
        self.create_subscription(ActionChunk, "pi05_policy/action_chunk", self._on_chunk, 10)
        self.create_subscription(
            JointTrajectory, "joint_trajectory_controller/joint_trajectory", self._on_command, 100
        )

    def _on_status(self, message: PolicyStatus) -> None:
        self.status = message.message

    def _on_chunk(self, _: ActionChunk) -> None:
        self.chunks.append(time.monotonic())

    def _on_command(self, message: JointTrajectory) -> None:
        point, self.joints = message.points[0], list(message.joint_names)
        after = point.time_from_start.sec + point.time_from_start.nanosec * 1e-9
        self.commands.append((after, np.asarray(point.positions, np.float64)))


def velocity_limits(joints: list[str]) -> np.ndarray:
    """Of the joints, per second."""
    text = (config_dir() / LIMITS_FILE).read_text(encoding="utf-8")
    limits = yaml.safe_load(text)["joint_limits"]
    return np.array([limits[joint]["max_velocity"] for joint in joints])


def engine_pid(node: Child) -> int:
    """The child process of the policy node."""
    tasks = Path(f"/proc/{node.process.pid}/task")
    (pid,) = [pid for task in tasks.iterdir() for pid in (task / "children").read_text().split()]
    return int(pid)


def holdings(node: Child) -> dict[str, float]:
    """What the policy node itself keeps."""
    home = Path(f"/proc/{node.process.pid}")
    pages = int((home / "statm").read_text().split()[1])
    maps = (home / "maps").read_text()
    children = [pid for task in (home / "task").iterdir() for pid in
                (task / "children").read_text().split()]  # fmt: skip
    return {
        "descriptors": len(os.listdir(home / "fd")),
        "threads": len(os.listdir(home / "task")),
        "children": len(children),
        "shared memory": maps.count("pi05_ros_engine"),
        "memory MiB": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
    }


def one_fault(
    kind: str, policy: Child, watcher: FaultWatcher, wait: Callable[[Callable[[], bool]], None],
    period_s: float,
) -> FaultOutcome:  # fmt: skip
    """Wait until all is well, inject, watch until all is well again."""
    watcher.chunks.clear()
    wait(lambda: len(watcher.chunks) >= SETTLED_CHUNKS and not watcher.status)
    watcher.commands.clear()
    pid, began = engine_pid(policy), time.monotonic()
    os.kill(pid, signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
    wait(lambda: bool(watcher.status))
    noticed, text = time.monotonic(), watcher.status
    if kind == "stop":
        wait(lambda: time.monotonic() - began > STOPPED_S)
        with contextlib.suppress(ProcessLookupError):  # ended by the node meanwhile
            os.kill(pid, signal.SIGCONT)
    wait(lambda: bool(watcher.chunks) and watcher.chunks[-1] > noticed and not watcher.status)
    again = next(at for at in watcher.chunks if at > noticed)
    after = [positions for _, positions in watcher.commands]
    steps = np.abs(np.diff(after, axis=0)) if len(after) > 1 else np.zeros((1, 1))
    allowed = (
        velocity_limits(watcher.joints)
        * np.array([after_s for after_s, _ in watcher.commands[1:]])[:, None]
    )
    quiet = steps.max(axis=1) < STILL
    return FaultOutcome(
        kind,
        noticed - began,
        again - began,
        max(0, round((again - began) / period_s) - 1),
        text,
        float((steps / (SLACK * allowed)).max()),
        bool(quiet.any()) or again - began < 1.0,
    )


def run(args: argparse.Namespace) -> int:
    """All faults, and the report."""
    environment, domain = ros_environment()
    job = IsolatedJob(Setting(), args.rate, "push_blue", (0,), real_time=True)
    rclpy.init(args=[], domain_id=domain, signal_handler_options=SignalHandlerOptions.NO)
    watcher, executor = FaultWatcher(), SingleThreadedExecutor()
    outcomes: list[FaultOutcome] = []
    try:
        with Children(environment, args.out / "logs") as children:
            nodes = start_nodes(children, str(CHECKPOINT), job)
            bring_up(watcher, "/pi05_policy", 120.0, lambda: None)
            executor.add_node(watcher)

            def wait(condition: Callable[[], bool]) -> None:
                end = time.monotonic() + PATIENCE_S
                while not condition():
                    executor.spin_once(timeout_sec=0.02)
                    children.check()
                    if time.monotonic() > end:
                        raise TimeoutError(f"not within {PATIENCE_S:g} s; {watcher.status}")

            one_fault("kill", nodes[1], watcher, wait, 1 / args.rate)  # what is made once is made
            before = holdings(nodes[1])
            for number in range(args.count):
                kind = args.kinds[number % len(args.kinds)]
                outcome = one_fault(kind, nodes[1], watcher, wait, 1 / args.rate)
                outcomes.append(outcome)
                print(f"{number + 1:3d} {kind:6s} noticed {outcome.noticed_s:.2f} s, chunks again "
                      f"{outcome.again_s:.1f} s: {outcome.text}", flush=True)  # fmt: skip
            after = holdings(nodes[1])
    finally:
        executor.shutdown()
        watcher.destroy_node()
        rclpy.shutdown()
    return report(args, outcomes, before, after)


def report(
    args: argparse.Namespace, outcomes: list[FaultOutcome], before: dict[str, float],
    after: dict[str, float],
) -> int:  # fmt: skip
    """Tables, a file with everything, and the exit code."""
    head = ("fault", "times", "noticed s, median / most", "chunks again s, median / most",
            "chunks lost", "command step of the limit, most", "held in between")  # fmt: skip
    rows = []
    for kind in dict.fromkeys(outcome.kind for outcome in outcomes):
        of = [outcome for outcome in outcomes if outcome.kind == kind]
        noticed, again = [o.noticed_s for o in of], [o.again_s for o in of]
        rows.append((
            kind, str(len(of)), f"{np.median(noticed):.2f} / {max(noticed):.2f}",
            f"{np.median(again):.1f} / {max(again):.1f}",
            f"{min(o.lost_chunks for o in of)} to {max(o.lost_chunks for o in of)}",
            f"{max(o.step_of_limit for o in of):.2f}", f"{sum(o.held for o in of)} of {len(of)}",
        ))  # fmt: skip
    print(markdown_table(head, rows))
    print(
        markdown_table(
            ("kept by the policy node", "before", "after"),
            [(name, f"{before[name]:g}", f"{after[name]:g}") for name in before],
        )
    )
    values = {"outcomes": [asdict(o) for o in outcomes], "before": before, "after": after}
    (args.out / "engine_faults.json").write_text(json.dumps(values) + "\n", encoding="utf-8")
    failures = [
        f"{name} grew" for name, most in GROWTH.items() if after[name] - before[name] > most
    ]
    failures += [
        f"a command stepped too far after {o.kind}" for o in outcomes if o.step_of_limit > 1
    ]
    failures += [f"the arm was not held after {o.kind}" for o in outcomes if not o.held]
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if failures else 0


def main() -> int:
    """Read the options."""
    parser = argparse.ArgumentParser(description="faults of the engine process in closed loop")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--rate", type=float, default=4.0, help="inferences per second")
    parser.add_argument("--out", type=Path, default=Path("out/engine_faults"))
    args = parser.parse_args()
    args.kinds = args.kinds.split(",")
    unknown = set(args.kinds) - set(KINDS)
    if unknown:
        parser.error(f"--kinds {', '.join(sorted(unknown))}; accepted: {', '.join(KINDS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    return run(args)


if __name__ == "__main__":
    sys.exit(main())
