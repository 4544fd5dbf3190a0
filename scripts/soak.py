"""Soak test: the simulated arm in closed loop through the ROS nodes, watched for what grows.

    make soak                                   # one hour
    python scripts/soak.py --minutes 5          # with .venv/ros_env.sh sourced

Every ten seconds it notes resident memory, descriptors and threads of driver, policy and executor
node, and the files in shared memory. The engine runs in a process of its own, which is killed now
and then (`--isolation thread`: in the node). It fails if anything grows between the first and the
last quarter, if no episode succeeds, or if a node ends.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

from pi05_ros.ros.processes.bring_up import bring_up
from pi05_ros.ros.processes.children import Child, Children, ros_environment
from pi05_ros.sim.evaluation.ros_grid import RosJob
from pi05_ros.sim.evaluation.ros_session import start_nodes, watch_episodes, watcher
from pi05_ros.sim.evaluation.session_results import RosSession
from pi05_ros.sim.evaluation.setting import Setting
from pi05_ros.sim.training.shipped import CHECKPOINT
from pi05_ros.tables import markdown_table

SAMPLE_S = 10.0
ALLOWED = {"memory MiB": 16.0, "descriptors": 4.0, "threads": 2.0, "shared memory files": 4.0}
"""Growth of the median from the first to the last quarter that is still called flat."""
NODES = ("sim_arm", "pi05_policy", "pi05_executor")


class TimeOverError(Exception):
    """The soak has lasted as long as it should."""


@dataclass
class Notes:
    """Samples by what was measured, and how often the policy's process was killed."""

    series: dict[str, list[float]] = field(default_factory=dict)
    kills: int = 0

    def add(self, name: str, value: float) -> None:
        """One more sample."""
        self.series.setdefault(name, []).append(value)

    def growth(self, name: str) -> tuple[float, float]:
        """Median of the first quarter (after the first tenth) and of the last."""
        values = self.series[name][len(self.series[name]) // 10 :]
        part = max(1, len(values) // 4)
        return float(np.median(values[:part])), float(np.median(values[-part:]))


def descendants(pid: int) -> list[int]:
    """Processes started by one, directly or not."""
    found = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


def sample(notes: Notes, node: Child) -> None:
    """Note what a node and its processes hold; memory is theirs together."""
    pids = [node.process.pid, *descendants(node.process.pid)]
    memory = files = threads = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            memory += pages * os.sysconf("SC_PAGE_SIZE")
            files += len(os.listdir(f"/proc/{pid}/fd"))
            threads += len(os.listdir(f"/proc/{pid}/task"))
    notes.add(f"{node.name}: memory MiB", memory / 2**20)
    notes.add(f"{node.name}: descriptors", files)
    notes.add(f"{node.name}: threads", threads)


def shared_files(nodes: list[Child]) -> set[str]:
    """Files in /dev/shm that the nodes and their processes have mapped."""
    found = set()
    for node in nodes:
        for pid in (node.process.pid, *descendants(node.process.pid)):
            with contextlib.suppress(OSError):
                lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
                found |= {line.split()[5] for line in lines if "/dev/shm/" in line}
    return found


def soak(args: argparse.Namespace) -> int:
    """Run it and print the table."""
    environment, domain = ros_environment()
    job = RosJob(Setting(), args.rate, args.task, (0,), isolation=args.isolation)
    session, notes = RosSession(real_time=False), Notes()
    rclpy.init(args=[], domain_id=domain, signal_handler_options=SignalHandlerOptions.NO)
    executor, node = SingleThreadedExecutor(), watcher(session)
    began = time.monotonic()
    due = {"sample": 0.0, "kill": args.kill_every * 60}
    try:
        with Children(environment, args.out / "logs") as children:
            nodes = start_nodes(children, str(CHECKPOINT), job)
            bring_up(node, "/pi05_policy", 120.0, lambda: None)
            executor.add_node(node)

            def check() -> None:
                children.check()
                elapsed = time.monotonic() - began
                if elapsed > args.minutes * 60:
                    raise TimeOverError
                if elapsed >= due["sample"]:
                    due["sample"] = elapsed + SAMPLE_S
                    for child in nodes:
                        sample(notes, child)
                    notes.add("all: shared memory files", len(shared_files(nodes)))
                    session.film.clear()
                if args.kill_every and elapsed >= due["kill"]:
                    due["kill"] = elapsed + args.kill_every * 60
                    for pid in descendants(nodes[1].process.pid):
                        os.kill(pid, signal.SIGKILL)
                        notes.kills += 1

            def say(seed: int, done: bool) -> None:
                minutes = (time.monotonic() - began) / 60
                print(
                    f"{minutes:5.1f} min: seed {seed} {'done' if done else 'failed'}", flush=True
                )

            with contextlib.suppress(TimeOverError):
                watch_episodes(node, executor, range(10**6), check, say)
    finally:
        executor.shutdown()
        node.destroy_node()
        rclpy.shutdown()
    return report(args, session, notes)


def report(args: argparse.Namespace, session: RosSession, notes: Notes) -> int:
    """Print and write what was measured; 1 if something grew or nothing was done."""
    rows, grown = [], []
    for name in notes.series:
        first, last = notes.growth(name)
        flat = last - first <= ALLOWED[name.partition(": ")[2]]
        rows.append((name, f"{first:.1f}", f"{last:.1f}", f"{last - first:+.1f}"))
        if not flat:
            grown.append(name)
    done = sum(session.done.values())
    print(markdown_table(("what", "first quarter", "last quarter", "growth"), rows))
    print(f"{args.minutes:g} minutes, {done} of {len(session.done)} episodes done, "
          f"{session.chunks} chunks, real-time factor {session.real_time_factor:.2f}, "
          f"policy processes killed: {notes.kills}")  # fmt: skip
    values = {"series": notes.series, "kills": notes.kills, **session.row()}
    (args.out / "soak.json").write_text(json.dumps(values) + "\n", encoding="utf-8")
    for name in grown:
        print(f"FAILED: {name} grew", file=sys.stderr)
    if not done:
        print("FAILED: no episode was done", file=sys.stderr)
    unhurt = args.isolation == "process" and 0 < args.kill_every < args.minutes and not notes.kills
    if unhurt:
        print("FAILED: no process of the policy was there to be killed", file=sys.stderr)
    return 1 if grown or not done or unhurt else 0


def main() -> int:
    """Read the options."""
    parser = argparse.ArgumentParser(description="closed loop for a long time; fails on growth")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=4.0, help="inferences per second")
    parser.add_argument("--task", default="push_blue")
    parser.add_argument("--isolation", choices=("process", "thread"), default="process")
    parser.add_argument("--kill-every", type=float, default=5.0, help="minutes; 0: never")
    parser.add_argument("--out", type=Path, default=Path("out/soak"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    return soak(args)


if __name__ == "__main__":
    sys.exit(main())
